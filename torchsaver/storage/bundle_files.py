"""TensorFlow's V2 checkpoints on disk: written so that at every moment the old one counts, or the new one, never a mix.

The index is what makes files a checkpoint, so it is published last. A data file's name is fixed by its number and by
how many there are, and the index of the checkpoint that is to be replaced names the old ones: a new data file never
takes the name of one that is there. If the plain names are taken, the index counts one data file more, or as many more
as it takes to have new names, and those further files are empty. TensorFlow opens a data file only to read from it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence

from torchsaver.formats.tensorflow.bundle_writer import BundleWriter
from torchsaver.formats.tensorflow.names import data_file, index_file, prefix_of_data_file
from torchsaver.storage import disk, locks, paths

logger = logging.getLogger("torchsaver")


def write_bundle(prefix: str, writer: BundleWriter, *, overwrite: bool = False) -> None:
    """Write a bundle and publish it under its prefix; missing directories are made.

    Data files of this prefix that are not the new ones go when it is there: those of the bundle it replaces, and what a
    save cut short has left without an index.

    Args:
        prefix: The path without the file endings.
        writer: What has not been written yet.
        overwrite: Whether a bundle that is there may be replaced.

    Raises:
        FileExistsError: There is a bundle, and `overwrite` is not given; or another process has just published one.
        IsADirectoryError: A directory has the name of one of the files.
        OSError: The files cannot be written: what was there counts as before; or, if only a directory could not be
            synced, the new one does.
    """
    index, directory = index_file(prefix), os.path.dirname(prefix)
    disk.make_directories(directory)
    replaces = paths.is_taken(index)
    if replaces and not overwrite:
        raise FileExistsError(
            errno.EEXIST, "a checkpoint is there; save under another name or pass overwrite=True", index
        )
    data = _data_files(prefix, writer.shard_count, only_new=replaces)
    disk.sweep(directory)
    with disk.Stage() as stage:
        for number, path in enumerate(data):
            file = stage.create(path)
            if number < writer.shard_count:
                writer.write_shard(number, file)
        stage.create(index).write(0, [writer.format_index(len(data))])
        stage.sync()
        with locks.DirectoryLock(directory):
            _publish(stage, data, index, replaces=replaces)
            for path in _other_data_files(prefix, data):
                _remove(path, "which a new save has replaced")


def _data_files(prefix: str, count: int, *, only_new: bool) -> list[str]:
    """Return names for `count` data files, and for further ones if names that are not there yet want that.

    Without an index beside them data files are no checkpoint, and may lose their names to new ones.
    """
    while True:
        names = [data_file(prefix, number, count) for number in range(count)]
        taken = list(
            map(paths.is_taken, names)
        )  # all of them: a directory in the way is told before anything is written
        if not any(taken) or not only_new:
            return names
        count += 1


def _publish(stage: disk.Stage, data: Sequence[str], index: str, *, replaces: bool) -> None:
    """Give the files their names, the index last: it is the commit point."""
    is_there = paths.is_taken(index)
    if is_there and not replaces:
        message = "another process has just saved a checkpoint of this name; let one save, or each its own"
        raise FileExistsError(errno.EEXIST, message, index)
    try:
        if not is_there:  # and never comes back: data files may take names that it has counted on
            disk.sync_directory(os.path.dirname(index))
        stage.publish(data, only_new=replaces)
        stage.publish([index])
    except BaseException:
        published = stage.published()
        if index not in published:  # without it they are nothing
            for path in published:
                _remove(path, "left by a save that failed")
        raise


def _other_data_files(prefix: str, data: Sequence[str]) -> list[str]:
    """Return the data files of this very prefix that are not among `data`."""
    directory, base = os.path.split(prefix)
    names = sorted(name for name in os.listdir(directory or ".") if prefix_of_data_file(name) == base)
    return [path for name in names if (path := os.path.join(directory, name)) not in data]


def _remove(path: str, why: str) -> None:
    try:
        disk.remove(path)
    except OSError as error:  # it is in nobody's way; the next save tries again
        logger.warning("could not remove %s, %s: %s", path, why, error)
