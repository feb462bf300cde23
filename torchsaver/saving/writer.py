"""A save: what is to be written, gathered and worked out so that the next save can use it again; and carried out."""

from __future__ import annotations

import copy
import functools
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from torchsaver.arguments import Settings
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.safetensors_writer import FilePlan, plan_files
from torchsaver.retention.window import record_of
from torchsaver.rotation import Rotation
from torchsaver.saving.background import Background
from torchsaver.saving.host_copies import HostCopies
from torchsaver.storage import paths
from torchsaver.storage.checkpoint_files import StagedCheckpoint, make_ready
from torchsaver.variables.objects import gather
from torchsaver.variables.var_list import Slots
from torchsaver.version import __version__

logger = logging.getLogger("torchsaver")


class SavedCheckpoint(NamedTuple):
    """A checkpoint that is durable under its name, listed, and after which retention has been seen to.

    Attributes:
        save_path: Its prefix.
        global_step: The step given to `save`, or None.
        metrics: The numbers given to `save`.
        bytes: Size of its tensors.
        blocked_secs: How long `save` took until it returned.
        total_secs: How long it took from that call until all was done.
    """

    save_path: str
    global_step: int | None
    metrics: Mapping[str, float]
    bytes: int
    blocked_secs: float
    total_secs: float


@dataclass(frozen=True)
class PreparedSave:
    """A save worked out: good again as long as the tensors stay where and what they are; it keeps none of them.

    Attributes:
        storable: The footprint of tensors that can be stored.
        basis: What it was worked out from; None is like nothing else.
        plans: One for each file.
        complex128: Keys of tensors of this dtype, which the files store as pairs.
    """

    storable: Any = None
    basis: Any = None
    plans: list[FilePlan] = field(default_factory=list)
    complex128: frozenset[str] = frozenset()

    def __reduce__(self) -> tuple[type[PreparedSave], tuple[()]]:
        return PreparedSave, ()  # a copied or pickled saver has other tensors


def prepare_save(
    slots: Slots, max_shard_bytes: int | None, before: PreparedSave, copies: HostCopies | None = None
) -> tuple[dict[str, torch.Tensor], Mapping[str, Any], PreparedSave]:
    """Return every tensor to write, the trees of objects, and how the tensors become files.

    Args:
        slots: What to save.
        max_shard_bytes: Where to cut; None: one file.
        before: What the last save returned: it is used again if it can be.
        copies: Where to copy all values to, so that they can be written later; None: they stay where they are.

    Raises:
        VarListError: As `gather`.
    """
    tensors, trees, places = gather(slots, before.storable)
    basis: Any = None if places is None else (list(tensors), places)
    if copies is not None:
        tensors = copies.take(tensors, places)
        basis = copies.generation
    if basis is None or before.basis != basis:
        complex128 = frozenset(key for key, tensor in tensors.items() if tensor.dtype == torch.complex128)
        return tensors, trees, PreparedSave(places, basis, plan_files(tensors, max_shard_bytes), complex128)
    return tensors, trees, before if copies is None else replace(before, storable=places)


class Request(NamedTuple):
    """What `Saver.save` was asked for.

    Attributes:
        prefix: Of the checkpoint.
        latest_filename: The state file's name; None: TF's.
        is_listed: Whether the state file is to list it.
        global_step, metadata, metrics: What goes with the tensors.
        started: When `save` was called, by `time.perf_counter`.
        place: The prefix where it is to be written, whatever the working directory is by then; "": as it is given.
    """

    prefix: str
    latest_filename: str | None
    is_listed: bool
    global_step: int | None
    metadata: Any
    metrics: Mapping[str, float]
    started: float
    place: str = ""


