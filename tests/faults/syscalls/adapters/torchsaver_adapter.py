"""torchsaver through its public API: two ways to go on after a restart, two forms on disk, and the background."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from typing import ClassVar

import torch
from faults.syscalls.adapters.adapter import Adapter
from faults.syscalls.tensors import Tensors

import torchsaver as ts

_Key = tuple[str, tuple[str, ...]]  # the directory; names, shapes and dtypes of the tensors


def _step(prefix: str) -> int:
    return int(prefix.rsplit("-", 1)[1])


class TorchsaverAdapter(Adapter):
    """Saves with one Saver a directory; after a restart its list comes from the state file."""

    documented = ("OSError", "TorchSaverError")
    state_file = "checkpoint"
    suffix = ".safetensors"
    sweeps = True
    _max_shard_bytes: ClassVar[int | None] = None
    _background: ClassVar[bool] = False

    def __init__(self) -> None:
        self._savers: dict[_Key, tuple[ts.Saver, dict[str, torch.Tensor]]] = {}

    def preload(self) -> None:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)

    def forget(self) -> None:
        self._savers.clear()

    def save(self, directory: str, step: int, tensors: Tensors) -> None:
        key = (directory, tuple(f"{name} {value.shape} {value.dtype}" for name, value in sorted(tensors.items())))
        if key not in self._savers:
            values = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}
            saver = ts.Saver(
                values, max_to_keep=self.keep, max_shard_bytes=self._max_shard_bytes, background=self._background
            )
            self._recover(saver, directory)
            self._savers[key] = saver, values
        saver, values = self._savers[key]
        for name, value in tensors.items():
            values[name].copy_(torch.from_numpy(value.copy()))
        saver.save(f"{directory}/model.ckpt", global_step=step)

    def _recover(self, saver: ts.Saver, directory: str) -> None:
        saver.recover_last_checkpoints(self._listed(directory))

    def _listed(self, directory: str) -> list[str]:
        state = ts.get_checkpoint_state(directory)
        return state.all_model_checkpoint_paths if state else []

    def restore_latest(self, directory: str) -> tuple[int, Tensors] | None:
        prefix = ts.newest_valid_checkpoint(directory)
        return None if prefix is None else (_step(prefix), self._load(prefix))

    def steps(self, directory: str) -> list[int]:
        return [_step(prefix) for prefix in self._listed(directory)]

    def restore(self, directory: str, step: int) -> Tensors:
        return self._load(f"{directory}/model.ckpt-{step}")

    def _load(self, prefix: str) -> Tensors:
        with ts.load_checkpoint(prefix) as reader:
            return {key: reader.get_tensor(key).numpy() for key in reader.get_variable_to_shape_map()}

    def owned(self, directory: str) -> set[str]:
        return {"checkpoint", *(f"model.ckpt-{step}.safetensors" for step in self.steps(directory))}


class TorchsaverResumeAdapter(TorchsaverAdapter):
    """Goes on after a restart with `Saver.resume`, which restores and recovers the list in one."""

    def _recover(self, saver: ts.Saver, directory: str) -> None:
        saver.resume(directory)

    def restore_latest(self, directory: str) -> tuple[int, Tensors] | None:
        prefix = ts.newest_valid_checkpoint(directory)
        if prefix is None:
            return None
        with ts.load_checkpoint(prefix) as reader:
            values = {key: torch.zeros_like(reader.get_tensor(key)) for key in reader.get_variable_to_shape_map()}
        report = ts.Saver(values, max_to_keep=self.keep).resume(directory)
        if report is None:
            return None
        return _step(report.save_path), {key: value.numpy() for key, value in values.items()}


class TorchsaverShardedAdapter(TorchsaverAdapter):
    """Writes each checkpoint as two files and an index, which is what commits them."""

    _max_shard_bytes = 1000  # all tensors but the large one

    def owned(self, directory: str) -> set[str]:
        files = {"checkpoint"}
        for step in self.steps(directory):
            index = f"model.ckpt-{step}.safetensors.index.json"
            with open(f"{directory}/{index}", encoding="utf-8") as file:
                files |= {index, *json.load(file)["weight_map"].values()}
        return files


class TorchsaverBackgroundAdapter(TorchsaverAdapter):
    """Saves in the background, changes all values at once, and waits."""

    _background = True

    def save(self, directory: str, step: int, tensors: Tensors) -> None:
        super().save(directory, step, tensors)
        for saver, values in self._savers.values():
            for value in values.values():
                value.zero_()
            saver.wait()


ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "torchsaver": TorchsaverAdapter,
    "torchsaver-resume": TorchsaverResumeAdapter,
    "torchsaver-sharded": TorchsaverShardedAdapter,
    "torchsaver-background": TorchsaverBackgroundAdapter,
}
