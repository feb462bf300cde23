"""A training run in one line: resume, count the steps, save when due and at the end, stop when a signal asks."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TextIO

from torchsaver import arguments
from torchsaver.loop.preemption import DEFAULT_SIGNALS, Preemption, signals_to_watch
from torchsaver.loop.save_timer import SaveTimer, seconds
from torchsaver.loop.step_line import StepLine
from torchsaver.saver import Saver
from torchsaver.storage import paths
from torchsaver.variables.restore_plan import RestoreReport

logger = logging.getLogger("torchsaver")


class TrainingSteps(Iterator[int]):
    """The steps of a training run that are still to be done; made by `training_steps`. Used by one thread.

    Attributes:
        report: What was restored at the start; None when the run began from nothing.
    """

    def __init__(
        self, saver: Saver, save_path: str, *, total: float, timer: SaveTimer, preemption: Preemption, line: StepLine
    ) -> None:
        self.report: RestoreReport | None = None
        self._saver = saver
        self._save_path = save_path
        self._started_in = "" if os.path.isabs(save_path) else os.getcwd()
        self._latest_filename: str | None = None
        self._total = total
        self._timer = timer
        self._preemption = preemption
        self._line = line if line.is_there else None
        self._metrics: dict[str, Any] = {}
        self._done = 0  # steps
        self._look_at: float = 0  # the step after which there is something to do in any case
        self._is_in_step = False
        self._has_begun = self._has_ended = False

    @property
    def metrics(self) -> dict[str, Any]:
        """What the body measured in this step; stored with the checkpoint, if one is saved after it, then forgotten."""
        return self._metrics

    @property
    def stopped_by(self) -> int | None:
        """The signal (a `signal.Signals`) that has asked for the end, or None."""
        return self._preemption.signal

    @property
    def preempted(self) -> bool:
        """Whether a signal has asked for the end."""
        return self._preemption.signal is not None

    def stop(self) -> None:
        """Ask for the end: when the step is done, it is saved, and there is no next one."""
        self._preemption.asked = True

    def close(self) -> None:
        """End it here, save nothing, put the signals' handlers back; a second time does nothing."""
        if not self._has_ended:
            self._has_ended = True
            self._preemption.put_back()
            self._metrics.clear()
            if self._line is not None:
                self._line.erase()

    def resume(self, latest_filename: str | None) -> None:
        """Restore the newest checkpoint, and begin after its steps; `training_steps` has done it.

        Raises:
            ValueError: The checkpoint does not say how many steps it has seen.
        """
        self._latest_filename = latest_filename
        directory = os.path.dirname(self._save_path) or "."
        self.report = report = self._saver.resume(directory, latest_filename=latest_filename)
        if report is not None:
            if report.global_step is None or report.global_step < 0:
                raise ValueError(
                    f"{report.save_path} was saved with global_step={report.global_step}, so it does not say how many "
                    "steps have been done; save it again with a step, or train in another directory"
                )
            self._done = report.global_step
        if self._done > self._total:
            logger.warning("%s is at step %d, beyond the total of %s", self._save_path, self._done, self._total)

    def __iter__(self) -> TrainingSteps:
        self._is_in_step = False  # a step that another for statement has left half-done is done again
        return self

    def __next__(self) -> int:
        if self._is_in_step:
            self._is_in_step = False
            self._done += 1
            if self._preemption.asked or self._done >= self._look_at or self._timer.is_time():
                self._finish_step()
            if self._metrics:
                self._metrics.clear()
            if self._line is not None:
                self._line.show(self._done)
        elif self._has_ended:
            raise StopIteration
        elif not self._has_begun:
            self._begin()
        elif self._preemption.asked:
            self._end()
        self._is_in_step = True
        return self._done

    def _begin(self) -> None:
        """Watch signals, and count from here to the first save; steps that are there already are not saved again."""
        self._has_begun = True
        self._timer.restart(self._done, time.time())
        self._timer.last_step = self._done
        self._look_at = min(self._timer.due_step, self._total)
        self._preemption.watch()
        if self._preemption.asked or self._done >= self._total:
            self._end()
        if self._line is not None:
            self._line.show(self._done)

    def _finish_step(self) -> None:
        if self._preemption.asked or self._done >= self._total:
            self._end()
        if self._timer.is_due(self._done):
            try:
                self._save()
            except BaseException:
                self.close()
                raise
        if self._preemption.asked:  # a signal came during the save
            self._end()

    def _end(self) -> None:
        """Save what has not been saved, see it on the disk, and raise StopIteration."""
        try:
            self._wait()  # a saver that is busy may skip a save, but not the last one
        except Exception:  # nor must it be lost because an earlier one was
            self._save_rest()
            raise
        else:
            self._save_rest()
        finally:
            self.close()
        if self.preempted:
            logger.info("stopped by signal %s after step %d", self.stopped_by, self._done)
        raise StopIteration

    def _save_rest(self) -> None:
        if self._done != self._timer.last_step:
            self._save()
            self._wait()

    def _save(self) -> None:
        started, clock = time.time(), time.perf_counter()
        measured: dict[str, Any] = {"metrics": dict(self._metrics)} if self._metrics else {}
        prefix = self._saver.save(self._path_now(), self._done, latest_filename=self._latest_filename, **measured)
        self._timer.restart(self._done, started)
        if prefix is not None:
            self._timer.last_step = self._done
        self._look_at = min(self._timer.due_step, self._total)
        if self._line is not None:
            self._line.note_save(prefix, time.perf_counter() - clock)

    def _path_now(self) -> str:
        """Return the prefix as given, or the absolute one where the body has changed the working directory."""
        is_the_same = self._started_in in ("", os.getcwd())
        return self._save_path if is_the_same else os.path.join(self._started_in, self._save_path)

    def _wait(self) -> None:
        clock = time.perf_counter()
        self._saver.wait()
        if self._line is not None:
            self._line.note_save(None, time.perf_counter() - clock)

    def __del__(self) -> None:
        self.close()


