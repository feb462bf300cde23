"""Carrying out a restore plan: from an open checkpoint into the user's objects and tensors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from torchsaver.errors import CorruptCheckpointError, MismatchError
from torchsaver.formats.tensor_bytes import note_new_values
from torchsaver.reader import CheckpointReader
from torchsaver.restoring.preparation import PreparedRestore, prepare_restore
from torchsaver.restoring.shared_memory import require_one_value_a_place
from torchsaver.variables import objects
from torchsaver.variables.mapping.layouts import Layout
from torchsaver.variables.restore_plan import Checkpoint, RestorePlan, RestoreReport
from torchsaver.variables.state_tree import tensor_keys, unflatten
from torchsaver.variables.var_list import Slots

_HALF_DONE = "some tensors may have their new values by now, and some not; restore again"


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
    prepared = prepare_restore(reader, slots, before, names, strict=strict, reshape=reshape)
    plan = prepared.plan
    if verify:
        for part in prepared.parts:
            reader.files[part.number].verify(part.specs, part.checked)
    require_equal_ties(plan, reader)
    require_one_value_a_place(slots, prepared.overlapping, plan, reader)
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
