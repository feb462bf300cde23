"""class Saver: saving and restoring as procedures, each step of which lives in a module of its own."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, SupportsIndex

import torch

from torchsaver import arguments
from torchsaver.arguments import Settings, numbers_by_name
from torchsaver.formats.json_text import require_json
from torchsaver.reader import CheckpointReader
from torchsaver.recovery import find_newest_valid, records_kept
from torchsaver.restoring.preparation import PreparedRestore
from torchsaver.restoring.restore import restore_from
from torchsaver.retention.window import Decision, Policy
from torchsaver.rotation import Rotation
from torchsaver.saving.writer import Request, SavedCheckpoint, Writer
from torchsaver.storage import locks, paths
from torchsaver.storage.checkpoint_files import get_checkpoint_mtimes
from torchsaver.variables.chosen import ChosenVariables
from torchsaver.variables.restore_plan import RestoreReport
from torchsaver.variables.var_list import Slots


class Saver:
    """Saves variables to checkpoints and restores them; a port of tf.train.Saver.

    What may be saved:
        - `{"variable_1": v1, ...}`: at save the key a value goes under, at restore the key it comes from. Renaming and
          swapping are just another dict.
        - `[v1, v2]` of `Variable`s, or of tensors of a tracked or `names_from=` module: under their names.
        - `[("w", p), ...]`, `model.named_parameters()`: under the names given.
        - `{"dense/kernel": transfer.dense(fc.weight)}`: a Layout, for what the checkpoint holds transposed, joined, ...
        - a Module: its `state_dict()` keys, tied tensors once.
        - `{"model": model, "optimizer": opt}`: the dict's key, a dot, the object's own keys; those of an optimizer
          are the names of its parameters.
        - nothing: every live variable and module of the current `Collection`.

    A module's values are looked up at each save and restore, so a moved or converted module is saved as it is then, and
    so are tensors that are found in `names_from` or a tracked module. Any other tensor is itself, also when a module it
    came from has another one by now: give the module. A Saver is used by one thread at a time; it keeps what it was
    given alive, and opens no file between calls.

    Unlike TF, there is no session and no graph; generators, plain tensors, modules and objects may be saved; restoring
    is all or nothing; paths in the state file are relative; a checkpoint is one however its path is spelled.

    Args:
        var_list: What to save, as above.
        reshape: Restore stored values into another shape of the same number of elements.
        max_to_keep: How many recent checkpoints stay; 0 or None: all of them, and none is remembered. Unlike TF, a
            negative number is refused.
        keep_checkpoint_every_n_hours: One checkpoint for each such period stays for ever. As in TF, 0 keeps every file.
            Unlike TF, None switches it off, and the number is not rounded to a float32.
        allow_empty: With nothing to save, do nothing instead of raising.
        defer_build: Take the variables of the collection at `build()`, not now.
        pad_step_number: Write steps with eight digits at least.
        save_relative_paths: Write paths into the state file relative to it, so that the directory can be moved.
        names_from: A module in which the tensors of a list are looked up for their names.
        max_shard_bytes: Write larger checkpoints as several files with an index, in the Hugging Face layout.
        keep: Instead of the two TF arguments, policies: a checkpoint stays while one of them keeps it, and the newest
            always does: `[Latest(3), Best("val_loss", 2, mode="min"), EveryNHours(6), EveryNSteps(10000), Pinned()]`.
        background: `save` copies the values and returns; another thread writes them. Its error is raised by the next
            `save`, by `wait` or `close`, and ends the interpreter with a non-zero status if by none of them.
        when_busy: With a save still going on, "wait" for it, or "skip" the new one.
        on_saved: Called with a SavedCheckpoint once all of a save is done, by the thread that has written it.

    Raises:
        VarListError: Values or keys that cannot be saved, all at once; VarListTypeError if a type is among them.
        TypeError, ValueError: Another argument has the wrong type or value.
    """

    def __init__(
        self,
        var_list: Any = None,
        *,
        reshape: bool = False,
        max_to_keep: int | None = 5,
        keep_checkpoint_every_n_hours: float | None = 10000.0,
        allow_empty: bool = False,
        defer_build: bool = False,
        pad_step_number: bool = False,
        save_relative_paths: bool = True,
        names_from: torch.nn.Module | None = None,
        max_shard_bytes: int | None = None,
        keep: Sequence[Policy] | None = None,
        background: bool = False,
        when_busy: Literal["wait", "skip"] = "wait",
        on_saved: Callable[[SavedCheckpoint], object] | None = None,
    ) -> None:
        self._settings = Settings.among(locals())
        self._rotation = Rotation(self._settings.rules(), relative_paths=save_relative_paths)
        self._writer = Writer(self._rotation, self._settings)
        self._prepared_restore = PreparedRestore()
        self._variables = ChosenVariables(var_list, names_from, allow_empty=allow_empty, defer=defer_build)
        if not defer_build:
            self._rotation.start(time.time())

    def build(self) -> None:
        """Take the variables to save, now; a second call does nothing. Only needed after `defer_build=True`.

        Raises:
            VarListError: As the constructor.
        """
        if not self._variables.is_built:
            self._variables.build()
            self._rotation.start(time.time())

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's keyword arguments: `Saver(other_vars, **saver.settings)` (TF: saver_def)."""
        return self._settings.as_dict()

    # ---- save

    def save(
        self,
        save_path: str | os.PathLike[str],
        global_step: SupportsIndex | torch.Tensor | None = None,
        *,
        latest_filename: str | None = None,
        write_state: bool = True,
        metadata: Any = None,
        metrics: Mapping[str, float] | None = None,
    ) -> str | None:
        """Save the variables to a checkpoint, make it the newest of its directory, and let old ones go.

        The order is the promise: the checkpoint is durable under its name before the state file names it, and only
        then are old checkpoints removed. Unlike TF, an error anywhere leaves the older ones, the state file and this
        saver's list as they were, and names that collide are refused before anything is written.

        Args:
            save_path: Prefix of the checkpoint, str, bytes or os.PathLike. Unlike TF, all missing directories are made.
                A relative one leads where it does now, also if the working directory changes during the save.
            global_step: Added to the prefix, "run/model.ckpt-1000", and stored. An integer of Python or numpy, a
                Counter, or a 0-d tensor; as in TF, a float tensor is cut to an integer.
            latest_filename: Name of the state file, "checkpoint" by default. As in TF, one saver keeps one window over
                all its state files: what leaves it is removed, whichever of them names it.
            write_state: False writes the checkpoint only: it is not listed, not counted and never removed.
            metadata: Any JSON value, stored with the checkpoint.
            metrics: Numbers by name, stored with it, by which `Best` decides: {"val_loss": 0.31}.

        Returns:
            The prefix, for `restore`; None when there is nothing to save and `allow_empty`, or, with `background`, when
            it was skipped. With `background`, the checkpoint is there after `wait`.

        Raises:
            BaseException: Of a save in the background, the error of the one before.
            RuntimeError: `build()` has not been called; or a signal handler saves in the midst of a save.
            VarListError: A tensor that cannot be stored (meta, sparse, ...), or doubled keys: all of them.
            TypeError, ValueError: An argument has the wrong type or value.
            OSError: The disk is full, the directory may not be written, a directory has the file's name, ...
        """
        started = time.perf_counter()
        slots = self._variables.now()
        prefix, step = arguments.new_prefix(save_path, global_step, latest_filename, self._settings.pad_step_number)
        request = Request(prefix, latest_filename, bool(write_state), step, metadata, numbers_by_name(metrics), started)
        require_json(metadata)
        return prefix if slots and self._writer.save(slots, request) else None

    def wait(self) -> None:
        """Wait until a save in the background is done.

        Raises:
            BaseException: What it has raised; told once.
        """
        self._writer.background.wait()

    def close(self) -> None:
        """Wait as `wait` does, and free the memory of copies; the saver may still be used.

        Raises:
            BaseException: As `wait`.
        """
        self._writer.close()

    def __getstate__(self) -> dict[str, Any]:
        self._writer.background.join()  # a copy, or a pickle, has all that a save changes
        return self.__dict__

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close(error)

    # ---- restore

    def restore(self, save_path: str | os.PathLike[str], *, strict: bool = True, verify: bool = True) -> RestoreReport:
        """Restore the variables from a checkpoint, in place: all of them, or, with an error, none.

        Everything is checked first: keys, shapes, dtypes, and the checksums of what is to be restored. Then values go
        straight from the file into the tensors, on their own devices and strides; nothing is cast or broadcast.
        Unlike TF, a mismatch leaves every variable as it was.

        Args:
            save_path: What `save` or `latest_checkpoint` returned, a third party's .safetensors or index file, a file
                of torch.save, or a prefix of TensorFlow's.
            strict: False skips keys the checkpoint does not have, and says so in the report.
            verify: False skips the checksums: then a damaged value, or an error while reading, shows when others have
                been restored already, or not at all.

        Returns:
            What was restored, what was skipped, and the checkpoint's step and metadata.

        Raises:
            RuntimeError: `build()` has not been called.
            CheckpointNotFoundError: Nothing is there.
            MismatchError: Missing keys, other shapes (see `reshape`), other dtypes: all of them.
            CorruptCheckpointError: Damaged bytes.
            UnsupportedCheckpointError: Readable, but not by this version.
            OSError: As the system gave it.
        """
        self._writer.background.join()
        slots = self._variables.now()
        if not slots:
            return RestoreReport()
        with CheckpointReader(save_path, known=self._prepared_restore.layouts) as reader:
            return self._restore(reader, slots, strict=strict, verify=verify)

    def _restore(self, reader: CheckpointReader, slots: Slots, *, strict: bool, verify: bool) -> RestoreReport:
        before = self._prepared_restore
        report, self._prepared_restore = restore_from(
            reader, slots, strict=strict, reshape=self._settings.reshape, verify=verify, before=before
        )
        return report

    def resume(
        self, checkpoint_dir: str | os.PathLike[str], *, latest_filename: str | None = None, strict: bool = True
    ) -> RestoreReport | None:
        """Restore the newest valid checkpoint of a directory and go on with its list of checkpoints.

            report = saver.resume("run")
            first_step = 0 if report is None else report.global_step + 1

        It is the checkpoint that `newest_valid_checkpoint` returns, read once to verify it and once to restore it. The
        list becomes what the state file lists up to that checkpoint, or, where the state file is damaged or lost, what
        the checkpoint itself remembers of it; at the next save, all beyond `max_to_keep` are removed.

        Args:
            checkpoint_dir: The directory.
            latest_filename: The state file's name, "checkpoint" by default.
            strict: As for `restore`.

        Returns:
            What was restored, the `reason` why it is this one, and what was `skipped` on the way; None when there has
            never been a checkpoint, and nothing has changed.

        Raises:
            NoValidCheckpointError: There have been checkpoints, and none is left that holds.
            MismatchError: The newest valid checkpoint does not fit the variables; an older one is not taken.
            UnsupportedCheckpointError, RuntimeError, OSError: As `newest_valid_checkpoint` and `restore`.
        """
        self._writer.background.join()
        slots = self._variables.now()
        directory = paths.path_text(checkpoint_dir, "checkpoint_dir")
        search = find_newest_valid(directory, latest_filename)
        if search is None or search.reader is None:
            return None
        try:
            with search.reader as reader:
                report = self._restore(reader, slots, strict=strict, verify=False)
            kept = records_kept(directory, search)
        finally:
            locks.unpin(directory)
        self._rotation.recover(kept, search.listing)
        return replace(report, skipped=tuple(search.skipped), reason=search.reason)

    # ---- the list of checkpoints

    @property
    def last_checkpoints(self) -> list[str]:
        """Prefixes that are remembered, oldest first; a new list each time, after a save in the background is done."""
        self._writer.background.join()
        return self._rotation.prefixes

    @property
    def latest_checkpoint(self) -> str | None:
        """The last of `last_checkpoints`; None without any."""
        return next(reversed(self.last_checkpoints), None)

    def plan(self) -> list[Decision]:
        """Return for each checkpoint that is remembered whether it stays or goes as things are, and why; oldest first.

        Printed, each is a line: "run/model.ckpt-500 stays: one of the last 3".
        """
        self._writer.background.join()
        return self._rotation.decisions()

    def set_last_checkpoints(self, last_checkpoints: list[str]) -> None:
        """Replace the list, oldest first. As in TF, these are never removed when they leave it; nothing is checked."""
        if not isinstance(last_checkpoints, list):
            raise TypeError(f"last_checkpoints is a list of prefixes, not {type(last_checkpoints).__name__}")
        self.set_last_checkpoints_with_time([(prefix, math.inf) for prefix in last_checkpoints])

    def set_last_checkpoints_with_time(self, last_checkpoints_with_time: Sequence[tuple[str, float]]) -> None:
        """Replace the list by (prefix, seconds since the epoch), oldest first; nothing is checked."""
        self._writer.background.join()
        pairs = [(paths.path_text(prefix, "prefix"), float(saved)) for prefix, saved in last_checkpoints_with_time]
        self._rotation.replace(pairs)

    def recover_last_checkpoints(self, checkpoint_paths: Iterable[str]) -> None:
        """Replace the list by those of these prefixes that exist, in this order, with their modification times.

        After a restart, so that old checkpoints go on being removed:
        `saver.recover_last_checkpoints(get_checkpoint_state(checkpoint_dir).all_model_checkpoint_paths)`
        """
        if isinstance(checkpoint_paths, (str, bytes)):
            raise TypeError("checkpoint_paths is a list of prefixes, not a single one")
        self._writer.background.join()  # one of them may be on its way
        found = [(path, mtime) for path in checkpoint_paths for mtime in get_checkpoint_mtimes([path])]
        self.set_last_checkpoints_with_time(found)
