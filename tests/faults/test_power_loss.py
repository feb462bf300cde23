"""Whenever the power fails: the last save that returned is there, whole, and saving goes on; on each state of the disk.

What savers do is recorded once, as operations; `crash_states` works out every directory a power loss may leave of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pytest
from faults.crash_states import MODELS, Model, State, Tree, distinct, final_tree, materialise, snapshot, states
from faults.dying_disk import install
from faults.operations import Recording
from faults.promises import FORMS, Promise, assign, look, make_repeatable, saving_on, tensors

import torchsaver as ts
from torchsaver.storage import disk, paths

MAX_TO_KEEP = 2
MOST_SHOWN = 2  # broken promises; each may have taken a while, when something hangs


@dataclass
class Run:
    """What a training program does with its directory, recorded.

    Attributes:
        root: What is recorded: the directory above the checkpoints' own.
        recording: What was done.
        windows: Value of each listed checkpoint, oldest first, after 0, 1, 2, ... of its acts.
    """

    root: str
    recording: Recording = field(default_factory=Recording)
    windows: list[dict[str, float]] = field(default_factory=lambda: [{}])

    def __post_init__(self) -> None:
        self.directory = os.path.join(self.root, "run")
        self.variables = tensors(-1.0)
        self.go_on("single")

    def go_on(self, form: str) -> None:
        """Go on as a new process would, that saves in this form."""
        self.saver = ts.Saver(self.variables, max_to_keep=MAX_TO_KEEP, max_shard_bytes=FORMS[form])
        self.saver.resume(self.directory)

    def save(self, step: int) -> None:
        """Save the next value under a step."""
        value = float(len(self.windows))
        assign(self.variables, value)
        older = {name: old for name, old in self.windows[-1].items() if name != f"m-{step}"}
        kept = dict(list(older.items())[-MAX_TO_KEEP + 1 :])
        self._do(lambda: self.saver.save(os.path.join(self.directory, "m"), step), {**kept, f"m-{step}": value})

    def set_back(self) -> None:
        """Make the older checkpoint the newest again."""
        after = dict(reversed(self.windows[-1].items()))
        kept = list(after)
        self._do(
            lambda: ts.update_checkpoint_state(self.directory, kept[-1], all_model_checkpoint_paths=kept),
            after,
        )

    def _do(self, act: Callable[[], object], after: dict[str, float]) -> None:
        number = len(self.windows)
        self.windows.append(after)
        self.recording.save_started(number)
        act()
        self.recording.save_acked(number)

    def promise(self, state: State) -> Promise:
        """Return what must be there in a state."""
        done = len(state.acked)
        is_acked = state.in_flight is None
        before, after = self.windows[done], self.windows[done if is_acked else done + 1]
        gone = {name for window in self.windows[:done] for name in window} - {*before, *after}
        values = {name: {None, *(window.get(name) for window in self.windows)} for name in gone}
        return Promise(before, after, is_acked, values)  # that a file was removed may be lost


@pytest.fixture(autouse=True)
def _without_log() -> Iterator[None]:
    """Thousands of warnings of damage that was done on purpose."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def _three_saves(run: Run, form: str) -> None:
    run.go_on(form)
    for step in (1, 2, 3):
        run.save(step)


def _resave(run: Run, form: str) -> None:
    run.go_on(form)
    for step in (1, 2, 2):
        run.save(step)


def _change_of_form(run: Run, form: str) -> None:
    run.go_on(next(other for other in FORMS if other != form))
    run.save(1)
    run.go_on(form)
    run.save(1)
    run.save(2)


def _update_state(run: Run, form: str) -> None:
    run.go_on(form)
    run.save(1)
    run.save(2)
    run.set_back()
    run.go_on(form)  # as in TF, a saver is not told
    run.save(3)


SCRIPTS: dict[str, tuple[Callable[[Run, str], None], str]] = {
    "three-saves": (_three_saves, "single"),
    "three-sharded-saves": (_three_saves, "sharded"),
    "resave": (_resave, "single"),
    "sharded-resave": (_resave, "sharded"),
    "single-over-sharded": (_change_of_form, "single"),
    "sharded-over-single": (_change_of_form, "sharded"),
    "update-state": (_update_state, "single"),
}


def _recorded(patch: pytest.MonkeyPatch, root: Path, name: str) -> Run:
    script, form = SCRIPTS[name]
    run = Run(str(root))
    make_repeatable(patch)
    install(patch, recording=run.recording, root=run.root)
    script(run, form)
    install(patch)
    return run


def _broken(run: Run, model: Model) -> Iterator[str]:
    """Yield every promise that some state breaks."""
    for tree, promised in _different(run, model).items():
        materialise(tree, run.root)
        found = look(run.directory)
        wrong = [f"{s.operations} operations: {text}" for s in promised for text in run.promise(s).broken_by(found)]
        wrong += [] if wrong else saving_on(run.directory, MAX_TO_KEEP)
        yield from (f"{text}; {_shown(tree)}" for text in wrong)


def _different(run: Run, model: Model) -> dict[Tree, list[State]]:
    """Return states by tree; of trees that differ in temporary files, which only a sweep looks at, that with most."""
    found: dict[tuple[object, ...], list[State]] = {}
    for tree, promised in distinct(states(run.recording, model, settle=False)).items():
        lasting = tuple(file for file in tree.files if not paths.is_temporary(os.path.basename(file[0])))
        found.setdefault((tree.directories, lasting), []).extend(promised)
    return {max((s.tree for s in every), key=lambda tree: len(tree.files)): every for every in found.values()}


def _shown(tree: Tree) -> str:
    return ", ".join(f"{path} ({len(data)} bytes)" for path, data in tree.files)


@pytest.mark.parametrize("name", SCRIPTS)
def test_recording_of_the_calls_ends_as_the_directory_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = _recorded(monkeypatch, tmp_path, name)
    assert final_tree(run.recording) == snapshot(run.root)
    assert Promise({}, run.windows[-1], is_acked=True).broken_by(look(run.directory)) == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_power_loss_leaves_what_was_promised_and_saving_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, model: Model
) -> None:
    assert list(islice(_broken(_recorded(monkeypatch, tmp_path, name), model), MOST_SHOWN)) == []


# ---- protocols that are wrong are found out


def _without_sync(*_args: object) -> None:
    """Stand in for a sync that was forgotten."""


WRONG: dict[str, tuple[object, str, object, tuple[Model, ...]]] = {
    "no-directory-sync": (disk, "sync_directory", _without_sync, ("weak",)),
    "no-file-sync": (disk.NewFile, "sync", _without_sync, MODELS),
}


@pytest.mark.parametrize("name", ["three-saves", "three-sharded-saves"])
@pytest.mark.parametrize("forgotten", WRONG)
def test_power_loss_breaks_a_promise_when_a_sync_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, forgotten: str
) -> None:
    target, attribute, stand_in, models = WRONG[forgotten]
    monkeypatch.setattr(target, attribute, stand_in)
    run = _recorded(monkeypatch, tmp_path, name)
    assert all(next(_broken(run, model), None) for model in models)
