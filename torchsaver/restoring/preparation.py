"""A restore worked out, so that the next one can use it again: which bytes of which file go where."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torchsaver.formats.chunks import Chunk, cut_into_chunks
from torchsaver.formats.file_layout import FileLayout, TensorSpec
from torchsaver.formats.tensor_bytes import footprint, is_dense
from torchsaver.formats.tensor_file import TensorFile
from torchsaver.reader import CheckpointReader
from torchsaver.restoring.shared_memory import Member, overlapping
from torchsaver.stored_tensor import StoredTensor
from torchsaver.variables.restore_plan import Checkpoint, RestorePlan, plan_restore
from torchsaver.variables.state_tree import tensor_keys
from torchsaver.variables.var_list import Slots


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
        places: The footprint of the tensors; None is like nothing else.
        basis: What else it was worked out from.
        plan: Which stored value goes where.
        parts: The same by file.
        streamed: {slot key: stored key} of all that does not go straight into the memory of a tensor.
        overlapping: Groups of (slot key, which of its tensors) that share memory.
        bytes: Size of all that is read.
        layouts: Of the files.
    """

    places: Any = None
    basis: Any = None
    plan: RestorePlan = field(default_factory=RestorePlan)
    parts: list[FilePart] = field(default_factory=list)
    streamed: dict[str, str] = field(default_factory=dict)
    overlapping: list[list[Member]] = field(default_factory=list)
    bytes: int = 0
    layouts: list[FileLayout] = field(default_factory=list)

    def __reduce__(self) -> tuple[type[PreparedRestore], tuple[()]]:
        return PreparedRestore, ()  # a copied or pickled saver has other tensors


def prepare_restore(
    reader: CheckpointReader,
    slots: Slots,
    before: PreparedRestore,
    names: Checkpoint | None,
    *,
    strict: bool,
    reshape: bool,
) -> PreparedRestore:
    """Return how the slots are restored from an open checkpoint; arguments and errors as those of `restore_from`."""
    is_plain = names is None and not slots.objects and not slots.layouts
    places = footprint(slots.tensors.values(), before.places) if is_plain else None
    basis = strict, reshape, list(slots.tensors), slots.aliases, reader.placement
    if places is not None and places is before.places and basis == before.basis:
        return before
    plan = plan_restore(slots, names or reader, strict=strict, reshape=reshape, through_wrappers=names is None)
    parts, streamed = _file_parts(slots, plan, reader)
    nbytes = sum(spec.nbytes for part in parts for spec in part.specs)
    plan = replace(plan, values={})  # which hold the files
    return PreparedRestore(places, basis, plan, parts, streamed, overlapping(slots, plan), nbytes, reader.layouts)


def _file_parts(slots: Slots, plan: RestorePlan, reader: CheckpointReader) -> tuple[list[FilePart], dict[str, str]]:
    """Return what is read from each file, and {slot key: stored key} of what does not go straight into a tensor."""
    read: dict[TensorFile, dict[str, TensorSpec]] = {file: {} for file in reader.files}
    straight: dict[TensorFile, list[tuple[int, int, int, str]]] = {file: [] for file in read}  # an extent, and its slot
    streamed: dict[str, str] = {}
    for stored_key in {name for tree in plan.objects.values() for name in tensor_keys(tree)}:
        for file, spec in reader.stored(stored_key).pieces:
            read[file][spec.key] = spec
    for key, stored_key in plan.sources.items():
        stored = plan.values[key]
        for file, spec in stored.pieces:
            read[file][spec.key] = spec
        tensor = slots.tensors.get(key)
        if tensor is not None and isinstance(stored, StoredTensor) and is_dense(tensor):
            straight[stored.file].append((stored.spec.start, stored.spec.end, tensor.data_ptr(), key))
        else:
            streamed[key] = stored_key
    parts = [_file_part(number, read[file], straight[file]) for number, file in enumerate(read)]
    return parts, streamed


def _file_part(number: int, read: dict[str, TensorSpec], straight: list[tuple[int, int, int, str]]) -> FilePart:
    specs = sorted(read.values(), key=operator.attrgetter("start", "end"))
    straight = sorted(straight)
    filled = cut_into_chunks((start, end, address) for start, end, address, _ in straight)
    starts, ends = [one[0] for one in straight], [one[1] for one in straight]
    is_all = starts == [spec.start for spec in specs] and ends == [spec.end for spec in specs]
    checked = filled if is_all else cut_into_chunks((spec.start, spec.end, 0) for spec in specs)
    return FilePart(number, specs, checked, filled, [key for *_, key in straight])
