"""The runner's end of the worker process, and strace around the writers it forks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from faults.syscalls.board import Board
from faults.syscalls.orders import Action, CheckItem, Ending, Finding, JsonObject, Lie, WriterOrder
from faults.syscalls.verdict import Promise, Violations, judge_ending

TESTS = Path(__file__).parents[2]
PROJECT = TESTS.parent
_LEAST_STRACE = (5, 3)
_BOARDS = 8  # more than there are writers at once
_ATTACH_SECS = 10.0
_POLL_SECS = 0.001


class WorkerError(RuntimeError):
    """The worker process could not be started, or has gone."""


@dataclass(frozen=True)
class Trace:
    """What strace is to record of a writer, and to do to it.

    Attributes:
        calls: Names of system calls, with commas.
        inject: A fault, as strace's option -e inject= has it.
        string_bytes: How much of each string to write down.
    """

    calls: str
    inject: str | None = None
    string_bytes: int = 0

    def command(self, pid: int, log: str) -> list[str]:
        """Return the command that traces a process and its children."""
        inject = ["-e", f"inject={self.inject}"] if self.inject else []
        options = ["-f", "-y", "-xx", "-qq", "-s", str(self.string_bytes), "-e", f"trace={self.calls}", *inject]
        return ["strace", *options, "-p", str(pid), "-o", log]


@dataclass(frozen=True)
class Outcome:
    """What came of a writer: its board, and how its process ended."""

    board: Board
    ending: Ending

    @property
    def acked(self) -> list[int]:
        """Steps of the saves that returned."""
        return self.board.acked

    @property
    def raised(self) -> list[int]:
        """Steps of the saves that raised."""
        return [report.action[1] for report in self.board.reports if report.raised is not None]

    @property
    def in_flight(self) -> int | None:
        """Step of the save that neither returned nor raised."""
        started = self.board.started
        return None if started in self.acked or started in self.raised else started

    def promise(self, *before: int) -> Promise:
        """Return what was promised, `before` being the steps saved by an earlier process."""
        return Promise([*before, *self.acked], self.in_flight, self.raised)

    def violations(self) -> Violations:
        """Return what the end of the process violates."""
        return judge_ending(self.ending.hung_secs, self.ending.signal)


class Zygote:
    """The worker process of one adapter; it is sent orders, and forks a process for each.

    Args:
        adapter: Name of the adapter.
        work: Directory for what the two tell each other.

    Raises:
        WorkerError: The adapter cannot be imported; the message has what it printed.
    """

    def __init__(self, adapter: str, work: str) -> None:
        self.log = os.path.join(work, "strace.log")
        self._report = os.path.join(work, "report")
        self._boards = 0
        self._work = work
        self._errors = os.path.join(work, "worker.log")
        path = os.pathsep.join(filter(None, [str(TESTS), str(PROJECT), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "faults.syscalls.worker", adapter]
        with open(self._errors, "ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd="/"
            )
        facts = self._receive()
        self.keep: int = facts["keep"]
        self.documented: list[str] = facts["documented"]
        self.state_file: str | None = facts["state_file"]
        self.suffix: str = facts["suffix"]
        self.sweeps: bool = facts["sweeps"]

    def _receive(self) -> JsonObject:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            with open(self._errors, encoding="utf-8", errors="replace") as file:
                raise WorkerError(f"the worker process ended: {file.read()[-2000:]}")
        answer: JsonObject = json.loads(line)
        return answer

    def _send(self, command: str, **order: Any) -> JsonObject:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **order}) + "\n")
        self._process.stdin.flush()
        return self._receive()

    def new_board(self) -> Board:
        """Return an empty board; the eighth before it is reused."""
        self._boards = (self._boards + 1) % _BOARDS
        return Board(os.path.join(self._work, f"board{self._boards}"), is_new=True)

    # ---- writers

    def start(self, directory: str, actions: Sequence[Action], **options: Any) -> tuple[Board, int]:
        """Start a writer, and return its board and process id; `options` are those of WriterOrder."""
        board = self.new_board()
        order = WriterOrder(directory, list(actions), board.path, **{"keep": self.keep, **options})
        return board, self._send("write", writer=asdict(order))["pid"]

    def wait(self, pid: int, timeout: float = 20.0) -> Ending:
        """Return how a process ended; after `timeout` seconds it is killed."""
        return Ending(**self._send("wait", pid=pid, timeout=timeout))

    def write(
        self,
        directory: str,
        actions: Sequence[Action],
        *,
        trace: Trace | None = None,
        timeout: float = 20.0,
        lie: Lie | None = None,
        umask: int = 0o022,
    ) -> Outcome:
        """Let a writer do `actions`, traced if `trace` is given, and return what came of it."""
        board, pid = self.start(directory, actions, is_paused=trace is not None, lie=lie, umask=umask)
        tracer = self._attach(board, pid, trace) if trace is not None else None
        ending = self.wait(pid, timeout)
        if tracer is not None:
            _reap(tracer)
        return Outcome(board, ending)

    def _attach(self, board: Board, pid: int, trace: Trace) -> subprocess.Popen[bytes]:
        with open(self.log, "wb"):
            pass
        _wait_until(lambda: board.is_waiting)
        tracer = subprocess.Popen(trace.command(pid, self.log), stderr=subprocess.DEVNULL)
        _wait_until(lambda: _is_traced(pid) or tracer.poll() is not None)
        if tracer.poll() is not None:
            os.kill(pid, signal.SIGKILL)
            raise WorkerError(f"strace could not attach to its process: {' '.join(tracer.args)}")  # type: ignore[arg-type]
        os.kill(pid, signal.SIGUSR1)
        return tracer

    # ---- checkers and probes

    def check(
        self, items: Sequence[CheckItem], *, timeout: float = 8.0, memory_gb: float | None = None
    ) -> list[Finding]:
        """Return what fresh processes find in directories, each within `timeout` seconds."""
        plain = [asdict(item) for item in items]
        self._send("check", items=plain, report=self._report, timeout=timeout, memory_gb=memory_gb)
        return [Finding.from_json(finding) for finding in self._read_report()]

    def probe(self, name: str, directory: str, *, timeout: float = 30.0, **order: Any) -> tuple[Ending, JsonObject]:
        """Run a probe in a process of its own; return how that ended, and what the probe said (nothing if it died)."""
        with open(self._report, "w", encoding="ascii"):
            pass
        order = {"directory": directory, "keep": self.keep, **order}
        ending = Ending(**self._send("probe", probe=name, report=self._report, timeout=timeout, **order))
        said = self._read_report()
        return ending, said[0] if said else {}

    def _read_report(self) -> list[JsonObject]:
        with open(self._report, encoding="ascii") as file:
            return [json.loads(line) for line in file]

    def close(self) -> None:
        """End the worker process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def why_no_strace() -> str | None:
    """Return what keeps faults from being injected, and what to do about it; None when nothing does."""
    try:
        said = subprocess.run(["strace", "--version"], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "strace is not installed: system-call faults cannot be tried. Get it with: apt-get install strace"
    found = re.search(r"version (\d+)\.(\d+)", said)
    if found and (int(found[1]), int(found[2])) < _LEAST_STRACE:
        return f"strace {found[1]}.{found[2]} is too old: system-call faults need 5.3. Get a newer one"
    return None


def with_inject(trace: Trace, fault: str) -> Trace:
    """Return `trace` with a fault to inject."""
    return replace(trace, inject=fault)


def _is_traced(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return "TracerPid:\t0\n" not in file.read()
    except OSError:
        return True


def _wait_until(is_reached: Callable[[], bool]) -> None:
    end = time.monotonic() + _ATTACH_SECS
    while not is_reached() and time.monotonic() < end:
        time.sleep(_POLL_SECS)


def _reap(tracer: subprocess.Popen[bytes]) -> None:
    try:
        tracer.wait(5)
    except subprocess.TimeoutExpired:
        tracer.kill()
        tracer.wait()
