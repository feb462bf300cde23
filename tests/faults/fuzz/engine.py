"""One target under atheris: `python -m faults.fuzz.engine TARGET OUTPUT SECONDS`, run by `python -m faults.fuzz`.

An input is decisions for the target's generator, so that lengths and checksums stay right under mutation; one that
starts with a byte below RAW is a document as it stands. A finding is saved as a document and fuzzing goes on.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
import zlib
from pathlib import Path
from random import Random
from types import FrameType

import hypothesis  # noqa: F401  imported before the instrumentation: its coverage is nobody's concern
import safetensors.torch  # noqa: F401

atheris = importlib.import_module("atheris")  # it is in the extra "fuzz": type checkers do without

RAW = 32
_SEEDS = 200
LIMIT_SECS = 5  # of the process's own time
_REPORT_SECS = 2.0
_RSS_LIMIT_MB = 1000  # torch itself takes 250

with atheris.instrument_imports(include=["torchsaver"]):
    from faults.fuzz.choices import ByteChoices
    from faults.fuzz.targets import TARGETS, Target, quiet


class TooSlowError(AssertionError):
    """A document took more than LIMIT_SECS."""


class Engine:
    """Counts executions and keeps findings of one target; `report` writes both into the output directory."""

    def __init__(self, name: str, output: Path) -> None:
        self._name = name
        self._target: Target = TARGETS[name]
        self._output = output
        self._started = self._reported = time.monotonic()
        self._counts = {"executions": 0, "taken": 0, "findings": 0}

    def run_one(self, data: bytes) -> None:
        """Make a document of the input and check it."""
        raw = len(data) > 0 and data[0] < RAW and not self._target.is_json
        document = data[1:] if raw else self._target.make(ByteChoices(data))
        signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_SECS)
        try:
            self._counts["taken"] += self._target.check(document)
        except Exception as error:
            self._save(document, error)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        self._counts["executions"] += 1
        if self._counts["executions"] % 256 == 0 and time.monotonic() > self._reported + _REPORT_SECS:
            self.report()

    def _save(self, document: bytes, error: Exception) -> None:
        self._counts["findings"] += 1
        frames = traceback.extract_tb(error.__traceback__)
        place = "".join(f"{Path(frame.filename).name}:{frame.name}:{frame.lineno}" for frame in frames)
        mark = zlib.crc32((type(error).__name__ + place).encode())
        path = self._output / "findings" / f"{self._name}-{type(error).__name__}-{mark:08x}.bin"
        if not path.exists():
            path.write_bytes(document)
            path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")

    def report(self) -> None:
        """Write the counts so far; one file a process, and the sum over them all is the total."""
        self._reported = time.monotonic()
        counts = {"target": self._name, "seconds": round(self._reported - self._started, 1), **self._counts}
        path = self._output / "counts" / f"{self._name}-{os.getpid()}.json"
        path.write_text(json.dumps(counts), encoding="utf-8")


def _too_slow(signum: int, frame: FrameType | None) -> None:
    raise TooSlowError(f"it took over {LIMIT_SECS} s")


def _seed(corpus: Path) -> None:
    """Put inputs into an empty corpus that lead to more than the plainest documents."""
    if not any(corpus.iterdir()):
        for number in range(_SEEDS):
            (corpus / f"seed-{number}").write_bytes(Random(number).randbytes(400))


def main(name: str, output: Path, seconds: int) -> None:
    quiet()
    for folder in ("counts", "findings", f"corpus/{name}"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    _seed(output / "corpus" / name)
    signal.signal(signal.SIGVTALRM, _too_slow)
    engine = Engine(name, output)
    options = [f"-max_total_time={seconds}", "-max_len=768", "-timeout=60", f"-rss_limit_mb={_RSS_LIMIT_MB}"]
    artifacts = f"-artifact_prefix={output / 'findings' / name}-input-"
    atheris.Setup([sys.argv[0], *options, artifacts, str(output / "corpus" / name)], engine.run_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
