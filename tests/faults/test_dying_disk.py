"""Whatever call fails while checkpoints are stored: what was promised is there, the caller knows, and saving goes on."""

from __future__ import annotations

import copy
import errno
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from faults import crash_states
from faults.crash_states import Tree
from faults.dying_disk import Fault, Kind, faults, install, open_files
from faults.promises import FORMS, Promise, after_a_save, assign, look, make_repeatable, saving_on, tensors

import torchsaver as ts
from torchsaver.storage import disk, paths

DEAD = f".torchsaver-{'d' * 16}.tmp"  # what a writer that has died left


class Scene:
    """A directory with checkpoints, and what is done there while the disk fails.

    Attributes:
        before: Value of each listed checkpoint, oldest first.
        after: The same when it is done.
        loose: Values that checkpoints outside the list may have.
        max_to_keep: Of every saver here.
    """

    max_to_keep = 1

    def __init__(self, directory: str, old: str, new: str) -> None:
        self.directory, self.prefix = directory, os.path.join(directory, "m")
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.loose: Mapping[str, tuple[float | None, ...]] = {}
        self.variables = tensors(-1.0)
        self.saver = self._saver(old)
        self.prepare()
        if new != old:  # a new process, with other settings
            self.saver = self._saver(new)
            self.saver.resume(directory)

    def _saver(self, form: str) -> ts.Saver:
        return ts.Saver(self.variables, max_to_keep=self.max_to_keep, max_shard_bytes=FORMS.get(form))

    def save(self, step: int, value: float, *, write_state: bool = True) -> None:
        """Save a value under a step."""
        assign(self.variables, value)
        self.saver.save(self.prefix, step, write_state=write_state)

    def prepare(self) -> None:
        """Make what is there before."""
        self.save(1, 1.0)
        self.before = {"m-1": 1.0}

    def act(self) -> None:
        """Do what the faults are to disturb; doing it again gives the same."""
        raise NotImplementedError


class FirstSave(Scene):
    """A save into directories that are not there yet."""

    def prepare(self) -> None:
        self.after = {"m-2": 2.0}

    def act(self) -> None:
        self.save(2, 2.0)


class SaveOver(Scene):
    """A save under the prefix of a checkpoint that is there."""

    def act(self) -> None:
        self.after = {"m-1": 2.0}
        self.save(1, 2.0)


class SaveAfter(Scene):
    """A save beside an older one, which then goes; it also clears away what a dead writer left."""

    def prepare(self) -> None:
        super().prepare()
        Path(self.directory, DEAD).write_bytes(b"half a checkpoint")
        self.after = {"m-2": 2.0}

    def act(self) -> None:
        self.save(2, 2.0)


class Export(Scene):
    """A save that is not listed, over an unlisted one."""

    def prepare(self) -> None:
        super().prepare()
        self.save(2, 2.0, write_state=False)
        self.after, self.loose = self.before, {"m-2": (2.0, 3.0)}

    def act(self) -> None:
        self.save(2, 3.0, write_state=False)


class UpdateState(Scene):
    """update_checkpoint_state, going back to an older checkpoint."""

    max_to_keep = 2

    def prepare(self) -> None:
        super().prepare()
        self.save(2, 2.0)
        self.before, self.after = {"m-1": 1.0, "m-2": 2.0}, {"m-2": 2.0, "m-1": 1.0}

    def act(self) -> None:
        kept = [os.path.join(self.directory, name) for name in self.after]
        ts.update_checkpoint_state(self.directory, kept[-1], all_model_checkpoint_paths=kept)


class Remove(Scene):
    """remove_checkpoint, of an older one."""

    max_to_keep = 2

    def prepare(self) -> None:
        super().prepare()
        self.save(2, 2.0)
        self.before, self.after, self.loose = {"m-1": 1.0, "m-2": 2.0}, {"m-2": 2.0}, {"m-1": (1.0, None)}

    def act(self) -> None:
        ts.remove_checkpoint(os.path.join(self.directory, "m-1"))


ALL = [(old, new) for old in FORMS for new in FORMS]
SAME = [(form, form) for form in FORMS]
SCENES: list[tuple[type[Scene], str, str]] = [
    *((FirstSave, *forms) for forms in SAME),
    *((SaveOver, *forms) for forms in ALL),
    *((SaveAfter, *forms) for forms in ALL),
    *((Export, old, new) for old, new in ALL if old != new),
    (UpdateState, "single", "single"),
    *((Remove, *forms) for forms in SAME),
]
MORE_ERRNOS = (errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)  # each once, in the small scenes


