"""What savers that died have left in a directory: told by the checkpoints' own records, and proved before it goes.

Whoever asks holds the lock of the directory, so that nobody is between a checkpoint's name and the state file. What is
unlisted for any other reason stays: somebody may have set the state file back, or removed it, or moved the directory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from torchsaver.formats.checksum import crc32c
from torchsaver.formats.commit import Commit
from torchsaver.retention.unfinished import expired, never_listed, unlisted_yet
from torchsaver.storage import paths
from torchsaver.storage.aliases import is_alias
from torchsaver.storage.catalog import Listing, Records, checkpoint_names, written_after

logger = logging.getLogger("torchsaver")


def find(directory: str, commit: Commit, listing: Listing, records: Records, *, keeps_all: bool) -> dict[str, Commit]:
    """Return what is left in a directory, by identity, with the records it is judged by.

    Args:
        directory: Where to look.
        commit: The record of the save that asks.
        listing: What the state file says before it.
        records: Of the checkpoints in the directory.
        keeps_all: Whether the saver removes nothing; it still has no use for shards without an index.
    """
    there = checkpoint_names(directory, with_fragments=True)
    if keeps_all:
        whole = set(checkpoint_names(directory))
        there = [name for name in there if name not in whole]
    newest = newest_sequence(records.refresh(listing.names), listing)
    commits = of(records.refresh(there), commit.place, commit.state_file)
    listed = {*listing.names, *commit.kept}
    never = never_listed(commits, listed, checksum_of(listing), newest)
    died = {name for name in never if not _may_be_wanted(os.path.join(directory, name), listing)}
    left = sorted(died | expired(commits, listed))
    if left:
        logger.info("left in %s by saves that did not end: %s", directory or ".", ", ".join(left))
    return {paths.identity(os.path.join(directory, name)): commits[name] for name in left}


def of_a_first_save(directory: str, commits: Mapping[str, Commit]) -> list[str]:
    """Return the prefixes of whole checkpoints that were saved where no state file has ever been, oldest first.

    Such a one is complete, and nothing else tells of it: it is worth taking over.
    """
    prefixes = [os.path.join(directory, name) for name in unlisted_yet(commits)]
    return [prefix for prefix in prefixes if paths.find_checkpoint(prefix) is not None]


def _may_be_wanted(prefix: str, listing: Listing) -> bool:
    """Return whether a checkpoint that no state file has listed may be there for a reason.

    Without a state file, every whole one may: somebody may have removed that file. A state file that is younger
    than the checkpoint was set back by somebody, who may want both.
    """
    if listing.data is None:
        return paths.find_checkpoint(prefix) is not None
    return written_after(listing.path, prefix)


def of(commits: Mapping[str, Commit], place: int, state_file: str, but: str = "") -> dict[str, Commit]:
    """Return the records that were made in this place for this state file, `but` for one name and for aliases."""
    return {
        name: commit
        for name, commit in commits.items()
        if (commit.place, commit.state_file) == (place, state_file) and name != but and not is_alias(name, commit)
    }


def newest_sequence(commits: Mapping[str, Commit], listing: Listing) -> int:
    """Return the sequence of the newest checkpoint a state file lists; 0 without one."""
    newest = commits.get(listing.names[-1]) if listing.names else None
    return 0 if newest is None else newest.sequence


def checksum_of(listing: Listing) -> int | None:
    """Return the CRC-32C of a state file's bytes; None when there is none."""
    return None if listing.data is None else crc32c(listing.data)


def place_of(directory: str) -> int:
    """Return what a record knows a directory by: the CRC-32C of its real path."""
    return crc32c(os.fsencode(paths.real_directory(directory)))
