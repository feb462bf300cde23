"""Carrying out a restore plan: from an open checkpoint into the user's objects and tensors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TypeAlias

import torch

from torchsaver.errors import CorruptCheckpointError, MismatchError
from torchsaver.formats.checksum import crc32c
from torchsaver.formats.tensor_bytes import row_major_bytes, span
from torchsaver.reader import CheckpointReader
from torchsaver.stored_tensor import StoredTensor
from torchsaver.variables import objects
from torchsaver.variables.restore_plan import RestorePlan, RestoreReport, plan_restore
from torchsaver.variables.state_tree import tensor_keys, unflatten
from torchsaver.variables.var_list import Slots

Filling: TypeAlias = tuple[StoredTensor, str, torch.Tensor]  # what is stored, the slot's key, and its tensor

_ALIGNMENT = 16  # bytes: the largest item, complex128, so that every dtype can be viewed in a scratch copy


def restore_from(reader: CheckpointReader, slots: Slots, *, strict: bool, reshape: bool, verify: bool) -> RestoreReport:
    """Restore the slots from an open checkpoint: plan, check everything, and only then fill; all or nothing.

    Raises:
        MismatchError, CorruptCheckpointError, OSError: As `Saver.restore`.
    """
    started = time.perf_counter()
    plan = plan_restore(slots, reader, strict=strict, reshape=reshape)
    if verify:
        reader.verify(stored_keys(plan))
    require_equal_ties(plan, reader)
    require_one_value_a_place(slots, plan, reader)
    with objects_loaded(slots, plan, reader):
        fill_tensors(slots, plan, reader)
    return RestoreReport(
        save_path=reader.save_path,
        restored=(*plan.sources, *plan.objects),
        aliases=plan.aliases,
        missing=tuple(plan.missing),
        unused=tuple(plan.unused),
        global_step=reader.global_step,
        metadata=reader.metadata,
        bytes=sum(reader.stored(key).nbytes for key in stored_keys(plan)),
        seconds=time.perf_counter() - started,
    )


def require_equal_ties(plan: RestorePlan, reader: CheckpointReader) -> None:
    """Refuse a checkpoint that holds two values for what is one tensor in the model.

    Raises:
        MismatchError: With every such tensor.
    """
    targets = []
    for key, alias, stored, other in plan.ties:
        one, two = reader.stored(stored), reader.stored(other)
        if (one.dtype, one.shape, one.checksum) != (two.dtype, two.shape, two.checksum):
            targets.append(
                (alias, f"is tied to {key!r} in var_list, and the checkpoint has another value for each; untie them")
            )
    if targets:
        raise MismatchError(reader.save_path, targets=targets)


def stored_keys(plan: RestorePlan) -> list[str]:
    """Return the keys of the stored tensors a plan reads."""
    inside = [key for tree in plan.objects.values() for key in tensor_keys(tree)]
    return list(dict.fromkeys([*plan.sources.values(), *inside]))


@contextlib.contextmanager
def objects_loaded(slots: Slots, plan: RestorePlan, reader: CheckpointReader) -> Iterator[None]:
    """Give the objects their stored states, for good if the `with` block ends well.

    Raises:
        MismatchError: An object refused its state; every object has its old one again.
    """
    states = {}
    for key, tree in plan.objects.items():
        tensors = {name: reader.get_tensor(name) for name in tensor_keys(tree)}
        states[key] = unflatten(tree, tensors.__getitem__)
    try:
        with objects.loaded(slots.objects, states):
            yield
    except objects.ObjectRefusedError as refused:
        raise MismatchError(reader.save_path, targets=[(refused.key, refused.reason)]) from refused.__cause__


def fill_tensors(slots: Slots, plan: RestorePlan, reader: CheckpointReader) -> None:
    """Read each value straight into its tensor, in the order of the file.

    Raises:
        OSError, CorruptCheckpointError: The device failed, or the file was changed, after all was checked; the message
            says how many tensors had their new values by then.
    """
    fillings = _in_file_order(slots, plan, reader)
    for done, (stored, key, target) in enumerate(fillings):
        try:
            stored.read_into(target)
        except (OSError, CorruptCheckpointError) as error:
            state = f"{done} of {len(fillings)} tensors have been restored, {key!r} perhaps in part; restore again"
            if isinstance(error, OSError):
                raise OSError(error.errno, f"{error.strerror}; {state}", error.filename) from error
            raise CorruptCheckpointError(error.path, error.offset, f"{error.reason}; {state}") from error


def require_one_value_a_place(slots: Slots, plan: RestorePlan, reader: CheckpointReader) -> None:
    """Refuse values that would overwrite each other, because their tensors share memory.

    Tensors that overlap are filled on a scratch copy of that memory first; each must come out as it is stored.

    Raises:
        MismatchError: With every tensor that would not.
    """
    spoiled = []
    for group in _overlapping(_in_file_order(slots, plan, reader)):
        start = min(_reach(target)[0] for _, _, target in group) // _ALIGNMENT * _ALIGNMENT
        scratch = torch.empty(max(_reach(target)[1] for _, _, target in group) - start, dtype=torch.uint8, device="cpu")
        views = [_same_view(target, scratch, start) for _, _, target in group]
        for (stored, _, _), view in zip(group, views, strict=True):
            stored.read_into(view)
        for (stored, key, _), view in zip(group, views, strict=True):
            if stored.checksum != _checksum(view):
                spoiled.append(
                    (key, "shares memory with another value of var_list, and the stored values differ there")
                )
    if spoiled:
        raise MismatchError(reader.save_path, targets=spoiled)


def _in_file_order(slots: Slots, plan: RestorePlan, reader: CheckpointReader) -> list[Filling]:
    fillings = [(reader.stored(stored_key), key, slots.tensors[key]) for key, stored_key in plan.sources.items()]
    return sorted(fillings, key=lambda filling: filling[0].position)


def _overlapping(fillings: list[Filling]) -> list[list[Filling]]:
    """Return groups whose tensors reach over the same bytes of memory, each in the order given."""
    by_place = sorted(
        (str(target.device), *_reach(target), number)
        for number, (_, _, target) in enumerate(fillings)
        if target.numel()
    )
    groups: list[list[int]] = []
    last_device, last_stop = "", 0
    for device, start, stop, number in by_place:
        if device == last_device and start < last_stop:
            groups[-1].append(number)
        else:
            groups.append([number])
            last_stop = 0
        last_device, last_stop = device, max(stop, last_stop)
    return [[fillings[number] for number in sorted(group)] for group in groups if len(group) > 1]


def _reach(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the bytes of memory, as addresses [start, end), that a tensor reaches over."""
    return tensor.data_ptr(), tensor.data_ptr() + span(tensor) * tensor.element_size()


def _same_view(tensor: torch.Tensor, scratch: torch.Tensor, start: int) -> torch.Tensor:
    """Return the view of `scratch`, which stands for the memory from `start` on, that `tensor` is of its own."""
    offset = tensor.data_ptr() - start
    memory = scratch[offset : offset + span(tensor) * tensor.element_size()].view(tensor.dtype)
    view = memory.as_strided(tensor.shape, tensor.stride())
    view = view.conj() if tensor.is_conj() else view
    return view._neg_view() if tensor.is_neg() else view


def _checksum(tensor: torch.Tensor) -> int:
    checksum = 0
    for piece in row_major_bytes(tensor):
        checksum = crc32c(piece, checksum)
    return checksum
