"""A directory of this process in memory, and the errors that may come of whatever is put there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from torchsaver.errors import TorchSaverError

DOCUMENTED = (TorchSaverError, OSError)


class Place:
    """A directory of this process in memory, where one small file is rewritten without being synced."""

    def __init__(self) -> None:
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._owner = tempfile.TemporaryDirectory(prefix="torchsaver-fuzz-", dir=memory)
        self.path = self._owner.name

    def put(self, name: str, data: bytes) -> str:
        path = f"{self.path}/{name}"
        with open(path, "wb", buffering=0) as file:
            file.write(data)
        return path


_places: dict[int, Place] = {}


def place() -> Place:
    """Return this process's place; a child of a fork has its own."""
    if os.getpid() not in _places:
        _places[os.getpid()] = Place()
    return _places[os.getpid()]
