"""Every checkpoint of a directory, in order of commit: which are there, which are listed, and whether they hold."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from torchsaver.inspection.reports import CheckpointStatus, Damage, DirectoryReport, Listed, Progress, VerifyReport
from torchsaver.inspection.verification import Meter, examine_checkpoint, shard_names, survey_checkpoint
from torchsaver.storage import paths
from torchsaver.storage.catalog import Listing, checkpoint_names, read_listing


def list_checkpoints(
    checkpoint_dir: str | os.PathLike[str],
    *,
    latest_filename: str | None = None,
    headers_only: bool = False,
    progress: Callable[[Progress], object] | None = None,
) -> list[CheckpointStatus]:
    """Return every checkpoint of a directory, listed or not, oldest first, each with its verdict.

    It reads every tensor, unless `headers_only`; arguments and errors as `verify_directory`, whose report also has what
    is wrong with the state file.
    """
    report = verify_directory(
        checkpoint_dir, latest_filename=latest_filename, headers_only=headers_only, progress=progress
    )
    return list(report.checkpoints)


def verify_directory(
    checkpoint_dir: str | os.PathLike[str],
    *,
    latest_filename: str | None = None,
    headers_only: bool = False,
    progress: Callable[[Progress], object] | None = None,
) -> DirectoryReport:
    """Verify the state file and every checkpoint of a directory, and return all that is wrong with them.

    Only what stands in the directory itself is looked at, whatever the state file says; a path it lists elsewhere
    counts as damage, as does a checkpoint it lists that is gone. What a saver lets go meanwhile is left out.

    Args:
        checkpoint_dir: The directory.
        latest_filename: The state file's name, "checkpoint" by default.
        headers_only: Read no tensors: an intact checkpoint is "headers_ok".
        progress: Called about every MiB read; what it raises ends the verification.

    Returns:
        The report: checkpoints oldest first, as the state file lists them; the others by their own records, those
        without one first. A checkpoint that cannot be read is "unreadable", with the reason, and the others go on.

    Raises:
        FileNotFoundError, NotADirectoryError: It is no directory.
        OSError: The directory or its state file is there and cannot be read.
    """
    directory = paths.path_text(checkpoint_dir, "checkpoint_dir")
    there = checkpoint_names(directory, with_fragments=True)
    listing = read_listing(directory, latest_filename)
    reports = _look_at([*dict.fromkeys([*listing.names, *there])], survey_checkpoint, directory, listing)
    names = in_order_of_commit(listing.names, reports)
    if not headers_only:
        meter = Meter(progress, sum(report.checksummed_bytes for report in reports.values()))
        reports = _look_at(names, lambda prefix: examine_checkpoint(prefix, meter), directory, listing)
    let_go = _let_go_meanwhile(reports, directory, latest_filename)
    kept = [name for name in names if name in reports and name not in let_go]
    statuses = tuple(CheckpointStatus(name, _listed(name, listing), reports[name]) for name in kept)
    return DirectoryReport(directory, listing.path, tuple(_state_file_damage(listing)), statuses)


def in_order_of_commit(listed: Sequence[str], reports: Mapping[str, VerifyReport]) -> list[str]:
    """Return the names of `reports`, oldest first.

    Args:
        listed: What the state file lists, oldest first: that order counts, whatever the records say.
        reports: By name. One that is not listed comes before the first listed one with a higher sequence; those
            without a sequence come first, by the time of their save, if any, and their name.
    """
    keys: dict[str, tuple[float, int, float, str]] = {}
    reached = 0
    for position, name in enumerate(listed):
        if name in reports:
            reached = max(reached, reports[name].sequence or 0)
            keys[name] = reached, 1, position, name
    for name, report in reports.items():
        if name not in keys:
            saved = -math.inf if report.time is None else report.time
            keys[name] = (-1, 0, saved, name) if report.sequence is None else (report.sequence, 0, 0, name)
    return sorted(keys, key=keys.__getitem__)


def _look_at(
    names: Sequence[str], look: Callable[[str], VerifyReport], directory: str, listing: Listing
) -> dict[str, VerifyReport]:
    """Return a report of each name that stands for a checkpoint, or should."""
    found = {}
    for name in names:
        prefix = os.path.join(directory, name)
        try:
            found[name] = look(prefix)
        except FileNotFoundError:  # CheckpointNotFoundError, or gone before it could be opened
            if (report := _of_nothing(prefix, is_listed=name in listing.names)) is not None:
                found[name] = report
        except OSError as error:
            found[name] = VerifyReport(prefix, "unreadable", problem=str(error))
    return found


def _of_nothing(prefix: str, *, is_listed: bool) -> VerifyReport | None:
    """Return the report of a prefix without a file or index; None when there is nothing to be said of it."""
    names = shard_names(prefix)
    shards = tuple(os.path.join(os.path.dirname(prefix), name) for name in names)
    if is_listed:
        missing = paths.index_file(prefix) if shards else paths.checkpoint_file(prefix)
        damage = Damage(missing, None, None, "the state file lists the checkpoint, and it is gone")
        return VerifyReport(prefix, "gone", (damage,), files=(missing, *shards))
    reason = "shards without an index, as a save that was cut short leaves; they stand for no checkpoint"
    return VerifyReport(prefix, "incomplete", problem=reason, files=shards) if shards else None


def _let_go_meanwhile(reports: Mapping[str, VerifyReport], directory: str, latest_filename: str | None) -> set[str]:
    """Return the names of those that are gone and that the state file lists no more: a saver has removed them."""
    gone = {name for name, report in reports.items() if report.verdict == "gone"}
    return gone - set(read_listing(directory, latest_filename).names) if gone else gone


def _listed(name: str, listing: Listing) -> Listed:
    if name not in listing.names:
        return "no"
    return "newest" if name == listing.names[-1] else "yes"


def _state_file_damage(listing: Listing) -> Iterator[Damage]:
    if listing.problem is not None:
        yield Damage(listing.path, None, listing.problem.offset, listing.problem.reason)
    for text in listing.outside:
        yield Damage(listing.path, None, 0, f"it lists {text!r}, which does not stand in the directory itself")
