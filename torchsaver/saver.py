"""class Saver: saving and restoring as procedures, each step of which lives in a module of its own."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from torchsaver import arguments, restoring
from torchsaver.errors import VarListError
from torchsaver.formats.json_text import require_json
from torchsaver.formats.manifest import Manifest
from torchsaver.reader import CheckpointReader
from torchsaver.recovery import find_newest_valid, times_of_saving
from torchsaver.restoring import PreparedRestore
from torchsaver.rotation import Rotation
from torchsaver.saving import PreparedSave, prepare_save
from torchsaver.storage import locks, paths
from torchsaver.storage.checkpoint_files import StagedCheckpoint, get_checkpoint_mtimes, make_ready
from torchsaver.variables.objects import require_storable_objects
from torchsaver.variables.restore_plan import RestoreReport
from torchsaver.variables.var_list import Entry, Slots, read_var_list, resolve
from torchsaver.version import __version__


class Saver:
    """Saves variables to checkpoints and restores them; a port of tf.train.Saver.

    What may be saved:
        - `{"variable_1": v1, ...}`: at save the key a value goes under, at restore the key it comes from. Renaming and
          swapping are just another dict.
        - `[v1, v2]` of `Variable`s, or of tensors of a tracked or `names_from=` module: under their names.
        - `[("w", p), ...]`, `model.named_parameters()`: under the names given.
        - `{"dense/kernel": transfer.dense(fc.weight)}`: a Layout, for what the checkpoint holds transposed, joined, ...
        - a Module: its `state_dict()` keys, tied tensors once.
        - `{"model": model, "optimizer": opt}`: the dict's key, a dot, the object's own keys.
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
    ) -> None:
        if defer_build and not (var_list is None or (isinstance(var_list, (dict, list, tuple, set)) and not var_list)):
            raise ValueError("defer_build takes the variables of the collection at build(); leave var_list out")
        self._reshape = bool(reshape)
        self._allow_empty = bool(allow_empty)
        self._pad_step_number = bool(pad_step_number)
        self._names_from = names_from
        self._max_shard_bytes = arguments.whole_number(max_shard_bytes, "max_shard_bytes", least=1)
        self._rotation = Rotation(
            arguments.whole_number(max_to_keep, "max_to_keep", least=0) or 0,
            arguments.hours(keep_checkpoint_every_n_hours),
            relative_paths=bool(save_relative_paths),
        )
        self._var_list = var_list
        self._entries: list[Entry] | None = None
        self._prepared_save = PreparedSave()
        self._prepared_restore = PreparedRestore()
        if not defer_build:
            self.build()

    def build(self) -> None:
        """Take the variables to save, now; a second call does nothing. Only needed after `defer_build=True`.

        Raises:
            VarListError: As the constructor.
        """
        if self._entries is not None:
            return
        entries = read_var_list(self._var_list, self._names_from)
        slots = resolve(entries)
        require_storable_objects(slots)  # what cannot be stored shows now, not at the first save
        if not self._allow_empty:
            _require_something(slots)
        self._entries = entries
        self._var_list = None  # a generator is used up
        self._rotation.start(time.time())

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's keyword arguments: `Saver(other_vars, **saver.settings)` (TF: saver_def)."""
        every_n_hours = self._rotation.every_n_hours
        return {
            "reshape": self._reshape,
            "max_to_keep": self._rotation.max_to_keep,
            "keep_checkpoint_every_n_hours": None if math.isinf(every_n_hours) else every_n_hours,
            "allow_empty": self._allow_empty,
            "pad_step_number": self._pad_step_number,
            "save_relative_paths": self._rotation.relative_paths,
            "names_from": self._names_from,
            "max_shard_bytes": self._max_shard_bytes,
        }

    # ---- save

    def save(
        self,
        save_path: str | os.PathLike[str],
        global_step: int | torch.Tensor | None = None,
        *,
        latest_filename: str | None = None,
        write_state: bool = True,
        metadata: Any = None,
    ) -> str | None:
        """Save the variables to a checkpoint, make it the newest of its directory, and let old ones go.

        The order is the promise: the checkpoint is durable under its name before the state file names it, and only
        then are old checkpoints removed. Unlike TF, an error anywhere leaves the older ones, the state file and this
        saver's list as they were, and names that collide are refused before anything is written.

        Args:
            save_path: Prefix of the checkpoint, str, bytes or os.PathLike. Unlike TF, all missing directories are made.
            global_step: Added to the prefix, "run/model.ckpt-1000", and stored. An integer of Python or numpy, or a
                0-d tensor; as in TF, a float tensor is cut to an integer.
            latest_filename: Name of the state file, "checkpoint" by default. As in TF, one saver keeps one window over
                all its state files: what leaves it is removed, whichever of them names it.
            write_state: False writes the checkpoint only: it is not listed, not counted and never removed.
            metadata: Any JSON value, stored with the checkpoint.

        Returns:
            The prefix, for `restore`; None when there is nothing to save and `allow_empty`.

        Raises:
            RuntimeError: `build()` has not been called; or a signal handler saves in the midst of a save.
            VarListError: A tensor that cannot be stored (meta, sparse, ...), or doubled keys: all of them.
            TypeError, ValueError: An argument has the wrong type or value.
            OSError: The disk is full, the directory may not be written, a directory has the file's name, ...
        """
        slots = resolve(self._built_entries())
        prefix, step = arguments.new_prefix(save_path, global_step, latest_filename, self._pad_step_number)
        require_json(metadata)
        if not slots and self._allow_empty:
            return None
        _require_something(slots)
        tensors, trees, self._prepared_save = prepare_save(slots, self._max_shard_bytes, self._prepared_save)
        now = time.time()
        with paths.links_followed_once():
            make_ready(prefix, latest_filename)
            plan = self._rotation.plan(prefix, now, latest_filename) if write_state else None
            manifest = Manifest(
                global_step=step,
                time=now,
                versions={"torch": torch.__version__, "torchsaver": __version__},
                aliases=slots.aliases,
                complex128=self._prepared_save.complex128,
                objects=trees,
                metadata=metadata,
                commit=plan.commit if plan else None,
            )
            with StagedCheckpoint(prefix, self._prepared_save.plans, tensors, manifest) as staged:
                if plan:
                    self._rotation.commit(plan, staged.publish)
                else:
                    self._rotation.expect_unlisted(prefix)
                    staged.publish()
        return prefix

    # ---- restore

    def restore(self, save_path: str | os.PathLike[str], *, strict: bool = True, verify: bool = True) -> RestoreReport:
        """Restore the variables from a checkpoint, in place: all of them, or, with an error, none.

        Everything is checked first: keys, shapes, dtypes, and the checksums of what is to be restored. Then values go
        straight from the file into the tensors, on their own devices and strides; nothing is cast or broadcast.
        Unlike TF, a mismatch leaves every variable as it was.

        Args:
            save_path: What `save` or `latest_checkpoint` returned, a third party's .safetensors or index file, or a
                prefix of TensorFlow's.
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
        slots = resolve(self._built_entries())
        if not slots and self._allow_empty:
            return RestoreReport()
        with CheckpointReader(save_path, known=self._prepared_restore.layouts) as reader:
            return self._restore(reader, slots, strict=strict, verify=verify)

    def _restore(self, reader: CheckpointReader, slots: Slots, *, strict: bool, verify: bool) -> RestoreReport:
        before = self._prepared_restore
        report, self._prepared_restore = restoring.restore_from(
            reader, slots, strict=strict, reshape=self._reshape, verify=verify, before=before
        )
        return report

    def resume(
        self, checkpoint_dir: str | os.PathLike[str], *, latest_filename: str | None = None
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

        Returns:
            What was restored, with what was `skipped` on the way; None when there has never been a checkpoint, and
            nothing has changed.

        Raises:
            NoValidCheckpointError: There have been checkpoints, and none is left that holds.
            MismatchError: The newest valid checkpoint does not fit the variables; an older one is not taken.
            UnsupportedCheckpointError, RuntimeError, OSError: As `newest_valid_checkpoint` and `restore`.
        """
        slots = resolve(self._built_entries())
        directory = paths.path_text(checkpoint_dir, "checkpoint_dir")
        search = find_newest_valid(directory, latest_filename)
        if search is None or search.reader is None:
            return None
        try:
            with search.reader as reader:
                report = self._restore(reader, slots, strict=True, verify=False)
            kept = times_of_saving(directory, search)
        finally:
            locks.unpin(directory)
        self._rotation.recover(kept, search.listing)
        return replace(report, skipped=tuple(search.skipped))

    # ---- the list of checkpoints

    @property
    def last_checkpoints(self) -> list[str]:
        """Prefixes that are remembered, oldest first; a new list each time."""
        return self._rotation.prefixes

    def set_last_checkpoints(self, last_checkpoints: list[str]) -> None:
        """Replace the list, oldest first. As in TF, these are never removed when they leave it; nothing is checked."""
        if not isinstance(last_checkpoints, list):
            raise TypeError(f"last_checkpoints is a list of prefixes, not {type(last_checkpoints).__name__}")
        self.set_last_checkpoints_with_time([(prefix, math.inf) for prefix in last_checkpoints])

    def set_last_checkpoints_with_time(self, last_checkpoints_with_time: Sequence[tuple[str, float]]) -> None:
        """Replace the list by (prefix, seconds since the epoch), oldest first; nothing is checked."""
        pairs = [(paths.path_text(prefix, "prefix"), float(saved)) for prefix, saved in last_checkpoints_with_time]
        self._rotation.replace(pairs)

    def recover_last_checkpoints(self, checkpoint_paths: Iterable[str]) -> None:
        """Replace the list by those of these prefixes that exist, in this order, with their modification times.

        After a restart, so that old checkpoints go on being removed:
        `saver.recover_last_checkpoints(get_checkpoint_state(checkpoint_dir).all_model_checkpoint_paths)`
        """
        if isinstance(checkpoint_paths, (str, bytes)):
            raise TypeError("checkpoint_paths is a list of prefixes, not a single one")
        found = [(path, mtime) for path in checkpoint_paths for mtime in get_checkpoint_mtimes([path])]
        self.set_last_checkpoints_with_time(found)

    def _built_entries(self) -> list[Entry]:
        if self._entries is None:
            raise RuntimeError("this Saver was made with defer_build=True; call build() first")
        return self._entries


def _require_something(slots: Slots) -> None:
    if not slots:
        raise VarListError(["there is nothing to save; pass variables, or allow_empty=True"])
