"""Damage done to files on purpose."""

from pathlib import Path


def flip(path: Path, position: int = -1) -> None:
    """Change one bit of the byte at `position`."""
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
