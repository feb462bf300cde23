"""The worker process: imports an adapter's library once, then forks writers, checkers and probes as it is told.

Orders come as lines of JSON on standard input, answers go out the same way. A forked process costs a few milliseconds,
where a new interpreter that imports torch costs seconds; and it has the memory of a process that never saved.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

from faults.syscalls.adapters import load_adapter
from faults.syscalls.adapters.adapter import Adapter
from faults.syscalls.checker import run_checks
from faults.syscalls.orders import CheckItem, Ending, Finding, JsonObject, WriterOrder
from faults.syscalls.probes import run_probe
from faults.syscalls.writer import run_writer

_POLL_SECS = 0.003


def fork(work: Callable[[], None]) -> int:
    """Return the id of a new process, leader of its own group, that does `work` and ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # a writer waits for it
    pid = os.fork()
    if pid:
        return pid
    status = 0
    try:
        os.setsid()
        work()
    except BaseException:  # a forked process must not come back
        sys.stderr.write(traceback.format_exc())
        sys.stderr.flush()
        status = 99
    finally:
        os._exit(status)


def wait(pid: int, is_late: Callable[[], float | None]) -> Ending:
    """Return how a process ended; it is ended by force once `is_late` returns after how many seconds it is late."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _kill_group(pid)  # what it may have left behind
            if os.WIFSIGNALED(status):
                return Ending(signal=os.WTERMSIG(status))
            return Ending(status=os.WEXITSTATUS(status))
        late = is_late()
        if late is not None:
            _kill_group(pid)
            os.waitpid(pid, 0)
            return Ending(hung_secs=late)
        time.sleep(_POLL_SECS)


def after(secs: float) -> Callable[[], float | None]:
    """Return a function for `wait` that allows so many seconds."""
    end = time.monotonic() + secs
    return lambda: secs if time.monotonic() > end else None


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:  # macOS says so of a group of dead processes
        pass


def check_all(
    adapter: Adapter, items: Sequence[CheckItem], report: str, timeout: float, memory_gb: float | None
) -> None:
    """Write a finding for each of `items` into `report`; one that kills or hangs its process has that as its finding."""
    findings: list[str] = []
    while len(findings) < len(items):
        rest = items[len(findings) :]
        with open(report, "w", encoding="ascii"):
            pass
        pid = fork(partial(run_checks, adapter, rest, report, memory_gb))
        ending = wait(pid, _stalls(report, timeout))
        with open(report, encoding="ascii") as file:
            findings += [line for line in file if line.endswith("\n")]
        if len(findings) < len(items):
            lost = Finding(hung_secs=ending.hung_secs, died_of=None if ending.hung_secs else ending.signal or 0)
            findings.append(json.dumps(asdict(lost)) + "\n")
    with open(report, "w", encoding="ascii") as file:
        file.writelines(findings)


def _stalls(path: str, timeout: float) -> Callable[[], float | None]:
    """Return a function for `wait` that allows so many seconds for each growth of a file."""
    size, since = 0, time.monotonic()

    def is_late() -> float | None:
        nonlocal size, since
        now = os.path.getsize(path)
        if now != size:
            size, since = now, time.monotonic()
        return timeout if time.monotonic() - since > timeout else None

    return is_late


def answer(adapter: Adapter, order: JsonObject) -> JsonObject:
    """Do one order and return the answer to it."""
    command = order.pop("command")
    if command == "write":
        writer = WriterOrder.from_json(order["writer"])
        return {"pid": fork(partial(run_writer, adapter, writer))}
    if command == "wait":
        return asdict(wait(order["pid"], after(order["timeout"])))
    if command == "probe":
        return asdict(wait(fork(partial(run_probe, adapter, order)), after(order["timeout"])))
    if command == "check":
        items = [CheckItem(**item) for item in order["items"]]
        check_all(adapter, items, order["report"], order["timeout"], order["memory_gb"])
        return {}
    raise ValueError(f"no such command: {command}")


def main() -> None:
    """Answer orders until standard input ends."""
    adapter = load_adapter(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log
    adapter.preload()
    facts = {"keep": adapter.keep, "documented": adapter.documented, "state_file": adapter.state_file}
    facts |= {"suffix": adapter.suffix, "sweeps": adapter.sweeps}
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(adapter, json.loads(line))), file=answers)
    os._exit(0)  # nothing is left to do, and torch takes a second for that


if __name__ == "__main__":
    main()
