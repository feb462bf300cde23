"""What a save writes, worked out: from objects and tensors to plans of files, which the next save can use again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from torchsaver.formats.safetensors_writer import FilePlan, plan_files
from torchsaver.variables.objects import gather
from torchsaver.variables.var_list import Slots


@dataclass(frozen=True)
class PreparedSave:
    """A save worked out: good again as long as the tensors stay where and what they are; it keeps none of them.

    Attributes:
        basis: What it was worked out from; None is like nothing else.
        plans: One for each file.
        complex128: Keys of tensors of this dtype, which the files store as pairs.
    """

    basis: Any = None
    plans: list[FilePlan] = field(default_factory=list)
    complex128: frozenset[str] = frozenset()

    def __reduce__(self) -> tuple[type[PreparedSave], tuple[()]]:
        return PreparedSave, ()  # a copied or pickled saver has other tensors


def prepare_save(
    slots: Slots, max_shard_bytes: int | None, before: PreparedSave
) -> tuple[dict[str, torch.Tensor], Mapping[str, Any], PreparedSave]:
    """Return every tensor to write, the trees of objects, and how the tensors become files.

    Args:
        slots: What to save.
        max_shard_bytes: Where to cut; None: one file.
        before: What the last save returned: it is used again if it can be.

    Raises:
        VarListError: As `gather`.
    """
    _, storable = before.basis or (None, None)
    tensors, trees, places = gather(slots, storable)
    basis = None if places is None else (list(tensors), places)
    if basis is None or before.basis != basis:
        complex128 = frozenset(key for key, tensor in tensors.items() if tensor.dtype == torch.complex128)
        before = PreparedSave(basis, plan_files(tensors, max_shard_bytes), complex128)
    return tensors, trees, before
