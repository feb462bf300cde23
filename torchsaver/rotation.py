"""The checkpoints a saver remembers: the state file names them, and what leaves their window is removed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from torchsaver import retention
from torchsaver.retention import Record, Window
from torchsaver.storage import paths, state_file
from torchsaver.storage.checkpoint_files import remove_checkpoint

logger = logging.getLogger("torchsaver")


class Rotation:
    """One saver's window of checkpoints. It changes when the state file has changed, never before.

    Args:
        max_to_keep: Size of the window; 0 remembers and removes nothing.
        every_n_hours: One checkpoint for each such period is kept for ever; infinity: none.
        relative_paths: Write paths into the state file relative to it.
    """

    def __init__(self, max_to_keep: int, every_n_hours: float, *, relative_paths: bool) -> None:
        self.max_to_keep = max_to_keep
        self.every_n_hours = every_n_hours
        self.relative_paths = relative_paths
        self._window = Window()

    def start(self, now: float) -> None:
        """Begin with an empty window; the grid of hours counts from `now`, seconds since the epoch."""
        self._window = retention.open_window(now, self.every_n_hours)

    @property
    def prefixes(self) -> list[str]:
        """Prefixes in the window, as they were given, oldest first; a new list each time."""
        return [record.prefix for record in self._window.last]

    def replace(self, prefixes_with_time: Iterable[tuple[str, float]]) -> None:
        """Replace the window by (prefix, seconds since the epoch), oldest first; nothing is checked."""
        last = tuple(Record(prefix, saved, paths.identity(prefix)) for prefix, saved in prefixes_with_time)
        listed = {record.identity for record in last}
        doomed = tuple(record for record in self._window.doomed if record.identity not in listed)
        self._window = Window(last, doomed, self._window.next_kept_time)

    def record(self, prefix: str, saved: float, latest_filename: str | None) -> None:
        """Make `prefix` the newest: in the state file first, and in the window once that is durable.

        Raises:
            OSError: The state file cannot be written; the window is as it was.
        """
        newest = Record(prefix, saved, paths.identity(prefix))
        window = retention.record_save(self._window, newest, self.max_to_keep) if self.max_to_keep else self._window
        kept = window.last if self.max_to_keep else (newest,)
        directory = os.path.dirname(prefix)
        if self.relative_paths:
            state = state_file.relative_state(directory, [record.identity for record in kept])
        else:
            # As given, unless the working directory has changed since, and the name means another place by now.
            names = [r.prefix if paths.identity(r.prefix) == r.identity else r.identity for r in kept]
            state = state_file.generate_checkpoint_state_proto(directory, names[-1], all_model_checkpoint_paths=names)
        state_file.write_state(paths.state_file(directory, latest_filename), state)
        self._window = window

    def remove_old(self) -> None:
        """Remove checkpoints that have left the window; what cannot be removed is tried again the next time."""
        self._window, decisions = retention.choose(self._window, self.every_n_hours)
        failed = []
        for decision in decisions:
            logger.debug("%s %s: %s", "kept" if decision.keep else "removing", decision.record.prefix, decision.reason)
            if not decision.keep:
                try:
                    remove_checkpoint(decision.record.identity)
                except OSError as error:
                    logger.warning("could not remove the old checkpoint %s: %s", decision.record.prefix, error)
                    failed.append(decision.record)
        self._window = retention.doom_again(self._window, failed)
