"""Tests import their own helpers from this folder."""

import importlib
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

# Where there is a GPU, DataParallel would take the modules of tests there.
_data_parallel: Any = importlib.import_module("torch.nn.parallel.data_parallel")
_data_parallel._get_available_device_type = lambda: None

# A shell that starts us in the background has us ignore interrupts, and whatever tests start would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
