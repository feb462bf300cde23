"""What the harness asks of a library that saves checkpoints, and who is asked.

torchsaver          this library; restores what `newest_valid_checkpoint` says, recovers its list from the state file
torchsaver-resume   this library; restores and recovers with `Saver.resume`
careful             positive control: the shortest protocol that keeps every promise
naive               negative control: torch.save under the step's name, user code removes old ones
overwriting         negative control: torch.save over one file
"""

from __future__ import annotations

import importlib
from typing import cast

from faults.syscalls.adapters.adapter import Adapter

_MODULES = {
    "torchsaver": "torchsaver_adapter",
    "torchsaver-resume": "torchsaver_adapter",
    "torchsaver-sharded": "torchsaver_adapter",
    "torchsaver-background": "torchsaver_adapter",
    "careful": "careful",
    "naive": "naive",
    "overwriting": "overwriting",
}
NAMES = tuple(_MODULES)


def load_adapter(name: str) -> Adapter:
    """Return the adapter called `name`, its library not imported yet."""
    module = importlib.import_module(f"faults.syscalls.adapters.{_MODULES[name]}")
    return cast("Adapter", module.ADAPTERS[name]())
