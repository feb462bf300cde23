"""Other names of checkpoints, `best` or `last`: hard links, which take no room and never lead to half a file.

That a file is such a name its own record tells: it was saved under another one.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Collection, Iterable, Mapping

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.commit import Commit
from torchsaver.storage import disk, paths
from torchsaver.storage.catalog import read_manifest

logger = logging.getLogger("torchsaver")


def link_aliases(directory: str, wanted: Mapping[str, str], taken: Collection[str] = ()) -> set[str]:
    """Make names of a directory lead to its checkpoints; what fails is logged, for the next save to try again.

    Args:
        directory: Where the names are to be.
        wanted: {alias: identity of the checkpoint}; one of another directory is left out.
        taken: Identities of checkpoints in their own right, such as a copy of `best` from which a run was resumed.

    Returns:
        Identities of what must stay for the sake of these names, which may be others than wanted: see `led_to`.
    """
    for alias, identity in wanted.items():
        path = os.path.join(directory, alias)
        if paths.own_name(directory, path) is None:
            logger.warning("%r is no name for a checkpoint, and is not made one of %s", alias, identity)
        elif paths.identity(path) in taken:
            logger.warning("%s is a checkpoint, and is not made another name of %s; rename one", alias, identity)
        elif paths.own_name(directory, identity) is not None:
            try:
                link_alias(identity, path)
            except (OSError, CorruptCheckpointError, UnsupportedCheckpointError) as error:
                logger.warning("%s could not be made another name of %s: %s", alias, identity, error)
    return set(led_to(directory, wanted))


def link_alias(prefix: str, alias: str) -> None:
    """Make `alias`, in the same directory, another name of the checkpoint `prefix`; it leads to the old one until then.

    Of a sharded checkpoint the index gets the name; its shards keep theirs.

    Raises:
        FileExistsError: A checkpoint was saved under that very name.
        OSError, CorruptCheckpointError, UnsupportedCheckpointError: What has the name cannot be read, or replaced.
    """
    there = None if paths.find_checkpoint(alias) is None else read_manifest(alias)
    if there is not None and not is_alias(os.path.basename(alias), there.commit):
        message = "a checkpoint was saved under this name; give the alias another one"
        raise FileExistsError(errno.EEXIST, message, alias)
    source, other = paths.checkpoint_file, paths.index_file
    if os.path.lexists(paths.index_file(prefix)):
        source, other = other, source
    # Where there are no hard links: a copy, which takes long, and is made once.
    if there is None or not os.path.exists(source(alias)) or there != read_manifest(prefix):
        disk.link_atomic(source(prefix), source(alias))
    if os.path.lexists(other(alias)):
        disk.remove(other(alias))
        disk.sync_directory(os.path.dirname(alias))


def led_to(directory: str, names: Iterable[str]) -> dict[str, str]:
    """Return {identity: alias} of the sharded checkpoints that aliases lead to: without their shards they lead nowhere.

    Args:
        directory: Where the aliases are.
        names: What to look at, aliases and others; what cannot be read leads nowhere anyway.
    """
    found = {}
    for name in names:
        alias = os.path.join(directory, name)
        if os.path.lexists(paths.index_file(alias)):
            with contextlib.suppress(OSError, CorruptCheckpointError, UnsupportedCheckpointError):
                commit = read_manifest(alias).commit
                if commit is not None and is_alias(name, commit):
                    found[paths.identity(os.path.join(directory, commit.kept[-1]))] = name
    return found


def is_alias(name: str, commit: Commit | None) -> bool:
    """Return whether a file of this name was saved under another one."""
    return commit is not None and bool(commit.kept) and commit.kept[-1] != name
