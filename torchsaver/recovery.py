"""Which checkpoint of a directory to go on from: the newest, in order of commit, whose checksums hold.

The state file comes first. What it lists and cannot be restored is skipped, loudly; where it is damaged, or everything
it lists is, the checkpoints' own records say in which order they were saved. Damage may lead to an older checkpoint;
an error of reading never does, and never to "there is none": that would start a training run from nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from torchsaver.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    NoValidCheckpointError,
    SkippedCheckpoint,
    UnsupportedCheckpointError,
)
from torchsaver.reader import CheckpointReader
from torchsaver.retention.window import Record, record_of
from torchsaver.storage import locks, paths
from torchsaver.storage.aliases import is_alias
from torchsaver.storage.catalog import Listing, checkpoint_names, looks_like_ours, read_listing, read_manifest

logger = logging.getLogger("torchsaver")

_MOST_LOGGED = 20  # lines; a state file may list anything, and `skipped` holds it all


@dataclass
class Search:
    """What a search for the newest valid checkpoint of a directory has come to.

    Attributes:
        listing: What the state file said.
        reader: The checkpoint, open, verified and pinned; None when there is none.
        skipped: What was not taken, and why.
        names: The checkpoints the directory keeps as far as that one, oldest first.
        vanished: Names that were gone, or just being removed, when they were to be opened.
        reason: Why it is this checkpoint.
    """

    listing: Listing
    reader: CheckpointReader | None = None
    skipped: list[SkippedCheckpoint] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    reason: str = ""


def newest_valid_checkpoint(
    checkpoint_dir: str | os.PathLike[str], *, latest_filename: str | None = None
) -> str | None:
    """Return the prefix of the newest checkpoint of a directory whose checksums hold, for `restore`.

    Unlike `latest_checkpoint`, it reads the whole checkpoint and compares every checksum, skips what is damaged or gone
    with a warning in the log of `torchsaver`, and finds checkpoints whose state file is damaged or lost. Other
    processes' savers do not remove what is returned until this process asks for the same directory again, or ends.
    Only what stands in the directory itself is looked at, whatever the state file says.

    Args:
        checkpoint_dir: The directory.
        latest_filename: The state file's name, "checkpoint" by default.

    Returns:
        The prefix, or None when there has never been a checkpoint.

    Raises:
        NoValidCheckpointError: There have been checkpoints, and none is left that holds; its `skipped` says why.
        UnsupportedCheckpointError: The newest is of a newer version of torchsaver or torch; an older one is not taken.
        OSError: Something is there and cannot be read.
    """
    search = find_newest_valid(paths.path_text(checkpoint_dir, "checkpoint_dir"), latest_filename)
    if search is None or search.reader is None:
        return None
    search.reader.close()
    return search.reader.save_path


def find_newest_valid(directory: str, latest_filename: str | None = None) -> Search | None:
    """Return the search whose `reader` is the newest valid checkpoint, open; None when there has never been one.

    Raises:
        NoValidCheckpointError, UnsupportedCheckpointError, OSError: As `newest_valid_checkpoint`.
    """
    before: Listing | None = None
    while True:
        listing = read_listing(directory, latest_filename, before)
        search = _search(directory, listing)
        # What has vanished may have been rotated away while we looked: then the state file says something else by now.
        if not search.vanished or listing is before or _is_still_gone(search, directory, latest_filename):
            break
        _let_go(directory, search.reader)
        before = listing
    for skip in search.skipped[:_MOST_LOGGED]:
        logger.warning("%s is skipped: %s", skip.save_path, skip.reason)
    if len(search.skipped) > _MOST_LOGGED:
        logger.warning("%d more in %s are skipped", len(search.skipped) - _MOST_LOGGED, directory)
    if search.reader is None and search.skipped:
        raise NoValidCheckpointError(directory, search.skipped)
    return search if search.reader is not None else None


def _is_still_gone(search: Search, directory: str, latest_filename: str | None) -> bool:
    """Return whether a second look finds the state file as it was, and of what has vanished nothing."""
    if read_listing(directory, latest_filename, search.listing) is not search.listing:
        return False
    there = _names_there(directory, search.listing)
    return not any(name in there for name in search.vanished)


def _search(directory: str, listing: Listing) -> Search:
    search = Search(listing)
    if listing.problem is not None:
        search.skipped.append(SkippedCheckpoint(listing.path, str(listing.problem)))
    for text in listing.outside:
        reason = "the state file names it, and it does not stand in the directory itself"
        search.skipped.append(SkippedCheckpoint(text, reason))
    for name, kept in _candidates(directory, listing, search):
        search.reader = _opened(directory, name, search)
        if search.reader is not None:
            search.names = [*(older for older in kept if older != name), name]
            search.reason = _reason(name, listing)
            return search
    return search


def _reason(name: str, listing: Listing) -> str:
    """Return why the newest valid checkpoint is the newest."""
    if name in listing.names:
        return "the newest that the state file lists" + ", of those that hold" * (name != listing.names[-1])
    because = "nothing the state file lists holds"
    if not listing.names:
        because = "there is no state file" if listing.problem is None else "the state file is damaged"
    return f"the newest by the checkpoints' own records, since {because}"


def _candidates(directory: str, listing: Listing, search: Search) -> Iterator[tuple[str, list[str]]]:
    """Yield names, newest first, each with those that are kept beside it, oldest first."""
    there, listed = _names_there(directory, listing), set(listing.names)
    for position, name in reversed(list(enumerate(listing.names))):
        if name in there:
            yield name, [kept for kept in listing.names[:position] if kept in there]
        else:
            search.vanished.append(name)
            search.skipped.append(SkippedCheckpoint(os.path.join(directory, name), "it is gone"))
    records = {}
    for name in there:
        if name not in listed:
            prefix = os.path.join(directory, name)
            try:
                commit = read_manifest(prefix).commit
            except FileNotFoundError:  # or a link that leads nowhere
                search.vanished.append(name)
                search.skipped.append(SkippedCheckpoint(prefix, "it is gone"))
            except IsADirectoryError:
                continue
            except (CorruptCheckpointError, UnsupportedCheckpointError) as error:
                if looks_like_ours(prefix):  # else it may be anybody's
                    search.skipped.append(SkippedCheckpoint(prefix, str(error)))
            else:
                is_second_name = is_alias(name, commit) and commit is not None and commit.kept[-1] in there
                if commit is not None and commit.state_file == os.path.basename(listing.path) and not is_second_name:
                    records[name] = commit
    for name, commit in sorted(records.items(), key=lambda item: (item[1].sequence, item[0]), reverse=True):
        yield name, [kept for kept in commit.kept if kept in there]


def _names_there(directory: str, listing: Listing) -> dict[str, None]:
    """Return the names of our checkpoints, and those of TensorFlow's that the state file lists."""
    try:
        there = dict.fromkeys(checkpoint_names(directory))
    except FileNotFoundError:  # no directory: nothing has ever been saved
        return {}
    others = [name for name in listing.names if name not in there]
    return there | dict.fromkeys(name for name in others if paths.find_checkpoint(os.path.join(directory, name)))


