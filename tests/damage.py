"""Damage done on purpose."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest


def flip(path: Path, position: int = -1) -> None:
    """Change one bit of the byte at `position`."""
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


@contextlib.contextmanager
def no_room_for_the_state_file() -> Iterator[None]:
    """Let the one save in the with block fail after its checkpoint has got its name."""

    def full(*_: object) -> None:
        raise OSError(28, "full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchsaver.rotation.write_state", full)
        with pytest.raises(OSError, match="full"):
            yield
