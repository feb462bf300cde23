"""Class Board: a page of memory on which a writer reports, without any system call that a fault could hit."""

from __future__ import annotations

import json
import mmap
import os
import struct
from dataclasses import asdict

from faults.syscalls.orders import Failure

_BYTES = 1 << 16
_STARTED, _ACKS, _FIRST_ACK, _DONE, _REPORT_BYTES, _WAITING, _LIED = 0, 1, 2, 500, 501, 502, 503
_ACKS_KEPT = 400
_REPORTS_AT = 8192


class Board:
    """Shared by the runner, which makes the file, and one writer at a time."""

    def __init__(self, path: str, *, is_new: bool = False) -> None:
        self.path = path
        fd = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_TRUNC if is_new else 0))
        if is_new:
            os.ftruncate(fd, _BYTES)
        self._memory = mmap.mmap(fd, _BYTES)
        os.close(fd)

    def _get(self, slot: int) -> int:
        return int(struct.unpack_from("<q", self._memory, 8 * slot)[0])

    def _set(self, slot: int, value: int) -> None:
        struct.pack_into("<q", self._memory, 8 * slot, value)

    # ---- the writer's side

    def start(self, step: int) -> None:
        """Note that the save of `step` has begun."""
        self._set(_STARTED, step)

    def ack(self, step: int) -> None:
        """Note that the save of `step` has returned."""
        self._set(_FIRST_ACK + self._get(_ACKS) % _ACKS_KEPT, step)
        self._set(_ACKS, self._get(_ACKS) + 1)

    def report(self, failure: Failure) -> None:
        """Note what an action raised or gave; what does not fit is dropped."""
        line = (json.dumps(asdict(failure)) + "\n").encode()
        start = _REPORTS_AT + self._get(_REPORT_BYTES)
        if start + len(line) < _BYTES:
            self._memory[start : start + len(line)] = line
            self._set(_REPORT_BYTES, start + len(line) - _REPORTS_AT)

    def wait_for_tracer(self) -> None:
        """Note that the writer is waiting."""
        self._set(_WAITING, 1)

    def lie(self) -> None:
        """Note that the call of a Lie was reached."""
        self._set(_LIED, 1)

    def finish(self) -> None:
        """Note that all actions are done."""
        self._set(_DONE, 1)

    # ---- the runner's side

    @property
    def started(self) -> int | None:
        """Step of the newest save that has begun, None before the first."""
        return self._get(_STARTED) or None

    @property
    def acks(self) -> int:
        """How many saves have returned."""
        return self._get(_ACKS)

    @property
    def acked(self) -> list[int]:
        """Steps of the saves that have returned, the last few hundred, in order."""
        return [self._get(_FIRST_ACK + i % _ACKS_KEPT) for i in range(max(0, self.acks - _ACKS_KEPT), self.acks)]

    @property
    def newest_ack(self) -> int | None:
        """Step of the newest save that has returned."""
        count = self.acks
        return self._get(_FIRST_ACK + (count - 1) % _ACKS_KEPT) if count else None

    @property
    def reports(self) -> list[Failure]:
        """What actions raised or gave, in order."""
        text = bytes(self._memory[_REPORTS_AT : _REPORTS_AT + self._get(_REPORT_BYTES)]).decode()
        return [Failure.from_json(json.loads(line)) for line in text.splitlines()]

    @property
    def is_waiting(self) -> bool:
        """Whether the writer waits for its tracer."""
        return bool(self._get(_WAITING))

    @property
    def has_lied(self) -> bool:
        """Whether the call of a Lie was reached."""
        return bool(self._get(_LIED))

    @property
    def is_done(self) -> bool:
        """Whether the writer has done all its actions."""
        return bool(self._get(_DONE))
