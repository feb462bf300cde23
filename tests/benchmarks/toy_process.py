"""A fresh process that saves and restores two variables: `python -m benchmarks.toy_process PEER PATH REPEATS`.

It prints a line of JSON: seconds by name. Nothing of this package is imported, so that the peer's own imports are what
is timed.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

Action = Callable[[], object]

MEMORY = "/dev/shm"


class Toy(NamedTuple):
    """What a peer does with two variables.

    Attributes:
        save: Saves them to the path.
        restore: Restores them from there.
        is_durable: Nothing is left to be synced after a save.
        wants_empty_path: What is at the path has to be removed before the next save.
        save_file: Saves them without anything that makes a save the newest of its directory; None: `save` is that.
        save_bytes: Writes what such a file holds, without anything that makes it durable; None: `save` is that.
    """

    save: Action
    restore: Action
    is_durable: bool = False
    wants_empty_path: bool = False
    save_file: Action | None = None
    save_bytes: Action | None = None


def torchsaver(path: str, imported: Action) -> Toy:
    import torch

    imported()
    import torchsaver as ts

    imported()
    tensors = _two_tensors(torch)
    saver = ts.Saver(tensors, max_to_keep=1)
    prefix = os.path.join(path, "x")
    return Toy(
        lambda: saver.save(prefix),
        lambda: saver.restore(prefix),
        is_durable=True,
        save_file=lambda: saver.save(prefix + "-alone", write_state=False),
        save_bytes=_our_bytes(tensors, prefix + "-bytes", {"torch": torch.__version__, "torchsaver": ts.__version__}),
    )


def _our_bytes(tensors: dict[str, Any], path: str, versions: dict[str, str]) -> Action:
    from torchsaver.formats.manifest import Manifest
    from torchsaver.formats.safetensors_writer import FilePlan
    from torchsaver.formats.tensor_bytes import footprint

    plan, places = FilePlan(tensors), footprint(tensors.values())

    def save() -> None:
        assert footprint(tensors.values(), places) is places
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        plan.write(_PlainFile(fd), tensors, Manifest(time=time.time(), versions=versions))
        os.close(fd)

    return save


class _PlainFile:
    """A sink without any more to it: no temporary name, no lock, nothing synced or renamed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def reserve(self, nbytes: int) -> None:
        pass

    def write(self, position: int, pieces: Any) -> None:
        os.pwritev(self._fd, pieces, position)


def torch_save(path: str, imported: Action) -> Toy:
    import torch

    imported()
    imported()
    tensors = _two_tensors(torch)
    return Toy(lambda: torch.save(tensors, path), lambda: _copy(tensors, torch.load(path, weights_only=True)))


def safetensors(path: str, imported: Action) -> Toy:
    import torch

    imported()
    from safetensors.torch import load_file, save_file

    imported()
    tensors = _two_tensors(torch)
    return Toy(lambda: save_file(tensors, path), lambda: _copy(tensors, load_file(path)))


def dcp(path: str, imported: Action) -> Toy:
    import logging
    import warnings

    import torch

    imported()
    import torch.distributed.checkpoint

    imported()
    checkpoints: Any = torch.distributed.checkpoint
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    tensors: dict[str, Any] = _two_tensors(torch)

    def save() -> None:
        checkpoints.save(dict(tensors), storage_writer=checkpoints.FileSystemWriter(path), no_dist=True)

    def restore() -> None:
        checkpoints.load(dict(tensors), storage_reader=checkpoints.FileSystemReader(path), no_dist=True)

    return Toy(save, restore, wants_empty_path=True)


def tf_saver(path: str, imported: Action) -> Toy:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow.compat.v1 as tf  # type: ignore[import-untyped]

    imported()
    tf.disable_eager_execution()
    tf.logging.set_verbosity(tf.logging.ERROR)
    tf.reset_default_graph()  # it is made a second time, for the file system in memory
    tf.get_variable("v1", [3], initializer=tf.zeros_initializer)
    tf.get_variable("v2", [2], initializer=tf.zeros_initializer)
    saver, session = tf.train.Saver(), tf.Session()
    session.run(tf.global_variables_initializer())
    os.makedirs(path, exist_ok=True)
    prefix = os.path.join(path, "x")
    return Toy(lambda: saver.save(session, prefix), lambda: saver.restore(session, prefix))


