"""The half of the tests that has TensorFlow: a process in another environment, which answers requests."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self


class TensorFlowError(Exception):
    """What TensorFlow raised."""


class TensorFlow:
    """A process that has TensorFlow, started when it is first asked, and again if it has died. A context manager.

    Args:
        python: The interpreter of an environment with TensorFlow.
        log: File for whatever it prints.
    """

    def __init__(self, python: str, log: Path) -> None:
        self._python = python
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with open(self._log, "ab") as log:
            return subprocess.Popen(
                [self._python, "-m", "interop.tensorflow_side"],
                cwd=Path(__file__).parent.parent,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __call__(self, task: str, **arguments: Any) -> Any:
        """Return what a task of tensorflow_side comes to.

        Raises:
            TensorFlowError: It raised an error, or the process died.
        """
        if self._process is None:
            self._process = self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"task": task, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None
            raise TensorFlowError(f"{task}: the process ended with status {status}:\n{self._last_lines()}")
        answer = json.loads(line)
        if "error" in answer:
            raise TensorFlowError(f"{task}: {answer['error']}")
        return answer["value"]

    def _last_lines(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])
