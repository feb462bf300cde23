"""Tensors that share memory: their values may be restored if none of them is spoiled by another's."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TypeAlias

import torch

from torchsaver.errors import MismatchError
from torchsaver.formats.tensor_bytes import row_major_crc32c, span_bytes
from torchsaver.reader import CheckpointReader
from torchsaver.variables.restore_plan import RestorePlan
from torchsaver.variables.var_list import Slots

_ALIGNMENT = 16  # bytes: the largest item, complex128, so that every dtype can be viewed in a scratch copy
Member: TypeAlias = tuple[str, int]  # a slot's key, and which of its tensors


def overlapping(slots: Slots, plan: RestorePlan) -> list[list[Member]]:
    """Return groups of tensors that reach over the same bytes of memory."""
    starts, ends = [], []
    for key in plan.sources:
        for tensor in _tensors(slots, key):
            start, end = _reach(tensor)
            starts.append(start)
            ends.append(end)
    starts.sort()
    ends.sort()
    if all(map(operator.le, ends, starts[1:])):  # each begins where those before have ended, whatever the device
        return []
    by_place = sorted(
        ("" if tensor.is_cpu else str(tensor.device), *_reach(tensor), key, number)
        for key in plan.sources
        for number, tensor in enumerate(_tensors(slots, key))
        if tensor.numel()
    )
    groups: list[list[Member]] = []
    last_device, last_stop = "", 0
    for device, start, stop, key, number in by_place:
        if device != last_device or start >= last_stop:
            groups.append([])
            last_stop = 0
        groups[-1].append((key, number))
        last_device, last_stop = device, max(stop, last_stop)
    return [group for group in groups if len(group) > 1]


def require_one_value_a_place(
    slots: Slots, groups: Sequence[Sequence[Member]], plan: RestorePlan, reader: CheckpointReader
) -> None:
    """Refuse values that would overwrite each other, because their tensors share memory.

    Tensors that overlap are filled on a scratch copy of that memory first; each must come out as it is stored.

    Raises:
        MismatchError: With every tensor that would not.
    """
    spoiled = []
    for group in groups:
        targets = [_tensors(slots, key)[number] for key, number in group]
        start = min(_reach(target)[0] for target in targets) // _ALIGNMENT * _ALIGNMENT
        scratch = torch.empty(max(_reach(target)[1] for target in targets) - start, dtype=torch.uint8, device="cpu")
        views = [_same_view(target, scratch, start) for target in targets]
        wanted = []
        for (key, number), view in zip(group, views, strict=True):
            stored = reader.stored(plan.sources[key])
            if key in slots.tensors:
                stored.read_into(view)
                wanted.append(stored.checksum)
            else:
                part = slots.layouts[key].from_stored(stored.read())[number]
                view.copy_(part)
                wanted.append(row_major_crc32c(part))
        for (key, _), view, checksum in zip(group, views, wanted, strict=True):
            if checksum != row_major_crc32c(view):
                spoiled.append(
                    (key, "shares memory with another value of var_list, and the stored values differ there")
                )
    if spoiled:
        raise MismatchError(reader.save_path, targets=spoiled)


def _tensors(slots: Slots, key: str) -> tuple[torch.Tensor, ...]:
    """Return the tensors that a stored value goes into."""
    return slots.layouts[key].tensors if key in slots.layouts else (slots.tensors[key],)


def _reach(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the bytes of memory, as addresses [start, end), that a tensor reaches over."""
    start = tensor.data_ptr()
    return start, start + span_bytes(tensor)


def _same_view(tensor: torch.Tensor, scratch: torch.Tensor, start: int) -> torch.Tensor:
    """Return the view of `scratch`, which stands for the memory from `start` on, that `tensor` is of its own."""
    offset = tensor.data_ptr() - start
    memory = scratch[offset : offset + span_bytes(tensor)].view(tensor.dtype)
    view = memory.as_strided(tensor.shape, tensor.stride())
    view = view.conj() if tensor.is_conj() else view
    return view._neg_view() if tensor.is_neg() else view