@dataclass
class Outcome:
    """What one fault did: to the caller, to the disk, and to what is done next on a healthy one."""

    fault: Fault
    failed: list[str]
    error: BaseException | None
    leaked: int
    tree: Tree
    broken: list[str] = field(default_factory=list)  # of what was promised
    again: list[str] = field(default_factory=list)  # wrong after the same saver did the same again
    fresh: list[str] = field(default_factory=list)  # wrong after a new process saved

    def __str__(self) -> str:
        return f"{self.fault}, {self.failed[0]}"


class Stage:
    """One scene, played once for each fault. What depends on nothing but the files is worked out once for each tree."""

    def __init__(self, root: str, kind: type[Scene], old: str, new: str) -> None:
        self.root = root
        directory = os.path.join(root, "runs", "one") if kind is FirstSave else os.path.join(root, "run")
        self.scene = kind(directory, old, new)
        self.has_more = kind in (UpdateState, Remove)
        self.start = crash_states.snapshot(root)
        self._known: dict[object, list[str]] = {}

    def _put(self, tree: Tree) -> None:
        crash_states.materialise(tree, self.root)

    def calls(self) -> list[str]:
        """Return the calls that are made when nothing fails."""
        self._put(self.start)
        with pytest.MonkeyPatch.context() as patch:
            healthy = install(patch)
            make_repeatable(patch)
            copy.deepcopy(self.scene).act()
        return healthy.calls

    def outcome(self, fault: Fault) -> Outcome:
        """Play the scene with a fault."""
        self._put(self.start)
        scene = copy.deepcopy(self.scene)
        with pytest.MonkeyPatch.context() as patch:
            make_repeatable(patch)
            dying, before = install(patch, fault), open_files()
            error = _raised(scene.act)
            leaked = open_files() - before
            install(patch)
            outcome = Outcome(fault, dying.failed, error, leaked, crash_states.snapshot(self.root))
            is_acked = error is None
            key = outcome.tree, is_acked
            outcome.broken = self._once(("promise", key), lambda: self._broken(scene, is_acked))
            remembered = _remembered(scene.saver)
            held = fault if leaked > 0 else None  # perhaps with a lock
            outcome.again = self._once(("again", outcome.tree, remembered, held), lambda: self._again(scene))
            outcome.fresh = self._once(("fresh", outcome.tree), lambda: self._fresh(scene, outcome.tree))
        return outcome

    def _once(self, key: object, work: Callable[[], list[str]]) -> list[str]:
        if key not in self._known:
            self._known[key] = work()
        return self._known[key]

    def _broken(self, scene: Scene, is_acked: bool) -> list[str]:
        return Promise(scene.before, scene.after, is_acked, scene.loose).broken_by(look(scene.directory))

    def _fresh(self, scene: Scene, tree: Tree) -> list[str]:
        self._put(tree)
        return saving_on(scene.directory, scene.max_to_keep, loose=scene.loose)

    def _again(self, scene: Scene) -> list[str]:
        error = _raised(scene.act)
        if error is not None:
            return [f"a second time: {error!r}"]
        found = look(scene.directory)
        wrong = Promise(scene.before, scene.after, True, scene.loose).broken_by(found)
        if isinstance(scene, (FirstSave, SaveOver, SaveAfter)):
            return wrong + after_a_save(scene.directory, list(scene.after))
        sweeps = isinstance(scene, Export)
        left = [file for file in found.litter if sweeps or not paths.is_temporary(file)]
        return wrong + [f"a second time leaves {file}" for file in left]


def _remembered(saver: ts.Saver) -> bytes:
    """Return what a saver goes by: two that remember the same do the same, whatever the numbers of their files."""
    rotation = copy.copy(saver._rotation)
    rotation._files = {}
    return pickle.dumps(rotation)


def _raised(function: Callable[[], object]) -> BaseException | None:
    try:
        function()
    except (Exception, KeyboardInterrupt) as error:
        return error
    return None


