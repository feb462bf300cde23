"""From the text strace writes to system calls, and from calls to what they did to one directory tree.

Understands `strace -f -y -xx`: file descriptors come with their paths, and all strings are in hexadecimal, so that no
name or data can look like syntax. A program marks the start and end of a save by asking for access to a path that
names it (`mark_started`, `mark_ended`): a call that changes nothing and shows up in the trace.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from faults.operations import Recording

_FINISHED = re.compile(r"^(\d+) +(\w+)\((.*)\) += +(-?\d+|\?|0x[0-9a-f]+)(?:<[^>]*>)?(.*)$", re.DOTALL)
_UNFINISHED = re.compile(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$", re.DOTALL)
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
_CUT_OFF = re.compile(r"^(\d+) +(\w+)\((.*?)\)? += \?", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_NAMED_FD = re.compile(r"(\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")
_STARTED, _ENDED = "/torchsaver-faults-save-started/", "/torchsaver-faults-save-ended/"

PLAIN_WRITES = frozenset({"write", "writev"})
PLACED_WRITES = frozenset({"pwrite64", "pwritev", "pwritev2"})


@dataclass(frozen=True)
class Call:
    """One system call of a trace.

    Attributes:
        thread: Who made it.
        name: As strace spells it.
        arguments: The text between the parentheses.
        result: What it returned, -1 for an error; None when the thread died in it.
        note: What strace says after the result, e.g. the error's name.
    """

    thread: str
    name: str
    arguments: str
    result: int | None
    note: str = ""

    @property
    def is_hit(self) -> bool:
        """Whether strace made this call fail, or the thread died in it."""
        return self.result is None or "(INJECTED)" in self.note

    def strings(self) -> list[bytes]:
        """Return the arguments that are strings."""
        return [_unhex(match[1]) for match in _STRING.finditer(self.arguments)]

    def descriptors(self) -> list[tuple[int | None, str]]:
        """Return the arguments that are descriptors, None for the working directory, each with its path."""
        found = _NAMED_FD.finditer(self.arguments)
        return [(None if m[1] == "AT_FDCWD" else int(m[1]), os.fsdecode(_unhex(m[2]))) for m in found]

    def named_paths(self) -> list[str]:
        """Return the absolute paths given as strings, each relative one joined to the descriptor before it."""
        bases = [path for _, path in self.descriptors()] or ["/"]
        names = [os.fsdecode(string) for string in self.strings()]
        return [os.path.normpath(os.path.join(bases[min(i, len(bases) - 1)], name)) for i, name in enumerate(names)]

    def paths(self) -> list[str]:
        """Return every path the call is about, of descriptors first."""
        held = [path.removesuffix(" (deleted)") for _, path in self.descriptors()]
        return held if self.name in PLAIN_WRITES | PLACED_WRITES else held + self.named_paths()


def mark_started(step: int) -> None:
    """Mark in a trace of this process that the save of `step` begins."""
    os.access(f"{_STARTED}{step}", 0)


def mark_ended(step: int) -> None:
    """Mark in a trace of this process that the save of `step` has ended."""
    os.access(f"{_ENDED}{step}", 0)


def is_inside(path: str, directory: str) -> bool:
    """Return whether a normal path is `directory` or below it."""
    return path == directory or path.startswith(directory + "/")


def parse(lines: Iterable[str]) -> list[Call]:
    """Return the calls of a trace in the order they ended; lines that are no calls (signals, exits) are left out."""
    pending: dict[str, tuple[str, str]] = {}
    calls = []
    for line in lines:
        text = line.rstrip("\n")
        if unfinished := _UNFINISHED.match(text):
            pending[unfinished[1]] = (unfinished[2], unfinished[3])
            continue
        if resumed := _RESUMED.match(text):
            name, arguments = pending.pop(resumed[1], (resumed[2], ""))
            text = f"{resumed[1]} {name}({arguments}{resumed[3]}"
        if finished := _FINISHED.match(text):
            thread, name, arguments, result, note = finished.groups()
            calls.append(Call(thread, name, arguments, None if result == "?" else int(result, 0), note))
        elif cut_off := _CUT_OFF.match(text):
            calls.append(Call(cut_off[1], cut_off[2], cut_off[3], None))
    return calls + [Call(thread, name, arguments, None) for thread, (name, arguments) in pending.items()]


def parse_file(path: str) -> list[Call]:
    """Return the calls of the trace in a file."""
    with open(path, encoding="ascii", errors="replace") as file:
        return parse(file)


def record(calls: Iterable[Call], directory: str) -> tuple[Recording, list[str]]:
    """Return what successful calls did to a directory that was empty, and names of calls that are not understood.

    With a call that is not understood (a write through mmap, a symlink, a copy inside the kernel) the recording is not
    the whole truth; compare `crash_states.final_tree` with the directory to know.
    """
    replay = _Replay(directory)
    for call in calls:
        replay.take(call)
    return replay.recording, replay.not_understood


@dataclass
class _Descriptor:
    node: int
    offset: int = 0
    appends: bool = False


class _Replay:
    """Makes a recording of calls, keeping the table of descriptors that the kernel keeps."""

    def __init__(self, directory: str) -> None:
        self.recording = Recording()
        self.not_understood: list[str] = []
        self._directory = directory
        self._descriptors: dict[int, _Descriptor] = {}

    def take(self, call: Call) -> None:
        if call.name in _ACCESS:
            self._mark(call)
        elif call.result is not None and call.result >= 0 and (handler := _HANDLERS.get(call.name)):
            handler(self, call)

    def _mark(self, call: Call) -> None:
        for path in call.strings()[:1]:
            text = os.fsdecode(path)
            if text.startswith(_STARTED):
                self.recording.save_started(int(text.removeprefix(_STARTED)))
            elif text.startswith(_ENDED):
                self.recording.save_acked(int(text.removeprefix(_ENDED)))

    def _inside(self, path: str) -> str | None:
        return os.path.relpath(path, self._directory) if is_inside(path, self._directory) else None

    def _descriptor(self, call: Call) -> _Descriptor | None:
        found = re.match(r"\d+", call.arguments)
        return self._descriptors.get(int(found[0])) if found else None

    def _touches(self, call: Call) -> bool:
        return any(self._inside(path) is not None for path in call.paths())

    def open(self, call: Call) -> None:
        path = self._inside(call.named_paths()[0])
        assert call.result is not None
        self._descriptors.pop(call.result, None)
        if path is None:
            return
        node = self.recording.lookup(path)
        if "O_TMPFILE" in call.arguments:
            node = self.recording.new_file()
        elif node is None:
            node = self.recording.create(path)
        elif "O_TRUNC" in call.arguments or call.name == "creat":
            self.recording.truncate(node, 0)
        self._descriptors[call.result] = _Descriptor(node, appends="O_APPEND" in call.arguments)

    def duplicate(self, call: Call) -> None:
        descriptor = self._descriptor(call)
        if descriptor is not None and call.result is not None and (call.name != "fcntl" or "F_DUPFD" in call.arguments):
            self._descriptors[call.result] = descriptor

    def close(self, call: Call) -> None:
        if (descriptor := self._descriptor(call)) is not None:
            self.recording.close(descriptor.node)
            del self._descriptors[int(call.arguments.split("<")[0])]

    def seek(self, call: Call) -> None:
        if (descriptor := self._descriptor(call)) is not None and call.result is not None:
            descriptor.offset = call.result

    def write(self, call: Call) -> None:
        descriptor = self._descriptor(call)
        if descriptor is None or call.result is None:
            return
        data = b"".join(call.strings())[: call.result]
        if len(data) < call.result:
            self.not_understood.append(f"{call.name}: data cut short")
        if call.name in PLACED_WRITES:
            offset = int(call.arguments.split(", ")[-2 if call.name == "pwritev2" else -1])
        else:
            offset = self.recording.size(descriptor.node) if descriptor.appends else descriptor.offset
            descriptor.offset = offset + len(data)
        self.recording.write(descriptor.node, data, offset)

    def truncate(self, call: Call) -> None:
        if (descriptor := self._descriptor(call)) is not None:
            self.recording.truncate(descriptor.node, int(call.arguments.rsplit(", ", 1)[1]))

    def allocate(self, call: Call) -> None:
        descriptor = self._descriptor(call)
        _, mode, offset, length = call.arguments.rsplit(", ", 3)
        if descriptor is not None and "KEEP_SIZE" not in mode:
            size = max(self.recording.size(descriptor.node), int(offset) + int(length))
            self.recording.truncate(descriptor.node, size)

    def fsync(self, call: Call) -> None:
        if (descriptor := self._descriptor(call)) is not None:
            self.recording.fsync(descriptor.node)

    def sync_all(self, _call: Call) -> None:
        self.recording.sync_all()

    def rename(self, call: Call) -> None:
        old, new = map(self._inside, call.named_paths())
        if old is not None and new is not None:
            self.recording.rename(old, new)
        elif old is not None or new is not None:
            self.not_understood.append("rename into or out of the directory")

    def link(self, call: Call) -> None:
        old, new = map(self._inside, call.named_paths())
        if new is None:
            return
        node = self.recording.lookup(old) if old is not None else None
        if node is None and (descriptor := self._descriptor(call)) is not None:
            node = descriptor.node
        if node is None:
            self.not_understood.append("link from outside the directory")
        else:
            self.recording.link(node, new)

    def make_directory(self, call: Call) -> None:
        if (path := self._inside(call.named_paths()[0])) not in (None, "."):
            assert path is not None
            self.recording.make_directory(path)

    def remove(self, call: Call) -> None:
        if (path := self._inside(call.named_paths()[0])) is not None:
            self.recording.remove(path)

    def unsupported(self, call: Call) -> None:
        if self._touches(call):
            self.not_understood.append(call.name)

    def map_memory(self, call: Call) -> None:
        if "MAP_SHARED" in call.arguments and "PROT_WRITE" in call.arguments:
            self.unsupported(call)


_ACCESS = frozenset({"access", "faccessat", "faccessat2"})
_HANDLERS: dict[str, Callable[[_Replay, Call], None]] = {
    **dict.fromkeys(("open", "openat", "creat"), _Replay.open),
    **dict.fromkeys(("dup", "dup2", "dup3", "fcntl"), _Replay.duplicate),
    "close": _Replay.close,
    "lseek": _Replay.seek,
    **dict.fromkeys(PLAIN_WRITES | PLACED_WRITES, _Replay.write),
    "ftruncate": _Replay.truncate,
    "fallocate": _Replay.allocate,
    **dict.fromkeys(("fsync", "fdatasync"), _Replay.fsync),
    **dict.fromkeys(("sync", "syncfs"), _Replay.sync_all),
    **dict.fromkeys(("rename", "renameat", "renameat2"), _Replay.rename),
    **dict.fromkeys(("link", "linkat"), _Replay.link),
    **dict.fromkeys(("mkdir", "mkdirat"), _Replay.make_directory),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), _Replay.remove),
    **dict.fromkeys(("symlink", "symlinkat", "sendfile", "copy_file_range", "splice", "truncate"), _Replay.unsupported),
    "mmap": _Replay.map_memory,
}


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
