"""A checkpoint's files as a whole: written so that the old one counts until the new one is there, found, removed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.regular_file import read_regular
from torchsaver.formats.safetensors_file import SafetensorsFile, write_safetensors
from torchsaver.formats.shard_index import MAX_INDEX_BYTES, format_index, parse_index
from torchsaver.storage import disk, paths

logger = logging.getLogger("torchsaver")


def write_checkpoint(
    prefix: str, tensors: Mapping[str, torch.Tensor], manifest: Manifest, max_shard_bytes: int | None = None
) -> None:
    """Write tensors and manifest under `prefix`, durably, in place of any checkpoint that is there.

    Args:
        prefix: Its directory exists.
        tensors: By key; each is streamed from its memory.
        manifest: What is stored beside them.
        max_shard_bytes: Above this size the tensors go into several files with an index; None: always one file.

    Raises:
        OSError: The old checkpoint counts as before; or, if only a directory could not be synced, the new one does.
        FileExistsError: Another process has published shards of the same prefix meanwhile.
    """
    old, left = _files_of(prefix), _leftover_shards(prefix)
    shards = _plan_shards(tensors, max_shard_bytes)
    new = _write_single(prefix, tensors, manifest) if len(shards) == 1 else _write_shards(prefix, shards, manifest)
    for path in old:
        if path not in new:
            _remove_superseded(path)
    for path in left:
        disk.remove_if_abandoned(path)


def _remove_superseded(path: str) -> None:
    try:
        disk.remove(path)
    except OSError as error:  # the new checkpoint is there and counts
        logger.warning("could not remove %s, which a new save has replaced: %s", path, error)


def _write_single(prefix: str, tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> list[str]:
    path = paths.checkpoint_file(prefix)
    with disk.Stage() as stage:
        write_safetensors(stage.create(path), tensors, manifest)
        stage.publish()
    if os.path.lexists(paths.index_file(prefix)):  # an index counts before a file: without it the new one counts
        disk.remove(paths.index_file(prefix))
        disk.sync_directory(os.path.dirname(prefix))
    return [path]


def _write_shards(prefix: str, shards: list[dict[str, torch.Tensor]], manifest: Manifest) -> list[str]:
    names = paths.shard_files(prefix, len(shards))
    checksums, weight_map = {}, {}
    stage = disk.Stage()
    try:
        with stage:
            for path, tensors in zip(names, shards, strict=True):
                name = os.path.basename(path)
                checksums[name] = write_safetensors(stage.create(path), tensors, manifest.for_shard(tensors))
                weight_map.update(dict.fromkeys(tensors, name))
            total_bytes = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
            index = format_index(weight_map, total_bytes, replace(manifest, complex128=frozenset(), shards=checksums))
            stage.publish(only_new=True)
            disk.write_atomic(paths.index_file(prefix), index)  # the commit point
    except BaseException:
        if not set(stage.published) & set(_named_shards(prefix)):  # without an index they are nothing
            for path in stage.published:
                disk.remove(path)
        raise
    return [paths.index_file(prefix), *names]


def _plan_shards(tensors: Mapping[str, torch.Tensor], max_shard_bytes: int | None) -> list[dict[str, torch.Tensor]]:
    """Return groups of at most `max_shard_bytes` in sorted key order; a larger tensor is a group of its own."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = max_shard_bytes
    for key in sorted(tensors):
        nbytes = tensors[key].nbytes
        if room is not None and max_shard_bytes is not None:
            if nbytes > room and shards[-1]:
                shards.append({})
                room = max_shard_bytes
            room -= nbytes
        shards[-1][key] = tensors[key]
    return shards


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
    return [path for path in possible if path not in named and _is_ours(path)]


def _named_shards(prefix: str) -> list[str]:
    """Return the shards that the index of `prefix` names, as far as these are names we give."""
    index = paths.index_file(prefix)
    try:
        weight_map, _ = parse_index(read_regular(index, MAX_INDEX_BYTES), index)
    except (FileNotFoundError, IsADirectoryError, CorruptCheckpointError, UnsupportedCheckpointError):
        return []  # there is none, or it names nothing that can be trusted
    names = sorted(name for name in set(weight_map.values()) if paths.is_shard_of(prefix, name))
    return [os.path.join(os.path.dirname(prefix), name) for name in names]


def _is_ours(path: str) -> bool:
    try:
        with SafetensorsFile(path) as file:
            return file.header_crc32c is not None
    except (OSError, CorruptCheckpointError, UnsupportedCheckpointError):
        return False


def remove_checkpoint(checkpoint_prefix: str | os.PathLike[str]) -> None:
    """Remove the files of a checkpoint: PREFIX.safetensors, or its index and shards.

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
