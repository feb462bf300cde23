"""Positive control: the shortest protocol that keeps every promise, to show that the harness does not cry wolf.

A save writes a locked temporary file, syncs it, renames it, and syncs the directory; then the state file the same way;
only then old files go. A restore takes the newest file whose digest is right. Nothing of torchsaver is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable

import numpy as np
from faults.syscalls.adapters.adapter import Adapter
from faults.syscalls.tensors import Tensors

_NAME = re.compile(r"model\.ckpt-(\d{1,18})\.bin")
_DIGEST_BYTES = 32
_RETRY_SECS = 5  # bounded by time: a fast writer can win any number of races


class BadCheckpointError(ValueError):
    """A file is not what a save wrote."""


class CarefulAdapter(Adapter):
    """Scans the directory; the state file is written for the sake of the protocol, and never believed."""

    documented = ("OSError", "BadCheckpointError")
    state_file = "checkpoint"
    suffix = ".bin"

    def __init__(self) -> None:
        self._swept: set[str] = set()

    def forget(self) -> None:
        self._swept.clear()

    def save(self, directory: str, step: int, tensors: Tensors) -> None:
        if directory not in self._swept:
            _sweep(directory)
            self._swept.add(directory)
        _put(directory, f"model.ckpt-{step}.bin", _encode(tensors))
        present = self._present(directory)
        kept = [s for s in present if s <= step][-self.keep :] or present[-self.keep :]
        if not kept:  # another writer was faster, and has removed our step already
            return
        lines = [f'model_checkpoint_path: "model.ckpt-{kept[-1]}"']
        lines += [f'all_model_checkpoint_paths: "model.ckpt-{s}"' for s in kept]
        _put(directory, "checkpoint", "\n".join([*lines, ""]).encode())
        for old in self._present(directory):
            if old < kept[0]:
                with contextlib.suppress(OSError):  # the next save tries again
                    os.unlink(f"{directory}/model.ckpt-{old}.bin")

    def _present(self, directory: str) -> list[int]:
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, os.listdir(directory)) if match)

    def steps(self, directory: str) -> list[int]:
        good = []
        for step in self._present(directory):
            with contextlib.suppress(BadCheckpointError, FileNotFoundError):
                self.restore(directory, step)
                good.append(step)
        return good

    def restore(self, directory: str, step: int) -> Tensors:
        fd = os.open(f"{directory}/model.ckpt-{step}.bin", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise BadCheckpointError("not a regular file")
            return _decode(file.read())

    def restore_latest(self, directory: str) -> tuple[int, Tensors] | None:
        present = self._present(directory)
        error: Exception | None = None
        end = time.monotonic() + _RETRY_SECS
        while time.monotonic() < end:
            for step in reversed(present):
                try:
                    return step, self.restore(directory, step)
                except BadCheckpointError as damaged:  # an older one may serve
                    error = damaged
                except FileNotFoundError as gone:  # removed meanwhile: look again; other OSErrors go to the caller
                    error = gone
                    break
            before, present = present, self._present(directory)
            if present == before:
                break
        if error is not None:
            raise error
        return None

    def owned(self, directory: str) -> set[str]:
        return {"checkpoint", *(f"model.ckpt-{step}.bin" for step in self.steps(directory))}


def _encode(tensors: Tensors) -> bytes:
    header = {name: [value.dtype.str, list(value.shape)] for name, value in tensors.items()}
    body = json.dumps(header).encode() + b"\n" + b"".join(value.tobytes() for value in tensors.values())
    return hashlib.sha256(body).digest() + body


def _decode(data: bytes) -> Tensors:
    body = data[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES]:
        raise BadCheckpointError("its digest differs")
    end = body.index(b"\n")
    tensors, start = {}, end + 1
    for name, (dtype, shape) in json.loads(body[:end]).items():
        count = int(np.prod(shape, dtype=np.int64))
        tensors[name] = np.frombuffer(body, dtype, count, start).reshape(shape)
        start += tensors[name].nbytes
    return tensors


def _sweep(directory: str) -> None:
    """Remove temporary files whose writers hold no lock on them any more."""
    for name in os.listdir(directory):
        if name.startswith(".tmp-"):
            with contextlib.suppress(OSError):
                fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(f"{directory}/{name}")
                finally:
                    os.close(fd)


def _put(directory: str, name: str, data: bytes) -> None:
    """Write a file, whole and durable or not at all."""
    temporary, fd = _create(directory, name)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
        os.replace(temporary, f"{directory}/{name}")
        _sync_directory(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def _create(directory: str, name: str) -> tuple[str, int]:
    while True:
        temporary = f"{directory}/.tmp-{name}-{secrets.token_hex(8)}"
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return temporary, fd
            os.close(fd)  # a sweep was faster than our lock
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            os.close(fd)
            raise


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


ADAPTERS: dict[str, Callable[[], Adapter]] = {"careful": CarefulAdapter}
