"""Carrying out a restore plan: from an open checkpoint into the user's objects and tensors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from torchsaver.errors import CorruptCheckpointError, MismatchError
from torchsaver.formats.chunks import Chunk, Extent, cut_into_chunks
from torchsaver.formats.safetensors_header import FileLayout, TensorSpec
from torchsaver.formats.tensor_bytes import footprint, is_dense, note_new_values, row_major_crc32c, span_bytes
from torchsaver.formats.tensor_file import TensorFile
from torchsaver.reader import CheckpointReader
from torchsaver.stored_tensor import StoredTensor
from torchsaver.variables import objects
from torchsaver.variables.mapping.layouts import Layout
from torchsaver.variables.restore_plan import Checkpoint, RestorePlan, RestoreReport, plan_restore
from torchsaver.variables.state_tree import tensor_keys, unflatten
from torchsaver.variables.var_list import Slots

_HALF_DONE = "some tensors may have their new values by now, and some not; restore again"
_ALIGNMENT = 16  # bytes: the largest item, complex128, so that every dtype can be viewed in a scratch copy


class FilePart(NamedTuple):
    """What a restore reads from one file of the checkpoint, by its number, in the order of the file.

    Attributes:
        number: Which of the reader's files.
        specs: All that is read from it, also for objects, in the order of the file.
        checked: The chunks of all of them.
        filled: The chunks of what goes straight into the memory of tensors.
        dense: The slots' keys of these tensors.
    """

    number: int
    specs: list[TensorSpec]
    checked: list[Chunk]
    filled: list[Chunk]
    dense: list[str]


@dataclass(frozen=True)
class PreparedRestore:
    """A restore worked out: good again for files of the same layout, as long as tensors stay where and what they are.

    Attributes:
        basis: What it was worked out from; None is like nothing else.
        plan: Which stored value goes where.
        parts: The same by file.
        streamed: {slot key: stored key} of all that does not go straight into the memory of a tensor.
        overlapping: Groups of (slot key, which of its tensors) that share memory.
        bytes: Size of all that is read.
        layouts: Of the files.
    """

    basis: Any = None
    plan: RestorePlan = field(default_factory=RestorePlan)
    parts: list[FilePart] = field(default_factory=list)
    streamed: dict[str, str] = field(default_factory=dict)
    overlapping: list[list[tuple[str, int]]] = field(default_factory=list)
    bytes: int = 0
    layouts: list[FileLayout] = field(default_factory=list)

    def __reduce__(self) -> tuple[type[PreparedRestore], tuple[()]]:
        return PreparedRestore, ()  # a copied or pickled saver has other tensors


def restore_from(
    reader: CheckpointReader,
    slots: Slots,
    *,
    strict: bool,
    reshape: bool,
    verify: bool,
    before: PreparedRestore,
    names: Checkpoint | None = None,
) -> tuple[RestoreReport, PreparedRestore]:
    """Restore the slots from an open checkpoint: plan, check everything, and only then fill; all or nothing.

    Args:
        reader: The checkpoint.
        slots: What to restore.
        strict: Whether a missing key is an error.
        reshape: Whether another shape of the same number of elements will do.
        verify: Whether to compare checksums.
        before: What the last restore returned: it is used again if it can be.
        names: Where slots' keys are looked up, if these are not keys of the checkpoint.

    Raises:
        MismatchError, CorruptCheckpointError, OSError: As `Saver.restore`.
    """
    started = time.perf_counter()
    reader.name_optimizers(slots)  # a file of torch.save has numbers for them
    prepared = _prepared(reader, slots, before, names, strict=strict, reshape=reshape)
    plan = prepared.plan
    if verify:
        for part in prepared.parts:
            reader.files[part.number].verify(part.specs, part.checked)
    require_equal_ties(plan, reader)
    require_one_value_a_place(slots, prepared, reader)
    with objects.generators_kept(slots.objects), objects_loaded(slots, plan, reader):
        fill_tensors(slots, prepared, reader)
    report = RestoreReport(
        save_path=reader.save_path,
        restored=(*plan.sources, *plan.objects),
        aliases=dict(plan.aliases),
        missing=tuple(plan.missing),
        unused=tuple(plan.unused),
        global_step=reader.global_step,
        metadata=reader.metadata,
        metrics=reader.metrics,
        bytes=prepared.bytes,
        seconds=time.perf_counter() - started,
    )
    return report, prepared


def _prepared(
    reader: CheckpointReader,
    slots: Slots,
    before: PreparedRestore,
    names: Checkpoint | None,
    *,
    strict: bool,
    reshape: bool,
) -> PreparedRestore:
    basis = None
    is_plain = names is None and not slots.objects and not slots.layouts
    if is_plain and (places := footprint(slots.tensors.values())) is not None:
        basis = strict, reshape, list(slots.tensors), slots.aliases, places, reader.placement
    if basis is not None and before.basis == basis:
        return before
    plan = plan_restore(slots, names or reader, strict=strict, reshape=reshape, through_wrappers=names is None)
    parts, streamed = _file_parts(slots, plan, reader)
    nbytes = sum(spec.nbytes for part in parts for spec in part.specs)
    return PreparedRestore(basis, plan, parts, streamed, _overlapping(slots, plan), nbytes, reader.layouts)


def _file_parts(slots: Slots, plan: RestorePlan, reader: CheckpointReader) -> tuple[list[FilePart], dict[str, str]]:
    """Return what is read from each file, and {slot key: stored key} of what does not go straight into a tensor."""
    read: dict[TensorFile, dict[str, TensorSpec]] = {file: {} for file in reader.files}
    straight: dict[TensorFile, list[tuple[TensorSpec, str, int]]] = {file: [] for file in read}
    streamed: dict[str, str] = {}
    for stored_key in {name for tree in plan.objects.values() for name in tensor_keys(tree)}:
        for file, spec in reader.stored(stored_key).pieces:
            read[file][spec.key] = spec
    for key, stored_key in plan.sources.items():
        stored = reader.stored(stored_key)
        for file, spec in stored.pieces:
            read[file][spec.key] = spec
        tensor = slots.tensors.get(key)
        if tensor is not None and isinstance(stored, StoredTensor) and is_dense(tensor):
            straight[stored.file].append((stored.spec, key, tensor.data_ptr()))
        else:
            streamed[key] = stored_key
    parts = [_file_part(number, read[file], straight[file]) for number, file in enumerate(read)]
    return parts, streamed


def _file_part(number: int, read: dict[str, TensorSpec], straight: list[tuple[TensorSpec, str, int]]) -> FilePart:
    specs = sorted(read.values(), key=attrgetter("start"))
    straight = sorted(straight, key=lambda one: one[0].start)
    filled = cut_into_chunks(Extent(spec.start, spec.end, address) for spec, _, address in straight)
    is_all = [spec for spec, _, _ in straight] == specs
    checked = filled if is_all else cut_into_chunks(Extent(spec.start, spec.end) for spec in specs)
    return FilePart(number, specs, checked, filled, [key for _, key, _ in straight])


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


@contextlib.contextmanager
def objects_loaded(slots: Slots, plan: RestorePlan, reader: CheckpointReader) -> Iterator[None]:
    """Give the objects their stored states, for good if the `with` block ends well.

    Raises:
        MismatchError: An object refused its state; every object has its old one again.
    """
    states = {}
    for key, tree in plan.objects.items():
        devices = objects.devices(key, slots.objects[key])
        tensors = {name: reader.get_tensor(name).to(devices.get(name, "cpu")) for name in tensor_keys(tree)}
        try:
            states[key] = unflatten(tree, tensors.__getitem__)
        except ValueError as error:  # an array whose tensor has a dtype that numpy lacks
            raise CorruptCheckpointError(reader.save_path, 0, f"the state of {key!r} is {error}") from error
    try:
        with objects.loaded(slots.objects, states):
            yield
    except objects.ObjectRefusedError as refused:
        raise MismatchError(reader.save_path, targets=refused.targets) from refused.__cause__


def fill_tensors(slots: Slots, prepared: PreparedRestore, reader: CheckpointReader) -> None:
    """Read the values straight into their tensors.

    Raises:
        OSError, CorruptCheckpointError: The device failed, or the file was changed, after all was checked; the message
            says that tensors may have new values by now.
    """
    try:
        for part in prepared.parts:
            if not part.dense:
                continue
            try:
                reader.files[part.number].fill(part.filled)
            finally:
                note_new_values([slots.tensors[key] for key in part.dense])
        for key, stored_key in prepared.streamed.items():
            stored = reader.stored(stored_key)
            if key in slots.tensors:
                stored.read_into(slots.tensors[key])
            else:
                lay_out(slots.layouts[key], stored.read())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; {_HALF_DONE}", error.filename) from error
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(error.path, error.offset, f"{error.reason}; {_HALF_DONE}") from error


def lay_out(layout: Layout, value: torch.Tensor) -> None:
    """Fill the tensors of a layout with what is stored for them, in place."""
    with torch.no_grad():
        for tensor, part in zip(layout.tensors, layout.from_stored(value), strict=True):
            tensor.copy_(part)


def require_one_value_a_place(slots: Slots, prepared: PreparedRestore, reader: CheckpointReader) -> None:
    """Refuse values that would overwrite each other, because their tensors share memory.

    Tensors that overlap are filled on a scratch copy of that memory first; each must come out as it is stored.

    Raises:
        MismatchError: With every tensor that would not.
    """
    spoiled = []
    for group in prepared.overlapping:
        targets = [_tensors(slots, key)[number] for key, number in group]
        start = min(_reach(target)[0] for target in targets) // _ALIGNMENT * _ALIGNMENT
        scratch = torch.empty(max(_reach(target)[1] for target in targets) - start, dtype=torch.uint8, device="cpu")
        views = [_same_view(target, scratch, start) for target in targets]
        wanted = []
        for (key, number), view in zip(group, views, strict=True):
            stored = reader.stored(prepared.plan.sources[key])
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


def _overlapping(slots: Slots, plan: RestorePlan) -> list[list[tuple[str, int]]]:
    """Return groups of (slot key, which of its tensors) that reach over the same bytes of memory."""
    by_place = sorted(
        ("" if tensor.is_cpu else str(tensor.device), *_reach(tensor), key, number)
        for key in plan.sources
        for number, tensor in enumerate(_tensors(slots, key))
        if tensor.numel()
    )
    groups: list[list[tuple[str, int]]] = []
    last_device, last_stop = "", 0
    for device, start, stop, key, number in by_place:
        if device != last_device or start >= last_stop:
            groups.append([])
            last_stop = 0
        groups[-1].append((key, number))
        last_device, last_stop = device, max(stop, last_stop)
    return [group for group in groups if len(group) > 1]


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
