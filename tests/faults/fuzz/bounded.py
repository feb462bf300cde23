"""Opens hostile checkpoints in children of one process that has torch loaded, and measures each: `Bounded`.

A child starts from the same memory every time, so that its peak is what the file has cost.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from typing_extensions import Self

LIMIT_SECS = 60  # a child that takes longer hangs
_EVENTS = {
    "open",
    "os.listdir",
    "os.scandir",
    "os.remove",
    "os.rename",
    "os.link",
    "os.symlink",
    "os.mkdir",
    "os.rmdir",
}


class Bounded:
    """A process that opens checkpoints on request; a context manager."""

    def __enter__(self) -> Self:
        tests = str(Path(__file__).parent.parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.fuzz.bounded"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def open(self, action: str, directory: Path) -> dict[str, Any]:
        """Return what came of it: `outcome`, `values`, `peak_mb`, `cpu_secs` and the paths opened `outside`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([action, str(directory)]) + "\n")
        self._process.stdin.flush()
        result: dict[str, Any] = json.loads(self._process.stdout.readline())
        return result


def _open_file(directory: str) -> dict[str, Any]:
    """Read everything there is in the checkpoint `m`."""
    import torchsaver

    with torchsaver.load_checkpoint(f"{directory}/m") as reader:
        reader.verify()
        shapes = reader.get_variable_to_shape_map()
        reader.get_variable_to_dtype_map()
        some = list(shapes)[:100]
        return {key: [shapes[key], reader.get_tensor(key).flatten().tolist()] for key in some}


def _open_state(directory: str) -> dict[str, Any]:
    """Ask a directory for its newest checkpoint in every way there is."""
    import torchsaver

    state = torchsaver.get_checkpoint_state(directory)
    newest = torchsaver.latest_checkpoint(directory)
    return {"kept": 0 if state is None else len(state.all_model_checkpoint_paths), "newest": newest}


def _recover(directory: str) -> dict[str, Any]:
    import torchsaver

    return {"newest": torchsaver.newest_valid_checkpoint(directory)}


def _verify(directory: str) -> dict[str, Any]:
    import torchsaver

    return {"verdict": torchsaver.verify_checkpoint(f"{directory}/m").verdict}


def _plan(directory: str) -> dict[str, Any]:
    """Plan a transfer, which asks for every name there is."""
    import torch

    from torchsaver import transfer

    return {"missing": len(transfer.plan_transfer(f"{directory}/m", {"w": torch.zeros(2)}).missing)}


def _read_all(directory: str) -> dict[str, Any]:
    """Read a checkpoint and its object graph, and return the shapes of some of it."""
    import torchsaver

    with torchsaver.load_checkpoint(f"{directory}/m") as reader:
        reader.object_graph()
        reader.get_variable_to_shape_map()
        reader.verify()
        return {key: list(reader.get_tensor(key).shape) for key in reader.keys()[:100]}


_ACTIONS = {
    "file": _open_file,
    "state": _open_state,
    "recover": _recover,
    "verify": _verify,
    "plan": _plan,
    "read": _read_all,
}


def _measured(action: str, directory: str) -> dict[str, Any]:
    from torchsaver.errors import TorchSaverError

    opened: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and arguments and isinstance(arguments[0], (str, bytes)):
            opened.append(os.fsdecode(arguments[0]))

    before, started = _memory_kb("VmRSS"), time.process_time()
    sys.addaudithook(audit)
    outcome, values = "taken", None
    try:
        values = _ACTIONS[action](directory)
    except (TorchSaverError, OSError) as error:
        outcome = f"refused: {type(error).__name__}: {str(error)[:300]}"
    except BaseException as error:
        outcome = f"LEAKED {type(error).__name__}: {str(error)[:300]}"
    cpu_secs = time.process_time() - started
    peak_mb = (_memory_kb("VmHWM") - before) / 1024
    outside = [path for path in opened if not _is_expected(path, directory)]
    return {"outcome": outcome, "values": values, "peak_mb": peak_mb, "cpu_secs": cpu_secs, "outside": outside}


def _is_expected(path: str, directory: str) -> bool:
    """Return whether a path is in the directory, or a module that was imported late, or our own measuring."""
    inside = os.path.normpath(path).startswith((directory + "/", "/proc/self")) or os.path.normpath(path) == directory
    return inside or path.endswith((".py", ".pyc", ".so")) or os.path.dirname(path) in sys.path


def _memory_kb(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))


def _serve() -> None:
    import torch  # noqa: F401  before the first fork, so that torchsaver is there as a whole too

    import torchsaver  # noqa: F401

    gc.freeze()  # a child's collector then leaves the pages of torch's modules shared
    for line in sys.stdin:
        action, directory = json.loads(line)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            import signal

            signal.alarm(LIMIT_SECS)
            with open(write_end, "wb") as pipe:
                pipe.write(json.dumps(_measured(action, directory)).encode())
            os._exit(0)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        died: dict[str, Any] = {
            "outcome": f"DIED with status {status}",
            "values": None,
            "peak_mb": 0,
            "cpu_secs": 0,
            "outside": [],
        }
        print(answer.decode() if answer else json.dumps(died), flush=True)


if __name__ == "__main__":
    _serve()