def orbax(path: str, imported: Action) -> Toy:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import logging

    import jax.numpy as jnp  # type: ignore[import-not-found]
    import orbax.checkpoint as ocp  # type: ignore[import-not-found]

    imported()
    logging.disable(logging.WARNING)
    arrays = {"v1": jnp.array([1.0, 2.0, 3.0]), "v2": jnp.array([-1.0, -2.0])}
    checkpointer = ocp.PyTreeCheckpointer()
    return Toy(
        lambda: checkpointer.save(path, arrays), lambda: checkpointer.restore(path, item=arrays), wants_empty_path=True
    )


TOYS: dict[str, Callable[[str, Action], Toy]] = {
    "torchsaver": torchsaver,
    "torch.save": torch_save,
    "safetensors": safetensors,
    "DCP": dcp,
    "TF Saver": tf_saver,
    "Orbax": orbax,
}


def run(peer: str, path: str, repeats: int) -> dict[str, float]:
    """Return the times of one peer: of the imports, of the first calls, and medians of repeated ones."""
    start = time.perf_counter()
    imported: list[float] = []  # after torch, where the peer has it, and after all
    toy = TOYS[peer](path, lambda: imported.append(time.perf_counter() - start))
    seconds = {"torch_import": imported[0] if len(imported) > 1 else 0.0, "imports": imported[-1]}
    seconds |= {"first_save": _seconds(toy.save), "first_restore": _seconds(toy.restore)}
    gc.disable()
    saves, restores = [], []
    for _ in range(repeats):
        saves.append(_save(toy, path))
        restores.append(_seconds(toy.restore))
    seconds["repeat_save"], seconds["repeat_restore"] = _median(saves), _median(restores)
    durable = [_save(toy, path) + (0 if toy.is_durable else _seconds(lambda: _fsync_all(path))) for _ in range(repeats)]
    seconds["durable_save"] = _median(durable)
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as memory:
        return seconds | _in_memory(
            TOYS[peer](os.path.join(memory, "x"), lambda: None), os.path.join(memory, "x"), repeats
        )


def _in_memory(toy: Toy, path: str, repeats: int) -> dict[str, float]:
    """Return what saving and restoring cost beside the disk's own part: a rename on a real one would flush the file."""
    file = toy._replace(save=toy.save_file or toy.save)
    content = toy._replace(save=toy.save_bytes or toy.save)
    seconds: dict[str, list[float]] = {
        name: [] for name in ("memory_save", "memory_restore", "memory_file", "memory_bytes")
    }
    for _ in range(repeats):
        seconds["memory_save"].append(_save(toy, path))
        seconds["memory_restore"].append(_seconds(toy.restore))
        seconds["memory_file"].append(_save(file, path))
        seconds["memory_bytes"].append(_save(content, path))
    return {name: _median(values) for name, values in seconds.items()}


def _two_tensors(torch: Any) -> dict[str, Any]:
    return {"v1": torch.tensor([1.0, 2.0, 3.0]), "v2": torch.tensor([-1.0, -2.0])}


def _copy(tensors: dict[str, Any], loaded: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(loaded[name])


def _save(toy: Toy, path: str) -> float:
    if toy.wants_empty_path:
        shutil.rmtree(path, ignore_errors=True)
    return _seconds(toy.save)


def _seconds(action: Action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _fsync_all(path: str) -> None:
    """Fsync the files at or below a path, and their directories."""
    directories = [os.path.dirname(path)]
    files = [path] if os.path.isfile(path) else []
    for directory, _, names in os.walk(path):
        directories.append(directory)
        files += [os.path.join(directory, name) for name in names]
    for each in files + directories:
        fd = os.open(each, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


if __name__ == "__main__":
    answer = run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    import json

    print(json.dumps(answer))
