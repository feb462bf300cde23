"""`python -m torchsaver`: the command line."""

import sys

from torchsaver.cli import main

sys.exit(main())