def _opened(directory: str, name: str, search: Search) -> CheckpointReader | None:
    """Return an open checkpoint that is pinned and whose checksums hold; else None, and `search` says why."""
    prefix = os.path.join(directory, name)
    try:
        reader = CheckpointReader(prefix)
    except (CheckpointNotFoundError, FileNotFoundError):
        search.vanished.append(name)
        search.skipped.append(SkippedCheckpoint(prefix, "it is gone"))
        return None
    except CorruptCheckpointError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # a shard, which may have gone with its index meanwhile
            search.vanished.append(name)
        search.skipped.append(SkippedCheckpoint(prefix, str(error)))
        return None
    try:
        if not locks.pin(directory, {file.path: file.fileno() for file in reader.files}):
            search.vanished.append(name)
            search.skipped.append(SkippedCheckpoint(prefix, "it is being removed"))
        else:
            reader.verify()
            return reader
    except CorruptCheckpointError as error:
        search.skipped.append(SkippedCheckpoint(prefix, str(error)))
    except BaseException:
        _let_go(directory, reader)
        raise
    _let_go(directory, reader)
    return None


def _let_go(directory: str, reader: CheckpointReader | None) -> None:
    locks.unpin(directory)
    if reader is not None:
        reader.close()


def records_kept(directory: str, search: Search) -> list[Record]:
    """Return the records of what the directory keeps, oldest first, as the files themselves have them.

    What is gone by now is left out; so is, with a warning and among `search.skipped`, what is damaged.

    Raises:
        OSError: A file is there and cannot be read.
    """
    kept = []
    for name in search.names:
        prefix = os.path.join(directory, name)
        try:
            kept.append(record_of(prefix, paths.identity(prefix), read_manifest(prefix)))
        except FileNotFoundError:
            continue
        except (CorruptCheckpointError, UnsupportedCheckpointError) as error:
            search.skipped.append(SkippedCheckpoint(prefix, str(error)))
            logger.warning("%s is left out of the list: %s", prefix, error)
    return kept
