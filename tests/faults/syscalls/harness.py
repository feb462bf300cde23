"""Class Harness: the working directory of a run, the directories that faults are tried on, and judging them."""

from __future__ import annotations

import collections
import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import TypeVar

from faults import strace_log
from faults.strace_log import Call, is_inside, parse_file
from faults.syscalls.orders import CheckItem
from faults.syscalls.verdict import Promise, Violations, judge
from faults.syscalls.zygote import Outcome, Trace, Zygote, with_inject

_Item = TypeVar("_Item")

# Calls that change a file system or hand out descriptors: what a recording of operations needs.
RECORDED = Trace(
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync,syncfs,rename,renameat,"
    "renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,symlinkat,ftruncate,truncate,fallocate,close,mkdir,"
    "mkdirat,lseek,access,faccessat,faccessat2,copy_file_range,sendfile,mmap,dup,dup2,dup3,fcntl"
)
# Calls of a save that may fail, or be the last.
FAULTY = frozenset(RECORDED.calls.split(",")) - {
    *("sync", "syncfs", "symlink", "symlinkat", "truncate", "lseek", "access", "faccessat", "faccessat2"),
    *("mmap", "dup", "dup2", "dup3", "fcntl"),
}
BEFORE = (1, 2)  # saved by an earlier process
STRUCK = (3, 4)  # what a fault strikes
EVERYTHING = 10**9


class Harness:
    """One run against one adapter.

    Args:
        adapter: Name of the adapter.
        is_full: Try everything, instead of samples.
        seed: Of the samples and of random times.

    Attributes:
        zygote: The worker process.
        directory: Where checkpoints are saved.
        work: Scratch space beside it.
        random: Source of all choices.
    """

    def __init__(self, adapter: str, *, is_full: bool = False, seed: int = 1) -> None:
        fast = "/dev/shm"  # memory: a full run writes gigabytes that nobody needs
        self.work = tempfile.mkdtemp(prefix="torchsaver-faults-", dir=fast if os.access(fast, os.W_OK) else None)
        os.makedirs(f"{self.work}/blobs")
        self.adapter = adapter
        self.is_full = is_full
        self.random = random.Random(seed)
        self.directory = f"{self.work}/run"
        self._template = f"{self.work}/template"
        try:
            self.zygote = Zygote(adapter, self.work)
        except BaseException:
            shutil.rmtree(self.work)
            raise

    def close(self) -> None:
        """End the worker process and remove the scratch space."""
        self.zygote.close()
        shutil.rmtree(self.work, ignore_errors=True)

    def pick(self, items: Sequence[_Item], quick: int, full: int = EVERYTHING) -> list[_Item]:
        """Return a sample of `items`, in their order: at most `quick` or `full` of them."""
        count = full if self.is_full else quick
        if len(items) <= count:
            return list(items)
        return [items[i] for i in sorted(self.random.sample(range(len(items)), count))]

    # ---- directories

    def fresh(self, directory: str | None = None) -> str:
        """Return an empty directory, by default the usual one."""
        directory = directory or self.directory
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        return directory

    def with_two_saves(self) -> str:
        """Return the usual directory, holding saves 1 and 2 of an earlier process."""
        if not os.path.isdir(self._template):
            self.fresh()
            self.save_cleanly(BEFORE)
            shutil.copytree(self.directory, self._template, symlinks=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.copytree(self._template, self.directory, symlinks=True)
        return self.directory

    def save_cleanly(self, steps: Sequence[int], trace: Trace | None = None, directory: str | None = None) -> Outcome:
        """Let a writer save `steps` without any fault, and insist that it works."""
        actions = [("save", step) for step in steps]
        outcome = self.zygote.write(directory or self.directory, actions, trace=trace, timeout=60)
        if outcome.acked != list(steps):
            raise RuntimeError(f"saving without a fault failed: {outcome.ending} {outcome.board.reports}")
        return outcome

    def blob(self, data: bytes) -> str:
        """Return the path of a file that holds `data`."""
        path = f"{self.work}/blobs/{hashlib.sha256(data).hexdigest()}"
        if not os.path.exists(path):
            with open(path, "wb") as file:
                file.write(data)
        return path

    def item(self, files: Mapping[str, bytes], *, is_deep: bool = False, resume_step: int = 0) -> CheckItem:
        """Return an order to fill the usual directory with `files`, and to look at it."""
        blobs = {path: self.blob(data) for path, data in files.items()}
        return CheckItem(self.directory, self.zygote.keep, is_deep, resume_step, [], blobs)

    # ---- faults in saves

    def start(self, *, is_first: bool) -> tuple[str, list[int], list[int]]:
        """Return the usual directory, the steps saved there, and those to save; `is_first`: none has been saved."""
        if is_first:
            return self.fresh(), [], [*BEFORE]
        return self.with_two_saves(), [*BEFORE], [*STRUCK]

    def fault_points(self, *, is_first: bool = False) -> list[tuple[str, int, str]]:
        """Return (system call, its number in its thread, path) for each call of two saves in the directory."""
        _, _, steps = self.start(is_first=is_first)
        self.save_cleanly(steps, RECORDED)
        return self.points_in_log(FAULTY)

    def points_in_log(self, names: frozenset[str]) -> list[tuple[str, int, str]]:
        """Return the calls of the newest trace that touch the directory, as `fault_points`; each once."""
        counts: collections.Counter[tuple[str, str]] = collections.Counter()
        points: dict[tuple[str, int], str] = {}
        for call in parse_file(self.zygote.log):
            counts[call.thread, call.name] += 1
            touched = self.inside(call)
            if call.name in names and touched:
                points.setdefault(
                    (call.name, counts[call.thread, call.name]), os.path.relpath(touched[0], self.directory)
                )
        return [(name, number, path) for (name, number), path in points.items()]

    def inside(self, call: Call) -> list[str]:
        """Return the paths in the directory that a call is about."""
        return [path for path in call.paths() if is_inside(path, self.directory)]

    def strike(self, fault: str, *, is_first: bool = False) -> tuple[Outcome, Promise]:
        """Let a writer save two steps while strace injects `fault`; return what came of it, and what was promised."""
        directory, before, steps = self.start(is_first=is_first)
        outcome = self.zygote.write(directory, [("save", step) for step in steps], trace=with_inject(RECORDED, fault))
        return outcome, outcome.promise(*before)

    def struck(self) -> tuple[str, str] | None:
        """Return the call, and the path in the directory, that the fault just injected struck; None: neither."""
        for call in strace_log.parse_file(self.zygote.log):
            if call.is_hit and (touched := self.inside(call)):
                return call.name, os.path.relpath(touched[0], self.directory)
        return None

    def look(self, promise: Promise, *, keep: int | None = None, resume_step: int = 100) -> Violations:
        """Return what a restarted process finds violated in the directory; with a step it saves that, too."""
        keep = keep or self.zygote.keep
        (finding,) = self.zygote.check([CheckItem(self.directory, keep, resume_step=resume_step)])
        return judge(finding, promise, keep)
