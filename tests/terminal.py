"""A pseudo-terminal that tells what was written to it."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from typing import TextIO

_MARK = b"\0"


class Terminal:
    """A pseudo-terminal of `columns` cells: `stream` is its end, `text()` what was written there since the last time."""

    def __init__(self, columns: int, encoding: str = "utf-8") -> None:
        self._master, slave = os.openpty()
        self.stream: TextIO = open(slave, "w", encoding=encoding, errors="backslashreplace")  # noqa: SIM115
        self.resize(columns)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def text(self) -> str:
        os.write(self.stream.fileno(), _MARK)  # what was written before it comes before it, however it is cut
        data = b""
        while not data.endswith(_MARK):
            data += os.read(self._master, 1 << 16)
        return data.removesuffix(_MARK).decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)
