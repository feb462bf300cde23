"""The checkpoints a saver remembers: the state file lists them, and what leaves their window is removed.

A save is planned before its data is written, so that the checkpoint can hold its own record, and committed after: under
the lock of the directory it gets its name, the state file lists it, and only then does what is old go.
"""

from __future__ import annotations

import logging
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from torchsaver import leftovers
from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.commit import Commit
from torchsaver.retention import window as windows
from torchsaver.retention.window import Decision, Record, Rules, Window
from torchsaver.storage import locks, paths
from torchsaver.storage.aliases import link_aliases
from torchsaver.storage.catalog import Listing, Records, read_listing, read_manifest
from torchsaver.storage.checkpoint_files import is_ours, is_pinned, remove_unpinned
from torchsaver.storage.state_file import (
    CheckpointState,
    format_state,
    generate_checkpoint_state_proto,
    relative_state,
    write_state,
)

logger = logging.getLogger("torchsaver")

_BELIEVABLE = 1 << 62  # a sequence beyond was not counted up by us


class Plan(NamedTuple):
    """What a save will do to the list: decided before anything is written, carried out by `Rotation.commit`."""

    newest: Record
    directory: str
    listing: Listing  # what the state file says before
    before: Window
    window: Window  # after the save
    listed: tuple[Record, ...]  # what the state file is to list of ours, oldest first
    commit: Commit


