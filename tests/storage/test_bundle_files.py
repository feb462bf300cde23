"""TensorFlow's checkpoints on disk: whatever fails, and whenever the power does, the old one is there or the new one."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from faults import crash_states
from faults.crash_states import MODELS, Model, materialise, snapshot
from faults.dying_disk import DyingDisk, Fault, faults, install, open_files
from faults.operations import Recording
from faults.promises import make_repeatable
from formats import bundles

from torchsaver.formats.tensorflow.bundle_writer import BundleWriter, Part
from torchsaver.formats.tensorflow.data_types import BY_TORCH_NAME
from torchsaver.storage import bundle_files, disk, locks, paths
from torchsaver.storage.bundle_files import write_bundle

FLOAT = BY_TORCH_NAME["float32"]


def writer(value: float, shards: int = 1) -> BundleWriter:
    """Return a bundle of this value, all of whose bytes depend on it, in so many data files."""
    parts = [Part(b"%d" % n, FLOAT, (3,), torch.full((3,), value + n / 8)) for n in range(4)]
    return BundleWriter([parts[n::shards] for n in range(shards)])


def value_of(prefix: str) -> float | None:
    """Return the value of the bundle that is there; an error, or an AssertionError, when it is no save's."""
    found = bundles.stored(prefix)
    if found is None:
        return None
    numbers = [torch.frombuffer(bytearray(found[b"%d" % n]), dtype=torch.float32).tolist() for n in range(4)]
    value: float = numbers[0][0]
    assert numbers == [[value + n / 8] * 3 for n in range(4)], "torn"
    return value


