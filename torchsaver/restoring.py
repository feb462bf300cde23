"""Carrying out a restore plan: from an open checkpoint into the user's objects and tensors."""

from __future__ import annotations

from torchsaver.errors import MismatchError
from torchsaver.reader import CheckpointReader
from torchsaver.variables import objects
from torchsaver.variables.restore_plan import RestorePlan
from torchsaver.variables.state_tree import tensor_keys, unflatten
from torchsaver.variables.var_list import Slots


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


def load_objects(slots: Slots, plan: RestorePlan, reader: CheckpointReader) -> None:
    """Give the objects their stored states: all of them, or none.

    Raises:
        MismatchError: An object refused its state; every object has its old one again.
    """
    states = {}
    for key, tree in plan.objects.items():
        tensors = {name: reader.get_tensor(name) for name in tensor_keys(tree)}
        states[key] = unflatten(tree, tensors.__getitem__)
    try:
        objects.load_states(slots.objects, states)
    except objects.ObjectRefusedError as refused:
        reason = f"load_state_dict() raised {type(refused.error).__name__}: {refused.error}"
        raise MismatchError(reader.save_path, targets=[(refused.key, reason)]) from refused.error


def fill_tensors(slots: Slots, plan: RestorePlan, reader: CheckpointReader) -> None:
    """Read each value straight into its tensor, in the order of the file."""
    pairs = [(reader.stored(stored_key), slots.tensors[key]) for key, stored_key in plan.sources.items()]
    for stored, target in sorted(pairs, key=lambda pair: pair[0].position):
        stored.read_into(target)