@pytest.fixture(scope="module", params=SCENES, ids=lambda scene: f"{scene[0].__name__}-{scene[1]}-{scene[2]}")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """What every fault does to a scene."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        make_repeatable(patch)
        stage = Stage(str(tmp_path_factory.mktemp("dying")), *request.param)
    logging.disable(logging.WARNING)  # thousands of warnings
    try:
        return [stage.outcome(fault) for fault in faults(stage.calls(), MORE_ERRNOS if stage.has_more else ())]
    finally:
        logging.disable(logging.NOTSET)


def test_every_fault_is_met(outcomes: list[Outcome]) -> None:
    assert len(outcomes) > 10
    assert [str(outcome.fault) for outcome in outcomes if not outcome.failed] == []


def test_fault_is_reported_as_what_it_is_with_a_path(outcomes: list[Outcome]) -> None:
    def is_right(outcome: Outcome) -> bool:
        error, fault = outcome.error, outcome.fault
        if "interrupt" in fault.kind:
            return isinstance(error, KeyboardInterrupt)
        is_named = isinstance(error, OSError) and error.filename
        return isinstance(error, OSError) and error.errno == fault.errno and bool(is_named)

    raised = [outcome for outcome in outcomes if outcome.error is not None]
    assert [f"{outcome}: {outcome.error!r}" for outcome in raised if not is_right(outcome)] == []
    assert {outcome.fault.kind for outcome in raised} >= {"error", "interrupt", "late interrupt"}


def test_interrupt_is_never_swallowed(outcomes: list[Outcome]) -> None:
    assert [str(o) for o in outcomes if "interrupt" in o.fault.kind and o.error is None] == []


def test_short_write_is_made_up_for(outcomes: list[Outcome]) -> None:
    assert [str(outcome) for outcome in outcomes if outcome.fault.kind == "short" and outcome.error is not None] == []


def test_fault_leaves_the_old_list_or_the_new_one_and_each_checkpoint_on_it_whole(outcomes: list[Outcome]) -> None:
    assert [f"{outcome}: {outcome.broken}" for outcome in outcomes if outcome.broken] == []


def test_fault_leaks_no_file_descriptor(outcomes: list[Outcome]) -> None:
    assert [f"{outcome}: {outcome.leaked}" for outcome in outcomes if outcome.leaked > 0] == []


def test_single_fault_leaves_no_temporary_file(outcomes: list[Outcome]) -> None:
    def left(outcome: Outcome) -> list[str]:
        names = [os.path.basename(path) for path, _ in outcome.tree.files]
        return [name for name in names if paths.is_temporary(name) and name != DEAD]

    once = [o for o in outcomes if not o.fault.sticky and o.failed != ["unlink"]]
    assert [f"{outcome}: {left(outcome)}" for outcome in once if left(outcome)] == []


def test_same_saver_after_a_fault_does_the_same_again_and_leaves_nothing_else(outcomes: list[Outcome]) -> None:
    assert [f"{outcome}: {outcome.again}" for outcome in outcomes if outcome.again] == []


def test_new_process_after_a_fault_goes_on_and_leaves_nothing_else(outcomes: list[Outcome]) -> None:
    assert [f"{outcome}: {outcome.fresh}" for outcome in outcomes if outcome.fresh] == []


# ---- single calls


def test_failed_write_for_want_of_space_says_to_free_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = install(monkeypatch)
    disk.write_atomic(str(tmp_path / "file"), b"data")
    for fault in faults(healthy.calls, [errno.EDQUOT]):
        if fault.errno in (errno.ENOSPC, errno.EDQUOT) and healthy.calls[fault.n - 1] in ("create", "pwrite", "fsync"):
            install(monkeypatch, fault)
            with pytest.raises(OSError, match="free space and save again") as raised:
                disk.write_atomic(str(tmp_path / "file"), b"data")
            assert raised.value.errno == fault.errno
            assert raised.value.filename in (str(tmp_path / "file"), str(tmp_path))


def test_make_directories_after_a_failed_sync_syncs_the_parent_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Fault(3, errno.EIO))  # mkdir, open, fsync
    with pytest.raises(OSError, match="Input/output error"):
        disk.make_directories(str(tmp_path / "a"))
    counting = install(monkeypatch)
    disk.make_directories(str(tmp_path / "a"))
    assert counting.synced == ["directory"]


@pytest.mark.parametrize("kind", ["interrupt", "late interrupt"])
def test_make_directories_interrupted_before_the_sync_syncs_the_parent_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    for n in (2, 3):
        directory = str(tmp_path / str(n))
        install(monkeypatch, Fault(n, kind=kind))
        with pytest.raises(KeyboardInterrupt):
            disk.make_directories(directory)
        counting = install(monkeypatch)
        disk.make_directories(directory)
        assert "directory" in counting.synced or (n, kind) == (3, "late interrupt")


def test_save_after_a_read_error_is_the_newest_by_the_records_too(tmp_path: Path) -> None:
    number, is_met = 0, True
    while is_met:
        directory, number = tmp_path / str(number), number + 1
        variables = tensors(1.0)
        _saved(directory, ts.Saver(variables, max_to_keep=3), 7, 8, 9)
        saver = ts.Saver(variables, max_to_keep=3)
        saver.resume(directory)
        with pytest.MonkeyPatch.context() as patch:
            failing = install(patch, Fault(number))
            error = _raised(partial(saver.save, directory / "m", 2))
            is_met = bool(failing.failed)
        if error is None and is_met:
            (directory / "checkpoint").unlink()
            assert ts.newest_valid_checkpoint(directory) == str(directory / "m-2"), number


def _saved(directory: Path, saver: ts.Saver, *steps: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        for step in steps:
            saver.save(directory / "m", step)