def training_steps(
    saver: Saver,
    save_path: str | os.PathLike[str],
    *,
    total: int | None,
    save_steps: int | None = None,
    save_secs: float | None = None,
    latest_filename: str | None = None,
    signals: Iterable[int] = DEFAULT_SIGNALS,
    progress: TextIO | Literal[False] | None = None,
) -> TrainingSteps:
    """Return an iterator over the steps that are still to be done: it resumes, saves when due, and stops on a signal.

        for step in ts.training_steps(saver, "run/model.ckpt", total=10_000, save_steps=500, save_secs=600):
            loss = train_one_step(batches[step])

    At once, `saver` resumes from the directory of `save_path`. Steps are numbered from 0 as by `range`, and the step of
    a checkpoint is the number of steps done: "model.ckpt-500" comes after the body has run for 499, and going on from
    it begins with 500. A checkpoint is saved between two steps when `save_steps` steps or `save_secs` seconds have gone
    since the last (or since the start), and at the end unless that has just been done; then the disk is waited for.

    A signal sets a flag, nothing more. When the step is done it is saved, and the loop is over: `stopped_by` says why.
    The job may then exit, to be started again. Handlers of Python that were there are called too (one that raises
    breaks off the step); all are put back at the end. Outside of the main thread signals are not watched.

    A step that is broken off is never saved: after a `break`, or an error in the body, the last checkpoint counts.
    To leave early with a checkpoint call `stop()` and let the body end. After a break the signals' handlers go back
    when the iterator is dropped; call `close()` if it has a name.

    On a terminal a line shows the step, the rate, the last checkpoint, and how long the loop stood still for saving.

    Args:
        saver: What restores and saves; its values are those of the loop: model, optimizer, ...
        save_path: Prefix of the checkpoints; a relative one leads where it does now, wherever the body goes.
        total: Number of steps of the whole run; None: there is no end but `stop()` and signals.
        save_steps: Steps from one save to the next.
        save_secs: Seconds from one save to the next. Without both it saves at the end only.
        latest_filename: Name of the state file, "checkpoint" by default.
        signals: Which ones ask for the end; () for none.
        progress: Where to draw the line, if that is a terminal; standard error by default; False: nowhere.

    Returns:
        The iterator; `report` says what was restored, and `metrics` is a dict for what is measured in a step:
        `steps.metrics["val_loss"] = ...` goes into the checkpoint, if one is saved after this step.

    Raises:
        TypeError, ValueError: An argument is none of what it should be; or the checkpoint to go on from has no step.
        NoValidCheckpointError, MismatchError, UnsupportedCheckpointError, OSError: As `Saver.resume`.
    """
    if not isinstance(saver, Saver):
        raise TypeError(f"saver is a Saver, not {type(saver).__name__}")
    if progress is not None and progress is not False and not hasattr(progress, "isatty"):
        raise TypeError(f"progress is a stream, None (standard error) or False, not {progress!r}")
    whole_total = arguments.whole_number(total, "total", least=0)
    whole_steps = arguments.whole_number(save_steps, "save_steps", least=1)
    limit = math.inf if whole_total is None else whole_total
    path = paths.path_text(save_path)
    arguments.new_prefix(path, 0, latest_filename, False)  # what cannot be saved shows now, not at the first save
    steps = TrainingSteps(
        saver,
        path,
        total=limit,
        timer=SaveTimer(whole_steps, seconds(save_secs, "save_secs")),
        preemption=Preemption(signals_to_watch(signals)),
        line=StepLine(None if progress is False else sys.stderr if progress is None else progress, limit),
    )
    steps.resume(latest_filename)
    return steps
