"""Retention without a save: what policies do not keep of a directory's checkpoints is let go, now."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

from torchsaver import arguments
from torchsaver.errors import nearest_keys, nearest_text
from torchsaver.recovery import Search, find_newest_valid, records_kept
from torchsaver.retention.policies import Best, Pinned
from torchsaver.retention.window import Decision, Policy, Record
from torchsaver.rotation import Rotation
from torchsaver.storage import locks, paths
from torchsaver.storage.aliases import led_to
from torchsaver.storage.catalog import checkpoint_names
from torchsaver.storage.checkpoint_files import bytes_to_free


class Pruned(NamedTuple):
    """What becomes of a checkpoint, and the bytes on the disk that go with it; 0 for one that stays."""

    decision: Decision
    freed_bytes: int


class UnknownNameError(ValueError):
    """A policy names a metric that no checkpoint has, or a checkpoint that is not there: a slip of the pen, perhaps."""


def prune_checkpoints(
    checkpoint_dir: str | os.PathLike[str],
    keep: Sequence[Policy],
    *,
    latest_filename: str | None = None,
    dry_run: bool = False,
) -> list[Decision]:
    """Remove those checkpoints of a directory that no policy keeps, and return what has become of each, and why.

    The policies decide by the checkpoints' own records over what the state file lists, in its order. The newest stays,
    and so does the newest whose checksums hold, which are all compared. What is damaged, not torchsaver's, not listed,
    or being read by another process stays too. The state file is rewritten before anything goes.

    Args:
        checkpoint_dir: The directory.
        keep: As `Saver(keep=)`; `Pinned` keeps the names given to it.
        latest_filename: The state file's name, "checkpoint" by default.
        dry_run: Change nothing.

    Returns:
        A decision for each checkpoint that is listed and there, in the order of the list.

    Raises:
        TypeError, ValueError: `keep` holds something that is no policy, or nothing.
        FileNotFoundError, NotADirectoryError: It is no directory.
        NoValidCheckpointError: There have been checkpoints, and none is left that holds: nothing is removed.
        OSError: The directory cannot be read or written, or another process does not let go of it.
    """
    return [pruned.decision for pruned in prune(checkpoint_dir, keep, latest_filename=latest_filename, dry_run=dry_run)]


def prune(
    checkpoint_dir: str | os.PathLike[str],
    keep: Sequence[Policy],
    *,
    latest_filename: str | None = None,
    dry_run: bool = False,
    names_must_be_known: bool = False,
) -> list[Pruned]:
    """Do what `prune_checkpoints` does, and return the bytes that go, too.

    Raises:
        UnknownNameError: With `names_must_be_known`; nothing is removed.
        Exception: As `prune_checkpoints`.
    """
    directory = paths.path_text(checkpoint_dir, "checkpoint_dir")
    rules = arguments.rules(arguments.DEFAULT_MAX_TO_KEEP, arguments.DEFAULT_EVERY_N_HOURS, keep or ())
    os.listdir(directory or ".")  # that it is a directory, and one that can be read
    while True:
        rotation = Rotation(rules, relative_paths=True)
        search = find_newest_valid(directory, latest_filename)
        if search is None:
            return []
        try:
            records = _records_listed(directory, search)
            if names_must_be_known:
                _require_known(keep, directory, records)
            rotation.take(records)
            found = _pruned(_decided(directory, search, rotation))
            goes = [pruned.decision.record for pruned in found if not pruned.decision.keep]
            still_there = rotation.let_go(goes, search.listing) if goes and not dry_run else []
        finally:
            locks.unpin(directory)
        if still_there is not None:  # else somebody has saved meanwhile
            return [_not_removed(pruned) if pruned.decision.record in still_there else pruned for pruned in found]


def _records_listed(directory: str, search: Search) -> list[Record]:
    """Return the records of what is listed, as far as the newest that holds; none where nothing listed does."""
    if search.reader is not None:
        search.reader.close()
    listed = search.listing.names
    kept = [record for record in records_kept(directory, search) if record.name in listed]
    return kept if search.names[-1] in listed else []


def _require_known(policies: Sequence[Policy], directory: str, records: Sequence[Record]) -> None:
    metrics = sorted({metric for record in records for metric in record.metrics})
    for policy in policies:
        if isinstance(policy, Best) and policy.metric not in metrics:
            nearest = nearest_text(nearest_keys(policy.metric, metrics))
            raise UnknownNameError(f"no checkpoint has the metric {policy.metric!r}{nearest}; nothing was removed")
        for name in policy.names if isinstance(policy, Pinned) else ():
            if paths.find_checkpoint(os.path.join(directory, name)) is None:
                raise UnknownNameError(f"there is no checkpoint {name!r} to pin; nothing was removed")


def _decided(directory: str, search: Search, rotation: Rotation) -> list[Decision]:
    """Return a decision for each listed checkpoint that is there."""
    decisions = {decision.record.name: decision for decision in rotation.decisions()}
    aliases = led_to(directory, checkpoint_names(directory))
    damaged = {os.path.basename(skipped.save_path) for skipped in search.skipped}
    found = []
    for name in search.listing.names:
        decision = decisions.get(name) or _left_alone(directory, name, damaged=name in damaged)
        if not decision.keep and (alias := aliases.get(decision.record.identity)) is not None:
            decision = decision._replace(keep=True, reason=f"{alias} is another name of it")
        if paths.find_checkpoint(os.path.join(directory, name)) is not None:
            found.append(decision)
    return found


def _left_alone(directory: str, name: str, *, damaged: bool) -> Decision:
    """Return the decision for a listed checkpoint that the policies are not asked about."""
    prefix = os.path.join(directory, name)
    reason = "it is damaged; `torchsaver verify` says how" if damaged else "it is no checkpoint of torchsaver"
    return Decision(Record(prefix, -math.inf, paths.identity(prefix)), keep=True, reason=reason)


def _pruned(decisions: list[Decision]) -> list[Pruned]:
    return [Pruned(each, 0 if each.keep else bytes_to_free(each.record.identity)) for each in decisions]


def _not_removed(pruned: Pruned) -> Pruned:
    reason = "it could not be removed; it is not listed any more"
    return Pruned(pruned.decision._replace(keep=True, reason=reason), 0)