class Rotation:
    """One saver's window of checkpoints. It changes when the state file has changed, never before.

    Args:
        rules: Which checkpoints stay.
        relative_paths: Write paths into the state file relative to it.
    """

    def __init__(self, rules: Rules, *, relative_paths: bool) -> None:
        self._rules = rules
        self.relative_paths = relative_paths
        self._window = Window()
        self._records: dict[str, Records] = {}  # by real directory
        # By identity, the records of what this saver has written or judged: several after a save over it that failed,
        # and None after one that was not to be listed.
        self._known: dict[str, tuple[Commit | None, ...]] = {}
        self._files: dict[str, object] = {}  # by identity, what tells the file this saver has written from any other
        self._listed: dict[str, frozenset[str]] = {}  # identities this saver found in a state file, or has put there
        # By state file, commits that failed and what they were to write there, which may be there all the same.
        self._unsure: dict[str, tuple[Plan, bytes]] = {}

    def start(self, now: float) -> None:
        """Begin with an empty window; the grid of hours counts from `now`, seconds since the epoch."""
        self._window = self._rules.open_window(now)

    @property
    def prefixes(self) -> list[str]:
        """Prefixes in the window, as they were given, oldest first; a new list each time."""
        return [record.prefix for record in self._window.last]

    def replace(self, prefixes_with_time: Iterable[tuple[str, float]]) -> None:
        """Replace the window by (prefix, seconds since the epoch), oldest first; nothing is checked."""
        last = tuple(self._told(prefix, saved) for prefix, saved in prefixes_with_time)
        listed = {record.identity for record in last}
        self._known = {identity: known for identity, known in self._known.items() if identity not in listed}
        self._unsure.clear()
        doomed = tuple(record for record in self._window.doomed if record.identity not in listed)
        self._window = Window(last, doomed, self._window.next_kept_time)

    def recover(self, records: Iterable[Record], listing: Listing) -> None:
        """Go on with the list of an earlier process; what `listing` names beyond it is dropped from the state file."""
        self._window = self._rules.recover(self._window, records)
        self._listed[paths.identity(listing.path)] = frozenset(listing.identities)
        self._unsure.clear()

    # ---- a save

    def expect_unlisted(self, prefix: str) -> None:
        """Take note that `prefix` is about to be written without a record, perhaps over a listed checkpoint."""
        self._records_of(os.path.dirname(prefix)).forget(os.path.basename(prefix))
        identity = paths.identity(prefix)
        if identity in self._known:
            self._known[identity] += (None,)

    def plan(self, newest: Record, directory: str, latest_filename: str | None) -> Plan:
        """Return what saving `newest` in `directory` will do; nothing changes but what earlier failures have left open.

        Raises:
            OSError: The directory or its state file cannot be read, or another process does not let go of it.
        """
        name = os.path.basename(newest.prefix)
        if not self._is_unchanged(newest.identity):
            self._records_of(directory).forget(name)
        with locks.DirectoryLock(directory) as alone:
            listing = read_listing(directory, latest_filename)
            commits = {} if self._rules.remembers else self._records_of(directory).refresh(listing.names[-1:])
            commits = commits or self._records_of(directory).refresh()
            is_new = paths.find_checkpoint(newest.identity) is None
        commits = {known: commit for known, commit in commits.items() if commit.sequence < _BELIEVABLE}
        self._settle(listing)
        # As in TF, a saver's first save drops from the list what it was not told of; what is listed from now on stays.
        self._listed.setdefault(paths.identity(listing.path), frozenset(listing.identities))
        place, state_name = leftovers.place_of(directory), os.path.basename(listing.path)
        before = window = self._window  # once: a signal handler may save at any moment, and `commit` is to see it
        if alone and self._rules.remembers and listing.data is None and listing.problem is None:
            orphans = leftovers.of_a_first_save(directory, leftovers.of(commits, place, state_name, but=name))
            window = windows.adopt(window, [self._told(prefix, -math.inf) for prefix in orphans])
        window = self._rules.record_save(window, newest) if self._rules.remembers else window
        listed = window.last if self._rules.remembers else (newest,)
        _, decisions = self._rules.choose(window)
        commit = Commit(
            # What could not be read may be the newest.
            sequence=1 + max((c.sequence for c in commits.values()), default=0) + self._records_of(directory).unread,
            place=place,
            state_file=state_name,
            replaces=leftovers.checksum_of(listing),
            after=leftovers.newest_sequence(commits, listing),
            is_new=is_new,
            kept=_names(listed, directory),
            expired=_names((decision.record for decision in decisions if not decision.keep), directory),
        )
        return Plan(newest, directory, listing, before, window, listed, commit)

    def commit(self, plan: Plan, publish: Callable[[], None]) -> None:
        """Let the checkpoint have its name (`publish`), then list it, then remove what has left the window.

        Raises:
            OSError: An error of `publish`, or the state file cannot be written; the window is as it was.
        """
        with locks.DirectoryLock(plan.directory) as alone:
            plan = self._renewed(plan)
            listing = read_listing(plan.directory, os.path.basename(plan.listing.path), known=plan.listing)
            left = self._leftovers(plan, listing) if alone else {}
            state = self._state(plan, listing.merged(self._others(plan, listing), (r.identity for r in plan.listed)))
            if plan.newest.identity in self._known:
                self._known[plan.newest.identity] += (plan.commit,)
            publish()
            self._files[plan.newest.identity] = paths.find_version(plan.newest.identity)
            self._records_of(plan.directory).note(os.path.basename(plan.newest.prefix), plan.commit)
            self._unsure[paths.identity(plan.listing.path)] = plan, format_state(state).encode("utf-8")
            write_state(plan.listing.path, state)
            self._take(plan, left)
            self._remove_old(plan.directory)

    def _renewed(self, plan: Plan) -> Plan:
        """Return the plan, made again for the window as it is, if a signal handler has saved in the meantime."""
        if self._window is plan.before or not self._rules.remembers:
            return plan
        window = self._rules.record_save(self._window, plan.newest)
        return plan._replace(before=self._window, window=window, listed=window.last)

    def _take(self, plan: Plan, left: Mapping[str, Commit]) -> None:
        """Make the outcome of a committed save this saver's own; what is `left`, by identity, is to go."""
        self._window = windows.doom_again(plan.window, [_record(identity, -math.inf) for identity in left])
        judged = {identity: (commit,) for identity, commit in left.items()}
        known = {**self._known, **judged, plan.newest.identity: (plan.commit,)}
        remembered = {record.identity for record in (*self._window.last, *self._window.doomed)}
        self._known = {identity: commits for identity, commits in known.items() if identity in remembered}
        self._files = {identity: file for identity, file in self._files.items() if identity in remembered}
        self._listed[paths.identity(plan.listing.path)] = frozenset(record.identity for record in plan.listed)
        self._unsure.pop(paths.identity(plan.listing.path), None)

    def _settle(self, listing: Listing) -> None:
        """Find out whether a commit that failed has reached the state file all the same."""
        plan, data = self._unsure.pop(paths.identity(listing.path), (None, None))
        if plan is not None and listing.data == data:
            self._take(plan, {})

    def _others(self, plan: Plan, listing: Listing) -> list[str]:
        """Return identities that other processes have listed since this saver last looked, and that are there."""
        own = self._listed[paths.identity(plan.listing.path)]
        own = own | {record.identity for record in (*plan.listed, *plan.window.doomed)}
        return [path for path in listing.identities if path not in own and paths.find_checkpoint(path) is not None]

    def _leftovers(self, plan: Plan, listing: Listing) -> dict[str, Commit]:
        records = self._records_of(plan.directory)
        return leftovers.find(plan.directory, plan.commit, listing, records, keeps_all=not self._rules.remembers)

    def _state(self, plan: Plan, identities: list[str]) -> CheckpointState:
        if self.relative_paths:
            return relative_state(plan.directory, identities)
        # As given, unless the working directory has changed since, and the name means another place by now.
        given = {r.identity: r.prefix for r in plan.listed if paths.identity(r.prefix) == r.identity}
        names = [given.get(identity, identity) for identity in identities]
        directory = os.path.dirname(plan.newest.prefix)
        return generate_checkpoint_state_proto(directory, names[-1], all_model_checkpoint_paths=names)

    def _told(self, prefix: str, saved: float) -> Record:
        """Return the record of a checkpoint that this saver did not save, with its own step and metrics if they count.

        Its time is `saved` where it has none of its own.
        """
        record = _record(prefix, saved)
        if not self._rules.needs_records:
            return record
        try:
            own = windows.record_of(prefix, record.identity, read_manifest(prefix))
        except (OSError, CorruptCheckpointError, UnsupportedCheckpointError):
            return record
        return own if math.isfinite(own.time) else own._replace(time=saved)

    # ---- removal

    def decisions(self) -> list[Decision]:
        """Return what stays and goes of all that is remembered, and why, as things are."""
        directory = os.path.dirname(self._window.last[-1].identity) if self._window.last else ""
        return [self._as_it_is(decision, directory) for decision in self._rules.plan(self._window)]

    def _as_it_is(self, decision: Decision, directory: str) -> Decision:
        """Return what becomes of a checkpoint: one that is to go may be somebody else's, or read by another process."""
        reason = None if decision.keep else self._why_left_alone(decision.record, directory)
        if reason is None and not decision.keep and is_pinned(decision.record.identity):
            reason = f"another process is reading it; later, it is {decision.reason}"
        return decision if reason is None else decision._replace(keep=True, reason=reason)

    def take(self, records: Iterable[Record]) -> None:
        """Remember `records`, oldest first, and nothing else."""
        self._window = Window(tuple(records))

    def let_go(self, goes: Sequence[Record], listing: Listing) -> list[Record] | None:
        """Unlist, then remove what `goes`; return what is still there; None, with nothing done, if `listing` is old."""
        directory, state_name = os.path.split(listing.path)
        with locks.DirectoryLock(directory):
            if read_listing(directory, state_name, known=listing) is not listing:
                return None
            write_state(listing.path, listing.state_without({record.identity for record in goes}))
            last = tuple(record for record in self._window.last if record not in goes)
            self._window = self._window._replace(last=last, doomed=tuple(goes))
            self._remove_old(directory)
        return list(self._window.doomed)

    def _remove_old(self, directory: str) -> None:
        """Have the aliases move on, then remove what has left the window; what fails is tried again the next time."""
        aliases = {alias: record.identity for alias, record in self._rules.aliases(self._window).items()}
        taken = {record.identity for record in (*self._window.last, *self._window.doomed)}
        needed = link_aliases(directory, aliases, taken)
        window, decisions = self._rules.choose(self._window)
        doomed = [decision.record for decision in decisions if not decision.keep]
        self._window = windows.doom_again(window, doomed)
        for decision in decisions:
            logger.debug("%s %s: %s", "kept" if decision.keep else "removing", decision.record.prefix, decision.reason)
        for record in doomed:
            if record.identity not in needed and self._removed(record, directory):
                self._window = windows.forget_doomed(self._window, record)

    def _removed(self, record: Record, directory: str) -> bool:
        """Remove one checkpoint; return False when that is to be tried again."""
        try:
            reason = self._why_left_alone(record, directory)
            if reason is not None:
                logger.warning("the old checkpoint %s is left alone: %s", record.prefix, reason)
            elif not remove_unpinned(record.identity):
                logger.info("the old checkpoint %s is being read by another process; it goes later", record.prefix)
                return False
        except OSError as error:
            logger.warning("could not remove the old checkpoint %s: %s", record.prefix, error)
            return False
        return True

    def _why_left_alone(self, record: Record, directory: str) -> str | None:
        """Return why a checkpoint that has left the window is not ours to remove; None when it is.

        What this saver has not written or judged itself it knows from a text, which may say anything.
        """
        if record.identity in self._known:
            return self._why_replaced(record)
        if paths.own_name(directory, record.identity) is None:
            return f"it was not saved by this Saver, and does not stand in {directory or '.'}"
        file = paths.find_checkpoint(record.identity)
        if file is not None and not (stat.S_ISREG(os.lstat(file).st_mode) and is_ours(file)):
            return "it was not saved by this Saver, and is no intact checkpoint of torchsaver"
        return None

    def _why_replaced(self, record: Record) -> str | None:
        if self._is_unchanged(record.identity):
            return None
        try:
            is_known = read_manifest(record.identity).commit in self._known[record.identity]
        except (FileNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError):  # gone, or ours and damaged
            return None
        if not is_known:
            self._records_of(os.path.dirname(record.identity)).forget(os.path.basename(record.identity))
        return None if is_known else "another save has replaced it"

    def _is_unchanged(self, identity: str) -> bool:
        """Return whether a checkpoint's file is still the one this saver has written."""
        return self._files.get(identity, ()) == paths.find_version(identity)

    def _records_of(self, directory: str) -> Records:
        real = paths.real_directory(directory)
        return self._records.setdefault(real, Records(real))


def _record(prefix: str, saved: float) -> Record:
    return Record(prefix, saved, paths.identity(prefix))


def _names(records: Iterable[Record], directory: str) -> tuple[str, ...]:
    """Return the names of those records that stand in the directory itself."""
    return tuple(name for record in records if (name := paths.own_name(directory, record.identity)) is not None)