class Writer:
    """Writes one saver's checkpoints: at once, or in the background, copies of the values while training goes on.

    Args:
        rotation: The saver's list.
        settings: The saver's.
    """

    def __init__(self, rotation: Rotation, settings: Settings) -> None:
        self.background = Background()
        self._rotation = rotation
        self._settings = settings
        self._copies = HostCopies() if settings.background else None
        self._prepared = PreparedSave()
        self._is_copying = False

    def save(self, slots: Slots, request: Request) -> bool:
        """Write a checkpoint, or have it written; return False if a save that is going on has it skipped.

        Raises:
            BaseException: Of saves in the background, the error of the one before.
            RuntimeError: It is called by `on_saved`, or by a signal handler while values are copied.
            VarListError: As `gather`.
            OSError, RuntimeError, ValueError: As `write`.
        """
        if self._copies is None:
            self._carry_out(request, *self._gathered(slots, request))
            return True
        if self._is_copying or self.background.is_this_thread:
            raise RuntimeError(
                "save() inside of save(): in on_saved or a signal handler, set a flag, and save in the loop"
            )
        if self._settings.when_busy == "skip" and self.background.is_busy:
            return False
        self.background.wait()
        if not os.path.isabs(request.prefix):
            request = request._replace(place=os.path.join(os.getcwd(), request.prefix))
        self._is_copying = True
        try:
            self.background.wait()  # for what a signal handler has begun between the two lines above
            work = functools.partial(self._carry_out, request, *self._gathered(slots, request))
            self.background.start(functools.partial(work, time.perf_counter() - request.started))
        finally:
            self._is_copying = False
        return True

    def _gathered(
        self, slots: Slots, request: Request
    ) -> tuple[Manifest, Sequence[FilePlan], Mapping[str, torch.Tensor]]:
        """Return what is to be written, copies of it where that is done in the background."""
        now = time.time()
        tensors, trees, self._prepared = prepare_save(
            slots, self._settings.max_shard_bytes, self._prepared, self._copies
        )
        manifest = Manifest(
            global_step=request.global_step,
            time=now,
            versions={"torch": torch.__version__, "torchsaver": __version__},
            aliases=slots.aliases,
            complex128=self._prepared.complex128,
            objects=trees,
            metadata=request.metadata if self._copies is None else copy.deepcopy(request.metadata),
            metrics=request.metrics,
        )
        return manifest, self._prepared.plans, tensors

    def close(self, because: BaseException | None = None) -> None:
        """Wait for what is being written, and free the memory of copies.

        Raises:
            BaseException: What a save in the background has raised; it is only logged where another error, `because` of
                which this one is called, goes on.
        """
        self.background.join()  # an interrupt here is no error of the save's
        if self._copies is not None:
            self._copies.free()
        try:
            self.background.wait()
        except BaseException:
            if because is None:
                raise
            logger.exception("a save in the background has failed, too")

    def _carry_out(
        self,
        request: Request,
        manifest: Manifest,
        plans: Sequence[FilePlan],
        tensors: Mapping[str, torch.Tensor],
        blocked_secs: float | None = None,
    ) -> None:
        write(request, manifest, plans, tensors, self._rotation)
        if self._settings.on_saved is not None:
            secs = time.perf_counter() - request.started
            nbytes = sum(plan.layout.nbytes for plan in plans)
            blocked = secs if blocked_secs is None else blocked_secs
            saved = SavedCheckpoint(request.prefix, request.global_step, request.metrics, nbytes, blocked, secs)
            self._settings.on_saved(saved)


def write(
    request: Request,
    manifest: Manifest,
    plans: Sequence[FilePlan],
    tensors: Mapping[str, torch.Tensor],
    rotation: Rotation,
) -> None:
    """Write the checkpoint, give it its name, have the state file list it, and let old ones go: in this order.

    Raises:
        OSError, ValueError: It cannot be written; older checkpoints, the state file and the list are as they were.
        RuntimeError: It was called in the midst of another one of this thread.
    """
    place = request.place or request.prefix
    with paths.links_followed_once():
        make_ready(place, request.latest_filename)
        newest = record_of(request.prefix, paths.identity(place), manifest)
        plan = rotation.plan(newest, os.path.dirname(place), request.latest_filename) if request.is_listed else None
        manifest = replace(manifest, commit=plan.commit if plan else None)
        with StagedCheckpoint(place, plans, tensors, manifest) as staged:
            if plan:
                rotation.commit(plan, staged.publish)
            else:
                rotation.expect_unlisted(place)
                staged.publish()
