"""Who is measured. Only this module is imported by the driver; the others need the library they are about."""

from __future__ import annotations

import importlib
from typing import Any, Literal, NamedTuple

from benchmarks.peers.peer import Peer, Values
from benchmarks.results import Role
from benchmarks.workloads import Workload

Environment = Literal["torch", "tensorflow", "orbax"]


class Entry(NamedTuple):
    """A peer: the interpreter it needs, the package that has its version, and its class."""

    environment: Environment
    role: Role
    package: str
    module: str
    class_name: str


ENTRIES: dict[str, Entry] = {
    "limit": Entry("torch", "limit", "torch", "limits", "Limit"),
    "torchsaver": Entry("torch", "ours", "torchsaver", "ours", "Torchsaver"),
    "torchsaver first": Entry("torch", "ours", "torchsaver", "ours", "TorchsaverFirst"),
    "torch.save": Entry("torch", "peer", "torch", "pytorch", "TorchSave"),
    "safetensors": Entry("torch", "peer", "safetensors", "safetensors_files", "Safetensors"),
    "DCP": Entry("torch", "peer", "torch", "pytorch", "Dcp"),
    "DCP HuggingFace": Entry("torch", "peer", "torch", "pytorch", "DcpHuggingFace"),
    "TF Saver": Entry("tensorflow", "peer", "tensorflow", "tensorflow_saver", "TensorflowSaver"),
    "Orbax": Entry("orbax", "peer", "orbax.checkpoint", "orbax_checkpointer", "OrbaxCheckpointer"),
}
_VALUES = {
    "torch": ("torch_values", "TorchValues"),
    "tensorflow": ("tensorflow_saver", "TensorflowValues"),
    "orbax": ("orbax_checkpointer", "OrbaxValues"),
}


def make_values(environment: Environment, workload: Workload) -> Values:
    """Return the values of a workload, as the libraries of an environment have them."""
    values: Values = _load(*_VALUES[environment]).make(workload)
    return values


def make_peer(name: str, values: Values) -> Peer:
    """Return the peer of this name, to save and restore these values."""
    entry = ENTRIES[name]
    peer: Peer = _load(entry.module, entry.class_name)(values)
    return peer


def _load(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"benchmarks.peers.{module}"), name)
