"""A checkpoint's files as a whole: written so that the old one counts until the new one is there, found, removed."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType

import torch

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.regular_file import read_regular
from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.formats.safetensors_writer import FilePlan, plan_files
from torchsaver.formats.shard_index import MAX_INDEX_BYTES, format_index, parse_index
from torchsaver.storage import disk, locks, paths

logger = logging.getLogger("torchsaver")


def make_ready(prefix: str, latest_filename: str | None) -> None:
    """Make a save's directory, check that its files can have their names, and sweep what dead writers have left.

    Raises:
        IsADirectoryError, NotADirectoryError, FileExistsError: Something is in the way.
        OSError: A name is too long, the place may not be looked at or written to, ...
    """
    directory = os.path.dirname(prefix)
    disk.make_directories(directory)
    paths.is_taken(paths.checkpoint_file(prefix))
    paths.is_taken(paths.index_file(prefix))
    _require_name(paths.state_file(directory, latest_filename))
    disk.sweep(directory)


def _require_name(path: str) -> None:
    """Check that the system allows a file to be called `path`.

    Raises:
        OSError: The name is too long, or the place may not be looked at.
    """
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)


class StagedCheckpoint:
    """A new checkpoint, written and on the device under temporary names; `publish` gives it its own.

    Used as a context: entering it writes, and leaving it without `publish` removes what was written.

    Args:
        prefix: Its directory exists.
        plans: For one file, or for several, which get an index.
        tensors: By key; each is streamed from its memory.
        manifest: What is stored beside them.

    Raises:
        OSError: On entering: the files cannot be written; nothing is left.
    """

    def __init__(
        self,
        prefix: str,
        plans: Sequence[FilePlan],
        tensors: Mapping[str, torch.Tensor],
        manifest: Manifest,
    ) -> None:
        self._prefix = prefix
        self._single, self._index = paths.checkpoint_file(prefix), paths.index_file(prefix)
        self._content = plans, tensors, manifest
        self._shards: list[str] = []
        self._stage = disk.Stage()

    def __enter__(self) -> StagedCheckpoint:
        try:
            self._write(*self._content)
        except BaseException:
            self._stage.close()
            raise
        return self

    def _write(self, plans: Sequence[FilePlan], tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> None:
        if len(plans) == 1:
            plans[0].write(self._stage.create(self._single), tensors, manifest)
        else:
            self._shards = paths.shard_files(self._prefix, len(plans))
            self._write_shards(plans, tensors, manifest)
        self._stage.sync()

    def _write_shards(self, plans: Sequence[FilePlan], tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> None:
        checksums, weight_map = {}, {}
        for path, plan in zip(self._shards, plans, strict=True):
            name, keys = os.path.basename(path), plan.layout.specs
            checksums[name] = plan.write(self._stage.create(path), tensors, manifest.for_shard(keys))
            weight_map.update(dict.fromkeys(keys, name))
        total_bytes = sum(plan.layout.nbytes for plan in plans)
        index = format_index(weight_map, total_bytes, replace(manifest, complex128=frozenset(), shards=checksums))
        self._stage.create(self._index).write(0, [index])

    def publish(self) -> None:
        """Make the checkpoint durable under its prefix, in place of any that is there.

        Raises:
            OSError: The old checkpoint counts as before; or, if only a directory could not be synced, the new one does.
            FileExistsError: Another process has published shards of the same prefix meanwhile.
        """
        old, left = _files_of(self._prefix), _leftover_shards(self._prefix)
        new = self._publish_shards() if self._shards else self._publish_single()
        self._stage.unlock()
        for path in old:
            if path not in new:
                _remove_superseded(path, disk.remove)
        for path in left:
            _remove_superseded(path, disk.remove_if_abandoned)

    def _publish_single(self) -> list[str]:
        self._stage.publish()
        if os.path.lexists(self._index):  # an index counts before a file: without it the new one counts
            disk.remove(self._index)
            disk.sync_directory(os.path.dirname(self._prefix))
        return [self._single]

    def _publish_shards(self) -> list[str]:
        try:
            self._stage.publish(self._shards, only_new=True)
            self._stage.publish([self._index])  # the commit point
        except BaseException:
            published = [path for path in self._stage.published() if path in self._shards]
            if not set(published) & set(_named_shards(self._prefix)):  # without an index they are nothing
                for path in published:
                    disk.remove(path)
            raise
        return [self._index, *self._shards]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage.close()


def write_checkpoint(
    prefix: str, tensors: Mapping[str, torch.Tensor], manifest: Manifest, max_shard_bytes: int | None = None
) -> None:
    """Write a checkpoint and publish it at once; arguments and errors as StagedCheckpoint and its `publish`."""
    with StagedCheckpoint(prefix, plan_files(tensors, max_shard_bytes), tensors, manifest) as staged:
        staged.publish()


def _remove_superseded(path: str, remove: Callable[[str], None]) -> None:
    try:
        remove(path)
    except OSError as error:  # the new checkpoint is there and counts
        logger.warning("could not remove %s, which a new save has replaced: %s", path, error)


def _files_of(prefix: str) -> list[str]:
    """Return the files of the checkpoint `prefix`, what makes it count first: index, shards, the single file.

    Shards are those its index names that have names we give: text in a file never decides what is removed.
    """
    index, single = paths.index_file(prefix), paths.checkpoint_file(prefix)
    indexes, singles = [[path] if os.path.isfile(path) else [] for path in (index, single)]
    return [*indexes, *_named_shards(prefix), *singles]


def _leftover_shards(prefix: str) -> list[str]:
    """Return shards of ours that a save or a removal cut short has left without an index."""
    directory = os.path.dirname(prefix)
    names = sorted(name for name in os.listdir(directory or ".") if paths.is_shard_of(prefix, name))
    possible = [os.path.join(directory, name) for name in names]
    named = _named_shards(prefix)
    return [path for path in possible if path not in named and is_ours(path)]


def _named_shards(prefix: str) -> list[str]:
    """Return the shards that the index of `prefix` names, as far as these are names we give."""
    index = paths.index_file(prefix)
    try:
        weight_map, _ = parse_index(read_regular(index, MAX_INDEX_BYTES), index)
    except (FileNotFoundError, IsADirectoryError, CorruptCheckpointError, UnsupportedCheckpointError):
        return []  # there is none, or it names nothing that can be trusted
    names = sorted(name for name in set(weight_map.values()) if paths.is_shard_of(prefix, name))
    return [os.path.join(os.path.dirname(prefix), name) for name in names]


def is_ours(path: str) -> bool:
    """Return whether a file is one that torchsaver wrote and that still says so: a checkpoint, a shard or an index."""
    try:
        if paths.is_index(path):
            return bool(parse_index(read_regular(path, MAX_INDEX_BYTES), path)[1].shards)
        with SafetensorsFile(path) as file:
            return file.header_crc32c is not None
    except (OSError, CorruptCheckpointError, UnsupportedCheckpointError):
        return False


def remove_checkpoint(checkpoint_prefix: str | os.PathLike[str]) -> None:
    """Remove the files of a checkpoint: PREFIX.safetensors, or its index and shards; never TensorFlow's own files.

    As in TF, it is silent when nothing is there, and the state file and savers are not told. Unlike TF, the prefix is
    literal: `*`, `?` and `[` match only themselves.

    Raises:
        OSError: A file cannot be removed.
    """
    prefix = paths.path_text(checkpoint_prefix, "checkpoint_prefix")
    if os.path.isdir(os.path.dirname(prefix) or "."):
        left = _leftover_shards(prefix)
        for path in _files_of(prefix):
            disk.remove(path)
        for path in left:
            disk.remove_if_abandoned(path)


def remove_unpinned(prefix: str) -> bool:
    """Remove a checkpoint, or return False when another process has pinned it: it was told that this is the newest."""
    with locks.unused(_files_of(prefix)) as free:
        if free:
            remove_checkpoint(prefix)
    return free


def is_pinned(prefix: str) -> bool:
    """Return whether another process has pinned a checkpoint, so that `remove_unpinned` would not remove it now."""
    return locks.is_pinned_elsewhere(_files_of(prefix))


def bytes_to_free(prefix: str) -> int:
    """Return how many bytes go when a checkpoint is removed; a file that has another name too keeps its own."""
    nbytes = 0
    for path in _files_of(prefix):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            status = os.stat(path)
            nbytes += status.st_size if status.st_nlink == 1 else 0
    return nbytes


def checkpoint_exists(checkpoint_prefix: str | os.PathLike[str]) -> bool:
    """Return whether there is a checkpoint of this prefix (literal), or a file of that very name; nothing is read.

    Unlike TF, a directory of that name is none.
    """
    return paths.find_checkpoint(paths.path_text(checkpoint_prefix, "checkpoint_prefix")) is not None


def get_checkpoint_mtimes(checkpoint_prefixes: Iterable[str | os.PathLike[str]]) -> list[float]:
    """Return modification times in seconds since the epoch; as in TF, prefixes that are not there are left out."""
    if isinstance(checkpoint_prefixes, (str, bytes)):
        raise TypeError("checkpoint_prefixes is a list of prefixes, not a single one")
    files = (paths.find_checkpoint(paths.path_text(prefix, "checkpoint_prefixes")) for prefix in checkpoint_prefixes)
    return [os.stat(path).st_mtime for path in files if path is not None]
