"""Waiting for another process's checkpoints, each of which stays in place while it is looked at."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator

from torchsaver.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.loop.save_timer import seconds
from torchsaver.open_checkpoint import OpenCheckpoint
from torchsaver.storage import locks, paths
from torchsaver.storage.state_file import latest_checkpoint

logger = logging.getLogger("torchsaver")

_POLL_SECS = 1.0


def checkpoints_iterator(
    checkpoint_dir: str | os.PathLike[str],
    *,
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], object] | None = None,
) -> Iterator[str]:
    """Return an iterator over the newest checkpoints of a directory, as they come.

        for save_path in ts.checkpoints_iterator("run", timeout=3600):
            saver.restore(save_path)
            print(save_path, evaluate(model))

    As in TF, it looks once a second; those that come while the caller is busy are missed, but for the newest; the same
    name saved again is not new; and `timeout_fn` is asked after each checkpoint too. Unlike TF, savers of other
    processes leave a checkpoint in place until the next one is asked for, or the iterator is closed or dropped; one
    that is removed before it could be held is not yielded, and the next is looked for. (This process holds one
    checkpoint of a directory: `newest_valid_checkpoint` and `resume` of the same one let it go.)

    Args:
        checkpoint_dir: The directory; it need not be there yet.
        min_interval_secs: Seconds from one checkpoint to the next, at least.
        timeout: Seconds to wait for each checkpoint; None: for ever. As in TF, under 1 does not wait at all.
        timeout_fn: Asked when the time is over, and after each checkpoint; true ends it, false goes on waiting.
            Without it the first time-out is the end.

    Returns:
        An iterator over prefixes, for `restore`.

    Raises:
        TypeError, ValueError: At once: an argument is none of what it should be.
        CorruptCheckpointError, OSError: While waiting: as `latest_checkpoint`.
    """
    directory = paths.path_text(checkpoint_dir, "checkpoint_dir")
    interval = seconds(min_interval_secs, "min_interval_secs", or_zero=True) or 0.0
    if timeout_fn is not None and not callable(timeout_fn):
        raise TypeError(f"timeout_fn is a function or None, not {type(timeout_fn).__name__}")
    return _checkpoints(directory, interval, seconds(timeout, "timeout", or_zero=True), timeout_fn)


def _checkpoints(
    directory: str, min_interval_secs: float, timeout: float | None, timeout_fn: Callable[[], object] | None
) -> Iterator[str]:
    last: str | None = None
    while True:
        newest = _wait(directory, last, timeout)
        if newest is not None:
            last, start = newest, time.time()
            try:
                yield newest
            finally:
                locks.unpin(os.path.dirname(newest))
            if (pause := start + min_interval_secs - time.time()) > 0:
                time.sleep(min(pause, min_interval_secs))  # no longer, had the clock been set back
        elif timeout_fn is None:
            logger.info("no new checkpoint in %s for %g s", directory, timeout)
            return
        if timeout_fn is not None and timeout_fn():
            return


def _wait(directory: str, last: str | None, timeout: float | None) -> str | None:
    """Return the newest checkpoint, held, as soon as it is another than `last`; None when the time is over."""
    stop = None if timeout is None else time.time() + timeout
    while (newest := _held(directory, last)) is None:
        if stop is not None and time.time() + _POLL_SECS > stop:
            return None
        time.sleep(_POLL_SECS)
    return newest


def _held(directory: str, last: str | None) -> str | None:
    """Return the newest checkpoint, held, if it is another than `last`."""
    gone = None
    while (newest := latest_checkpoint(directory)) not in (None, last, gone):
        if _pin(str(newest)):
            return newest
        gone = newest  # rotated away just now: then there is a newer one
    return None


def _pin(prefix: str) -> bool:
    """Hold a checkpoint's files; return False when they are gone. Of a damaged one the restore will tell."""
    try:
        with OpenCheckpoint(prefix) as checkpoint:
            return locks.pin(os.path.dirname(prefix), {file.path: file.fileno() for file in checkpoint.files})
    except (CheckpointNotFoundError, FileNotFoundError):
        return False
    except (CorruptCheckpointError, UnsupportedCheckpointError) as error:
        return not isinstance(error.__cause__, FileNotFoundError)  # a shard, gone with its index
