"""The driver's end of a worker process."""

from __future__ import annotations

import json
import os
import select
import subprocess
from types import TracebackType
from typing import Any

from benchmarks import memory
from benchmarks.errors import PeerError
from benchmarks.paths import environment_variables
from benchmarks.peers import Environment
from benchmarks.settings import Settings, find_interpreter

_SAMPLE_SECS = 0.001
_EXIT_SECS = 20.0
_LOG_TAIL_BYTES = 2000


class WorkerProcess:
    """A worker of one environment, for one workload.

    Raises:
        PeerError: There is no such interpreter, or it lacks what it needs.
    """

    def __init__(self, environment: Environment, workload: str, settings: Settings) -> None:
        interpreter = find_interpreter(environment)
        self._log = os.path.join(settings.directory, f"worker-{environment}.log")
        reply_fd, their_fd = os.pipe()
        command = [interpreter, "-m", "benchmarks.worker", environment, workload, settings.scale, str(their_fd)]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[their_fd],
                text=True,
                env=environment_variables(),
                cwd=settings.directory,
            )
        os.close(their_fd)
        self._replies = os.fdopen(reply_fd)
        try:
            self._answer()
        except PeerError:
            self.close()
            raise

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Give an order and return its answer.

        Raises:
            PeerError: It failed, or the process has gone.
        """
        self._send(order, arguments)
        return self._answer()

    def ask_and_watch(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Give an order and return its answer with "anonymous", how much such memory it took at most, sampled.

        Raises:
            PeerError: It failed, or the process has gone.
        """
        before = peak = memory.anonymous_bytes(self._process.pid)
        self._send(order, arguments)
        while not select.select([self._replies], [], [], _SAMPLE_SECS)[0]:
            peak = max(peak, memory.anonymous_bytes(self._process.pid))
        return {**self._answer(), "anonymous": peak - before}

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(_EXIT_SECS)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._replies.close()

    def _send(self, order: str, arguments: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"order": order, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise PeerError(self._last_words()) from error

    def _answer(self) -> dict[str, Any]:
        line = self._replies.readline()
        if not line:
            raise PeerError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        """Return the last line of what the process printed."""
        with open(self._log, "rb") as log:
            log.seek(max(0, os.path.getsize(self._log) - _LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"its process ended: {said}"
