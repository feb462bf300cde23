"""Tensors of every sort saved, read by others and restored; and modules whose tensors move, change or are replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import torchsaver as ts

MB = 1 << 20


def random(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """Return a tensor of random bits."""
    nbytes = torch.empty(shape, dtype=dtype).nbytes
    data = torch.randint(256, (nbytes,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return data.view(dtype).reshape(shape)


def mixed(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return dense, transposed, tiny, empty and large tensors: 7 MiB, half of them streamed."""
    return {
        "large": random(torch.float32, 3 * MB // 4, seed=seed),
        "transposed": random(torch.float32, 1000, 500, seed=seed).t(),
        "bf16": random(torch.bfloat16, 511, 1025, seed=seed),
        "bf16.transposed": random(torch.bfloat16, 31, 41, seed=seed).t(),
        "empty": torch.zeros(0, 5),
        "scalar": random(torch.float64, seed=seed),
        "byte": random(torch.uint8, 1, seed=seed),
        "complex": random(torch.complex64, 3, 5, seed=seed).conj(),
    } | {f"tiny.{number}": random(torch.int16, 3, seed=seed + number) for number in range(100)}


def dense(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return few dense tensors, so that their checksums are taken before anything is written."""
    return {"a": random(torch.float32, MB // 2, seed=seed), "b": random(torch.int64, 3, seed=seed)}


def many(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return dense tensors of 10 MiB, so that their checksums are taken alongside the writes."""
    tiny = {f"tiny.{number}": random(torch.int8, 7, seed=seed + number) for number in range(50)}
    return tiny | {"large": random(torch.float32, 10 * MB // 4 + 3, seed=seed)}


SORTS: dict[str, Callable[..., dict[str, torch.Tensor]]] = {"mixed": mixed, "dense": dense, "many": many}


def zeros_like(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors of the same shapes, strides and lazy bits, of zeros."""
    zeros = {}
    for key, tensor in tensors.items():
        zero = torch.zeros_like(tensor, memory_format=torch.preserve_format)
        zeros[key] = zero.conj() if tensor.is_conj() else zero
        assert zeros[key].stride() == tensor.stride()
    return zeros


def differing(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the keys whose tensors are not equal bit for bit, or that only one has."""
    keys = found.keys() | wanted.keys()
    return sorted(key for key in keys if key not in found or key not in wanted or not _same(found[key], wanted[key]))


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return False
    # A single element with a stride of 2 is contiguous by definition, and cannot be viewed as bytes.
    one, two = (
        tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).view(-1)
        for tensor in (one, two)
    )
    return torch.equal(one.view(torch.uint8), two.view(torch.uint8))


def stored(prefix: str) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds, read and verified without a saver."""
    with ts.load_checkpoint(prefix) as reader:
        return {key: reader.get_tensor(key) for key in reader.keys()}


class Held:
    """An object with a state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def require_round_trip(directory: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Save, read by safetensors itself, restore with and without checksums; all must come out bit for bit."""
    saver = ts.Saver(dict(tensors))
    prefix = saver.save(directory / "m")
    assert prefix is not None
    assert differing(load_file(f"{prefix}.safetensors"), tensors) == []
    assert differing(stored(prefix), tensors) == []
    targets = zeros_like(tensors)
    restorer = ts.Saver(targets)
    for verify in (True, False):
        restorer.restore(prefix, verify=verify)
        assert differing(targets, tensors) == []
        for target in targets.values():
            target.zero_()
    assert sorted(os.listdir(directory)) == ["checkpoint", "m.safetensors"]


def copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the values in memory of their own."""
    return {key: tensor.detach().clone() for key, tensor in tensors.items()}


class Model(nn.Module):
    """Parameters and buffers of several dtypes, one of them square, one complex and one transposed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.square = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.other = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.register_buffer("short", torch.randn(6, generator=generator).half())
        self.register_buffer("complex", torch.randn(3, generator=generator, dtype=torch.complex64))
        self.register_buffer("turned", torch.randn(3, 5, generator=generator).t())
        self.register_buffer("base", torch.randn(40, generator=generator))

    def fill(self, seed: int) -> None:
        """Give every tensor new values, in place."""
        generator = torch.Generator().manual_seed(seed)
        for tensor in self.tensors().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))

    def memory(self) -> list[torch.Tensor]:
        """Return all memory the tensors have now, as bytes, and keep it alive."""
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in self.tensors().values()}
        return [torch.empty(0, dtype=torch.uint8).set_(storage) for storage in storages.values()]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors as they are now, tied ones once."""
        named = [*self.named_parameters(), *self.named_buffers()]
        return {key: tensor.detach() for key, tensor in named}


def _assign(model: Model) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _swap(model: Model) -> None:
    model.square.data, model.other.data = model.other.data, model.square.data


def _turn(model: Model) -> None:
    with torch.no_grad():
        model.square.t_()


def _tie(model: Model) -> None:
    model.other = model.square


def _rename(model: Model) -> None:
    model.renamed = model.other  # the last of the parameters as before
    del model.other


def _detach_buffer(model: Model) -> None:
    del model.base


# What may happen to a model between two saves or restores; nothing of it is told to the saver.
CHANGES: dict[str, Callable[[Model], object]] = {
    "nothing": lambda model: None,
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "another dtype of the same memory": lambda model: setattr(model, "short", model.short.view(torch.bfloat16)),
    "data replaced": lambda model: setattr(model.square, "data", torch.randn(4, 4)),
    "data of another shape": lambda model: setattr(model.square, "data", torch.randn(3, 7)),
    "data transposed": lambda model: setattr(model.square, "data", model.square.data.t()),
    "data reshaped": lambda model: setattr(model.square, "data", model.square.data.view(2, 8)),
    "data swapped": _swap,
    "another part of one memory": lambda model: setattr(model, "base", model.base[3:]),
    "every other element": lambda model: setattr(model, "base", model.base[::2]),
    "turned in place": lambda model: model.get_buffer("turned").t_(),
    "square turned in place": _turn,
    "resized to more": lambda model: model.get_buffer("base").resize_(100_000).zero_(),
    "resized to less": lambda model: model.get_buffer("base").resize_(7),
    "set to other memory": lambda model: model.get_buffer("base").set_(torch.randn(40)),
    "conjugated": lambda model: setattr(model, "complex", model.complex.conj()),
    "negated": lambda model: setattr(model, "base", torch._neg_view(model.base)),
    "buffer replaced": lambda model: setattr(model, "base", torch.randn(40)),
    "parameter replaced": lambda model: setattr(model, "square", nn.Parameter(torch.randn(4, 4))),
    "assigned": _assign,
    "buffer added": lambda model: model.register_buffer("added", torch.randn(3)),
    "buffer removed": _detach_buffer,
    "renamed": _rename,
    "tied": _tie,
    "shared with other processes": lambda model: model.share_memory(),
    "memory given anew": lambda model: model.to_empty(device="cpu"),
}