def files(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def install_all(patch: pytest.MonkeyPatch, fault: Fault | None = None, recording: Recording | None = None) -> DyingDisk:
    """Put a disk in place of the real one, in the module tested here too."""
    dying = install(patch, fault, recording, os.getcwd())
    patch.setattr(bundle_files, "os", dying)
    return dying


# ---- names


def test_bundle_has_an_index_and_a_data_file_for_each_shard(tmp_path: Path) -> None:
    write_bundle(str(tmp_path / "new" / "m"), writer(1, shards=2))
    assert files(tmp_path / "new") == ["m.data-00000-of-00002", "m.data-00001-of-00002", "m.index"]
    assert value_of(str(tmp_path / "new" / "m")) == 1


def test_prefix_without_a_directory_is_in_the_working_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bundle("m", writer(1))
    write_bundle("m", writer(2), overwrite=True)
    assert value_of("m") == 2


def test_bundle_that_is_there_is_not_replaced_unless_that_is_asked_for(tmp_path: Path) -> None:
    prefix = str(tmp_path / "m")
    write_bundle(prefix, writer(1))
    before = snapshot(str(tmp_path))
    with pytest.raises(FileExistsError, match="pass overwrite=True") as raised:
        write_bundle(prefix, writer(2))
    assert raised.value.filename == f"{prefix}.index"
    assert snapshot(str(tmp_path)) == before


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_replacing_takes_no_name_of_the_old_data_files_and_removes_them(shards: int, tmp_path: Path) -> None:
    prefix = str(tmp_path / "m")
    write_bundle(prefix, writer(1))
    write_bundle(prefix, writer(2, shards), overwrite=True)
    count = max(shards, 2)
    assert files(tmp_path) == [*(f"m.data-{n:05d}-of-{count:05d}" for n in range(count)), "m.index"]
    assert value_of(prefix) == 2
    sizes = [(tmp_path / f"m.data-{n:05d}-of-{count:05d}").stat().st_size for n in range(count)]
    assert [size == 0 for size in sizes] == [n >= shards for n in range(count)]


def test_replacing_again_and_again_goes_between_two_names(tmp_path: Path) -> None:
    prefix, seen = str(tmp_path / "m"), []
    for value in range(4):
        write_bundle(prefix, writer(value), overwrite=True)
        assert value_of(prefix) == value
        seen.append(files(tmp_path)[0])
    assert seen == ["m.data-00000-of-00001", "m.data-00000-of-00002"] * 2


def test_data_files_without_an_index_are_replaced_and_others_left_alone(tmp_path: Path) -> None:
    left = ["m.data-00000-of-00001", "m.data-00000-of-00002", "m.data-00001-of-00002"]
    others = ["m", "m.data", "m.data-00000-of-00001x", "m.data-0-of-1", "m.meta", "m2.data-00000-of-00002"]
    others += ["mXdata-00000-of-00002", "xm.data-00000-of-00002", "m-1.data-00000-of-00001"]
    for name in left + others:
        (tmp_path / name).write_bytes(b"x")
    write_bundle(str(tmp_path / "m"), writer(1))
    assert files(tmp_path) == sorted([*others, "m.data-00000-of-00001", "m.index"])
    assert value_of(str(tmp_path / "m")) == 1


def test_prefix_is_no_pattern(tmp_path: Path) -> None:
    write_bundle(str(tmp_path / "ma"), writer(1))
    write_bundle(str(tmp_path / "m[a]"), writer(2))
    write_bundle(str(tmp_path / "m."), writer(3))
    write_bundle(str(tmp_path / "m."), writer(4, 2), overwrite=True)
    assert [value_of(str(tmp_path / name)) for name in ("ma", "m[a]", "m.")] == [1, 2, 4]


@pytest.mark.parametrize("name", ["m.index", "m.data-00000-of-00001"])
def test_directory_in_the_way_is_told_before_anything_is_written(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match="move it away") as raised:
        write_bundle(str(tmp_path / "m"), writer(1))
    assert raised.value.filename == str(tmp_path / name)
    assert files(tmp_path) == [name]


def test_name_that_is_too_long_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long"):
        write_bundle(str(tmp_path / "new" / ("m" * 245)), writer(1))
    assert files(tmp_path / "new") == []


def test_leftover_of_a_dead_writer_is_swept(tmp_path: Path) -> None:
    (tmp_path / f".torchsaver-{'d' * 16}.tmp").write_bytes(b"half")
    write_bundle(str(tmp_path / "m"), writer(1))
    assert files(tmp_path) == ["m.data-00000-of-00001", "m.index"]


def test_files_honour_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bundle(str(tmp_path / "m"), writer(1))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


# ---- two processes


class Meanwhile(BundleWriter):
    """Does something else between the writing of the data and its publication."""

    def __init__(self, value: float, act: Callable[[], object]) -> None:
        super().__init__([[Part(b"%d" % n, FLOAT, (3,), torch.full((3,), value + n / 8)) for n in range(4)]])
        self._act = act

    def format_index(self, shard_count: int | None = None) -> bytes:
        self._act()
        return super().format_index(shard_count)


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_that_save_at_a_time_one_is_there_and_the_other_is_told(is_first: bool, tmp_path: Path) -> None:
    prefix = str(tmp_path / "m")
    if not is_first:
        write_bundle(prefix, writer(1))
    slow = Meanwhile(3, lambda: write_bundle(prefix, writer(2), overwrite=True))
    with pytest.raises(FileExistsError, match="let one save"):
        write_bundle(prefix, slow, overwrite=True)
    assert value_of(prefix) == 2
    assert len(files(tmp_path)) == (2 if is_first else 3)


def test_bundle_that_goes_while_it_is_to_be_replaced_is_no_obstacle(tmp_path: Path) -> None:
    prefix = str(tmp_path / "m")
    write_bundle(prefix, writer(1))
    write_bundle(prefix, Meanwhile(2, lambda: os.unlink(f"{prefix}.index")), overwrite=True)
    assert value_of(prefix) == 2


def test_publication_waits_for_the_lock_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECS", 0.0)
    held = locks.Descriptor(os.open(tmp_path, os.O_RDONLY))
    assert locks.acquire(held.fd)
    with pytest.raises(TimeoutError):
        write_bundle(str(tmp_path / "m"), writer(1))
    held.close()
    assert files(tmp_path) == []


# ---- a disk that dies


@pytest.fixture(autouse=True)
def _without_log() -> Iterator[None]:
    """Hundreds of warnings of files that could not be removed."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def _nothing(prefix: str) -> None:
    """Stand for what is there before: no directory."""


def _leftovers(prefix: str) -> None:
    os.makedirs(os.path.dirname(prefix))
    for name in ("00000-of-00001", "00000-of-00003"):
        Path(f"{prefix}.data-{name}").write_bytes(b"half")


def _of_one(prefix: str) -> None:
    write_bundle(prefix, writer(1))


def _of_two(prefix: str) -> None:
    write_bundle(prefix, writer(1, shards=2))


SCENES = [(_nothing, 1), (_nothing, 2), (_leftovers, 1), (_of_one, 1), (_of_one, 2), (_of_two, 1), (_of_two, 2)]


@dataclass
class Outcome:
    """What one fault did."""

    fault: Fault
    failed: list[str]
    error: BaseException | None
    found: float | None
    leaked: int
    left: list[str]
    again: list[str]  # files after another save, without a fault

    def __str__(self) -> str:
        return f"{self.fault}, {self.failed}: {self.error!r}, value {self.found}, left {self.left}"


@dataclass
class Played:
    """A scene, with every fault."""

    old: float | None
    outcomes: list[Outcome] = field(default_factory=list)


@pytest.fixture(scope="module", params=SCENES, ids=lambda scene: f"{scene[0].__name__[1:]}-{scene[1]}")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played:
    before, shards = request.param
    root = tmp_path_factory.mktemp("dying")
    prefix = str(root / "run" / "m")
    with pytest.MonkeyPatch.context() as patch:
        make_repeatable(patch)
        install_all(patch)
        before(prefix)
        start, scene = snapshot(str(root)), Played(value_of(prefix))
        healthy = install_all(patch)
        write_bundle(prefix, writer(2, shards), overwrite=True)
        for fault in faults(tuple(healthy.calls), [errno.EACCES]):
            materialise(start, str(root))
            scene.outcomes.append(_outcome(patch, prefix, fault, shards))
    return scene


def _outcome(patch: pytest.MonkeyPatch, prefix: str, fault: Fault, shards: int) -> Outcome:
    dying, before, error = install_all(patch, fault), open_files(), None
    try:
        write_bundle(prefix, writer(2, shards), overwrite=True)
    except (OSError, KeyboardInterrupt) as caught:
        error = caught
    leaked = open_files() - before
    install_all(patch)
    directory = os.path.dirname(prefix)
    left = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    found = value_of(prefix)
    write_bundle(prefix, writer(3), overwrite=True)
    assert value_of(prefix) == 3
    return Outcome(fault, dying.failed, error, found, leaked, left, sorted(os.listdir(directory)))


def test_every_fault_is_met(played: Played) -> None:
    assert len(played.outcomes) > 50
    assert all(outcome.failed for outcome in played.outcomes)


def test_fault_leaves_what_was_there_or_the_whole_new_bundle(played: Played) -> None:
    assert [str(o) for o in played.outcomes if o.found not in (played.old, 2)] == []


def test_save_that_returns_has_saved_whatever_failed(played: Played) -> None:
    assert [str(o) for o in played.outcomes if o.error is None and o.found != 2] == []


def test_save_that_fails_before_its_last_name_leaves_what_was_there(played: Played) -> None:
    failed = [o for o in played.outcomes if o.error is not None]
    assert {o.found for o in failed} >= {played.old}
    assert sum(o.found == played.old for o in failed) > len(failed) / 2


def test_fault_is_told_as_what_it_is(played: Played) -> None:
    for outcome in played.outcomes:
        if "interrupt" in outcome.fault.kind:
            assert isinstance(outcome.error, KeyboardInterrupt), str(outcome)
        elif outcome.error is not None:
            assert isinstance(outcome.error, OSError), str(outcome)
            assert outcome.error.errno == outcome.fault.errno
            assert outcome.error.filename


def test_fault_leaks_no_file_descriptor(played: Played) -> None:
    assert [str(o) for o in played.outcomes if o.leaked > 0] == []


def test_single_fault_leaves_no_temporary_file(played: Played) -> None:
    once = [o for o in played.outcomes if not o.fault.sticky and o.failed != ["unlink"]]
    assert [str(o) for o in once if any(map(paths.is_temporary, o.left))] == []


def test_failed_save_leaves_no_data_file_that_was_not_there(played: Played) -> None:
    once = [o for o in played.outcomes if o.fault.kind == "error" and not o.fault.sticky and o.failed != ["unlink"]]
    if played.old is None:
        assert [str(o) for o in once if o.found is None and "m.data-00000-of-00002" in o.left] == []
    else:
        counts = {len(o.left) for o in once if o.found == played.old}
        assert len(counts) == 1


def test_next_save_leaves_its_own_files_and_nothing_else(played: Played) -> None:
    for outcome in played.outcomes:
        count = int(outcome.again[0][-5:])
        assert outcome.again == [*(f"m.data-{n:05d}-of-{count:05d}" for n in range(count)), "m.index"], str(outcome)
        assert count <= 4


# ---- power loss


def _saves(save: Callable[[float, int], None], prefix: str) -> None:
    for value, shards in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 1)):
        save(value, shards)


def _removed_by_hand(save: Callable[[float, int], None], prefix: str) -> None:
    save(1, 1)
    disk.remove(f"{prefix}.index")  # and nobody syncs
    save(2, 1)
    disk.remove(f"{prefix}.index")
    disk.remove(f"{prefix}.data-00000-of-00001")
    save(3, 1)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("script", [_saves, _removed_by_hand])
def test_power_loss_leaves_the_last_bundle_saved_or_the_one_on_its_way(
    script: Callable[..., None], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, done = Recording(), [0.0]
    monkeypatch.chdir(tmp_path)
    make_repeatable(monkeypatch)
    install_all(monkeypatch, recording=recording)
    prefix = str(tmp_path / "run" / "m")

    def save(value: float, shards: int) -> None:
        recording.save_started(len(done))
        write_bundle(prefix, writer(value, shards), overwrite=True)
        recording.save_acked(len(done))
        done.append(value)

    script(save, prefix)
    install_all(monkeypatch)
    monkeypatch.undo()
    seen = set()
    for tree, promised in crash_states.distinct(crash_states.states(recording, model, settle=False)).items():
        materialise(tree, str(tmp_path))
        try:
            found = value_of(prefix)
        except FileNotFoundError:  # an index removed by hand is back, and the data file that was too is not
            assert script is _removed_by_hand
            found = None
        for state in promised:
            allowed = {done[len(state.acked)] or None}
            if state.in_flight is not None:
                allowed.add(done[state.in_flight])
            if script is _removed_by_hand:
                allowed |= {None, *done[: len(state.acked)]}
            assert found in allowed, f"after {state.operations} operations: {found}, and {allowed} was promised"
            seen.add(found)
    assert seen >= set(done[1:])
