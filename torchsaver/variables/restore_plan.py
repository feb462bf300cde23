"""What a restore will do: the checkpoint's tensors matched with the slots, or one error with all that does not fit.

Touches nothing and reads nothing: the checkpoint comes as a lookup, and the plan is carried out elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from torchsaver.errors import CorruptCheckpointError, MismatchError, SkippedCheckpoint, nearest_by_label
from torchsaver.formats.tensor_bytes import dtype_text, why_not_writable
from torchsaver.variables.mapping.layouts import Layout
from torchsaver.variables.optimizers.named_optimizer import NamedOptimizer
from torchsaver.variables.state_tree import NO_VALUES, tensor_keys, unflatten, without_parameters
from torchsaver.variables.var_list import Slots, Stateful
from torchsaver.variables.wrappers import match_plain


class Stored(Protocol):
    """What the plan needs to know of a stored tensor."""

    @property
    def dtype(self) -> Any:
        """Its dtype in torch; another thing where torch has none."""

    @property
    def dtype_name(self) -> str:
        """What to call the dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in torch."""


class Checkpoint(Protocol):
    """What the plan needs to know of a checkpoint."""

    save_path: str

    def keys(self) -> list[str]:
        """The stored keys."""

    def find(self, key: str) -> tuple[str, Stored] | None:
        """The key a tensor is stored under and the tensor, None when there is none of that name."""

    @property
    def object_trees(self) -> Mapping[str, Any]:
        """The JSON trees of stored objects."""


@dataclass
class RestorePlan:
    """Which stored value goes where.

    Attributes:
        sources: {slot key: the key its value is stored under}.
        values: {slot key: that value}; good while the checkpoint is open.
        aliases: {another name of a tied tensor: the slot key it is restored with}.
        ties: (slot key, alias, stored key, stored key): tied in the model, stored twice; the values must be the same.
        objects: {slot key: the JSON tree of its state}; of an optimizer's only what is of its parameters.
        object_keys: {slot key: the key its tree is stored under}.
        missing: Slot keys the checkpoint does not have (strict=False).
        unused: Stored keys nobody asked for.
    """

    sources: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    ties: list[tuple[str, str, str, str]] = field(default_factory=list)
    objects: dict[str, Any] = field(default_factory=dict)
    object_keys: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RestoreReport:
    """What a restore did.

    Attributes:
        save_path: The checkpoint, as given.
        restored: Keys whose values were restored, tensors and objects.
        aliases: {another name of a tied tensor: the key it was restored with}.
        missing: Keys the checkpoint does not have, skipped because strict=False.
        unused: Keys of the checkpoint that nobody asked for.
        global_step: The step it was saved with, or None.
        metadata: The JSON value it was saved with, or None.
        metrics: The numbers it was saved with, by name.
        bytes: Size of the restored tensors as stored.
        seconds: How long it took.
        skipped: By `resume`: the checkpoints that were not taken, and why.
        reason: By `resume`: why it is this checkpoint.
    """

    save_path: str = ""
    restored: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    global_step: int | None = None
    metadata: Any = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    skipped: tuple[SkippedCheckpoint, ...] = ()
    reason: str = ""

    def __repr__(self) -> str:
        step = "" if self.global_step is None else f", step {self.global_step}"
        size = f"{_size_text(self.bytes)} in {self.seconds:.3g} s"
        parts = [f"{len(self.restored)} restored from {self.save_path!r}{step} ({size})"]
        for what, keys in (("tied", self.aliases), ("missing", self.missing), ("unused", self.unused)):
            if keys:
                parts.append(f"{len(keys)} {what}: {_some(keys)}")
        if self.reason:
            parts.append(self.reason)
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped: {_some(skip.save_path for skip in self.skipped)}")
        return f"<RestoreReport: {'; '.join(parts)}>"


def plan_restore(
    slots: Slots, checkpoint: Checkpoint, *, strict: bool, reshape: bool, through_wrappers: bool = True
) -> RestorePlan:
    """Return the plan that fills `slots` from `checkpoint`.

    Args:
        slots: Live tensors and objects.
        checkpoint: What is stored.
        strict: Whether a missing key is an error.
        reshape: Whether another shape of the same number of elements will do.
        through_wrappers: Whether a key that is missing may stand in the checkpoint with or without `module.` and the
            like, if a single stored key can be meant, and no other slot wants it.

    Raises:
        MismatchError: Keys missing, shapes or dtypes that differ, tensors that cannot be written: all of them.
        CorruptCheckpointError: The stored state of an object is no state.
    """
    plan = RestorePlan()
    shapes: list[tuple[str, list[int], list[int]]] = []
    dtypes: list[tuple[str, str, str]] = []
    targets: list[tuple[str, str]] = []
    hits = {name: checkpoint.find(name) for name in (*slots.tensors, *slots.layouts, *slots.aliases)}
    if through_wrappers:
        hits.update((name, checkpoint.find(stored)) for name, stored in _renamed(slots, hits, checkpoint).items())
    _match_aliases(plan, slots, hits)
    for key, tensor in slots.tensors.items():
        if (hit := hits[key]) is None:
            plan.missing.append(key)
            continue
        plan.sources[key], stored = hit
        plan.values[key] = stored
        if (reason := why_not_writable(tensor)) is not None:
            targets.append((key, reason))
        elif stored.dtype != tensor.dtype:
            dtypes.append((key, stored.dtype_name, dtype_text(tensor.dtype)))
        elif not _fits(stored.shape, tensor.shape, reshape):
            shapes.append((key, list(stored.shape), list(tensor.shape)))
    for key, layout in slots.layouts.items():
        if (hit := hits[key]) is None:
            plan.missing.append(key)
            continue
        plan.sources[key], stored = hit
        plan.values[key] = stored
        if (reason := _why_not_laid_out(layout, stored)) is not None:
            targets.append((key, reason))
        elif stored.dtype != layout.dtype:
            dtypes.append((key, stored.dtype_name, dtype_text(layout.dtype)))
    plan.aliases = {alias: key for alias, key in slots.aliases.items() if key in plan.sources}
    _plan_objects(plan, slots, checkpoint, through_wrappers)
    missing = plan.missing if strict else []
    if missing or shapes or dtypes or targets:
        nearest = nearest_by_label({key: key for key in missing}, checkpoint.keys())
        raise MismatchError(
            checkpoint.save_path, missing=missing, shapes=shapes, dtypes=dtypes, targets=targets, nearest=nearest
        )
    plan.unused = _unused(plan, checkpoint)
    return plan


def _renamed(slots: Slots, hits: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, str]:
    """Return {name: stored key} of slots that are stored under a name with other wrappers only."""
    slot_of = slots.aliases.get
    there = {slot_of(name, name) for name, hit in hits.items() if hit is not None}
    absent = [name for name in hits if slot_of(name, name) not in there]
    return match_plain(absent, (key for key in checkpoint.keys() if key not in hits)) if absent else {}


def _match_aliases(plan: RestorePlan, slots: Slots, hits: dict[str, tuple[str, Stored] | None]) -> None:
    """Have a tied slot that is stored under another of its names only found there, and note what is stored twice."""
    for alias, key in slots.aliases.items():
        other, own = hits[alias], hits[key]
        if own is None:
            hits[key] = other
        elif other is not None and other[0] != own[0]:
            plan.ties.append((key, alias, own[0], other[0]))


def _fits(stored: tuple[int, ...], wanted: torch.Size, reshape: bool) -> bool:
    return stored == wanted or (reshape and math.prod(stored) == math.prod(wanted))


def _why_not_laid_out(layout: Layout, stored: Stored) -> str | None:
    """Return why a stored value cannot be laid out into its tensors; None when it can, its dtype aside."""
    for tensor in layout.tensors:
        if (reason := why_not_writable(tensor)) is not None:
            return reason
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            return "is an inference tensor; restore inside torch.inference_mode()"
    try:
        layout.from_stored(torch.empty(stored.shape, dtype=layout.dtype, device="meta"))
    except ValueError as error:
        return str(error)
    return None


def _plan_objects(plan: RestorePlan, slots: Slots, checkpoint: Checkpoint, through_wrappers: bool) -> None:
    trees = checkpoint.object_trees
    absent = [key for key in slots.objects if key not in trees] if through_wrappers else []
    renamed = match_plain(absent, (key for key in trees if key not in slots.objects)) if absent else {}
    for key, value in slots.objects.items():
        stored_key = renamed.get(key, key)
        if stored_key not in trees:
            plan.missing.append(key)
            continue
        plan.object_keys[key] = stored_key
        try:
            names = tensor_keys(trees[stored_key])
            plan.objects[key], unknown = _for_object(value, trees[stored_key])
        except ValueError as error:
            raise CorruptCheckpointError(checkpoint.save_path, 0, f"the state of {key!r} is {error}") from error
        plan.missing += [f"{key}.{name}" for name in unknown]
        if lost := [name for name in names if checkpoint.find(name) is None]:
            raise CorruptCheckpointError(checkpoint.save_path, 0, f"{lost[0]!r} of the state of {key!r} is missing")


def _for_object(value: Stateful, tree: Any) -> tuple[Any, list[str]]:
    """Return the part of a stored tree that an object takes, and which parameters of an optimizer it has nothing of."""
    if not isinstance(value, NamedOptimizer):
        return tree, []
    unknown, unwanted = value.compare(unflatten(tree, lambda _: NO_VALUES))
    return without_parameters(tree, unwanted), unknown


def _unused(plan: RestorePlan, checkpoint: Checkpoint) -> list[str]:
    used = set(plan.sources.values()) | {stored for _, _, _, stored in plan.ties}
    for tree in plan.objects.values():
        used.update(tensor_keys(tree))
    others = checkpoint.object_trees.keys() - plan.object_keys.values()
    return sorted([key for key in checkpoint.keys() if key not in used] + list(others))


def _some(keys: Iterable[str], most: int = 5) -> str:
    names = list(keys)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _size_text(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} bytes"
