"""Going on after a crash: the newest checkpoint that holds is found, older ones only for damage, and never in silence."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import flip

import torchsaver as ts
from torchsaver.formats import regular_file
from torchsaver.storage import locks


def _run(directory: Path, steps: range, **settings: Any) -> ts.Saver:
    """Save each step with its number as the value."""
    value = torch.zeros(4)
    saver = ts.Saver({"x": value}, **settings)
    for step in steps:
        value.fill_(step)
        saver.save(directory / "m", step)
    return saver


def _resumed(directory: Path, **settings: Any) -> tuple[ts.Saver, ts.RestoreReport | None, float]:
    value = torch.full((4,), -1.0)
    saver = ts.Saver({"x": value}, **settings)
    report = saver.resume(directory)
    return saver, report, value[0].item()


# ---- which one


def test_newest_valid_of_an_undamaged_directory_is_the_latest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _run(tmp_path, range(1, 5))
    assert ts.newest_valid_checkpoint(tmp_path) == ts.latest_checkpoint(tmp_path) == str(tmp_path / "m-4")
    assert caplog.records == []


@pytest.mark.parametrize("there", [True, False])
def test_newest_valid_where_nothing_was_ever_saved_is_none(tmp_path: Path, there: bool) -> None:
    directory = tmp_path if there else tmp_path / "missing"
    assert ts.newest_valid_checkpoint(directory) is None
    assert ts.Saver({"x": torch.ones(1)}).resume(directory) is None


@pytest.mark.parametrize("position", [3, 40, 200, -1])
def test_newest_valid_skips_damage_with_a_warning_that_names_it(
    tmp_path: Path, position: int, caplog: pytest.LogCaptureFixture
) -> None:
    _run(tmp_path, range(1, 4))
    flip(tmp_path / "m-3.safetensors", position)
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-2")
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert str(tmp_path / "m-3") in record.getMessage()


def test_newest_valid_of_sharded_ones_skips_a_damaged_shard_and_a_missing_one(tmp_path: Path) -> None:
    values = {key: torch.full((4,), 1.0) for key in "ab"}
    saver = ts.Saver(values, max_shard_bytes=16)
    for step in (1, 2, 3):
        saver.save(tmp_path / "m", step)
    flip(tmp_path / "m-3-00002-of-00002.safetensors")
    (tmp_path / "m-2-00001-of-00002.safetensors").unlink()
    report = ts.Saver(values).resume(tmp_path)
    assert report is not None
    assert report.save_path == str(tmp_path / "m-1")
    assert [skip.save_path for skip in report.skipped] == [str(tmp_path / "m-3"), str(tmp_path / "m-2")]


def test_newest_valid_goes_by_the_state_file_not_by_step_or_time_of_modification(tmp_path: Path) -> None:
    saver = _run(tmp_path, range(7, 10))
    saver.save(tmp_path / "m", 1)
    for step, seconds in ((1, 10), (7, 40), (8, 30), (9, 20)):
        os.utime(tmp_path / f"m-{step}.safetensors", (seconds, seconds))
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-1")


def test_newest_valid_follows_a_state_file_that_was_set_back_by_hand(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 4))
    ts.update_checkpoint_state(tmp_path, "m-2", all_model_checkpoint_paths=["m-1", "m-2"])
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-2")


@pytest.mark.parametrize("data", [None, b"", b"garbage", b"\xff\xfe", b'model_checkpoint_path: "m-5"', b"\0" * 90])
def test_newest_valid_with_a_lost_or_damaged_state_file_goes_by_the_order_of_commit(
    tmp_path: Path, data: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    saver = _run(tmp_path, range(7, 10), max_to_keep=3)
    saver.save(tmp_path / "m", 1)
    for step, seconds in ((1, 10), (8, 30), (9, 20)):
        os.utime(tmp_path / f"m-{step}.safetensors", (seconds, seconds))
    state = tmp_path / "checkpoint"
    state.unlink() if data is None else state.write_bytes(data)
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-1")
    again, report, value = _resumed(tmp_path, max_to_keep=3)
    assert (report is not None and report.global_step, value) == (1, 9.0)
    assert again.last_checkpoints == [str(tmp_path / name) for name in ("m-8", "m-9", "m-1")]
    assert (data is None) == (caplog.records == [])


def test_newest_valid_without_a_state_file_does_not_take_what_was_never_to_be_listed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    ts.Saver({"x": torch.ones(1)}).save(tmp_path / "export", write_state=False)
    save_file({"x": torch.ones(1)}, tmp_path / "pretrained.safetensors")
    assert ts.newest_valid_checkpoint(tmp_path) is None


def test_newest_valid_of_another_state_file_is_its_own(tmp_path: Path) -> None:
    saver = ts.Saver({"x": torch.ones(1)})
    saver.save(tmp_path / "best", 1, latest_filename="best_state")
    ts.Saver({"x": torch.ones(1)}).save(tmp_path / "m", 2)
    for name in ("best_state", "checkpoint"):
        (tmp_path / name).unlink()
    assert ts.newest_valid_checkpoint(tmp_path, latest_filename="best_state") == str(tmp_path / "best-1")
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-2")


# ---- loud


def test_resume_where_no_checkpoint_holds_raises_with_every_reason_and_changes_nothing(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 3))
    flip(tmp_path / "m-1.safetensors")
    (tmp_path / "m-2.safetensors").write_bytes(b"")
    value = torch.full((4,), -1.0)
    saver = ts.Saver({"x": value})
    with pytest.raises(ts.NoValidCheckpointError) as caught:
        saver.resume(tmp_path)
    assert caught.value.checkpoint_dir == str(tmp_path)
    assert [os.path.basename(skip.save_path) for skip in caught.value.skipped] == ["m-2", "m-1"]
    assert "checksum" in caught.value.skipped[1].reason
    assert (value[0].item(), saver.last_checkpoints) == (-1.0, [])


@pytest.mark.parametrize("gone", ["files", "files and half the state"])
def test_resume_where_all_checkpoints_are_gone_raises(tmp_path: Path, gone: str) -> None:
    _run(tmp_path, range(1, 3))
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    if gone != "files":
        (tmp_path / "checkpoint").write_bytes(b"model_check")
    with pytest.raises(ts.NoValidCheckpointError, match="gone" if gone == "files" else "no state file"):
        ts.Saver({"x": torch.ones(4)}).resume(tmp_path)


def test_resume_reports_what_it_skipped(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 4))
    flip(tmp_path / "m-3.safetensors")
    _, report, value = _resumed(tmp_path)
    assert report is not None
    assert (report.save_path, report.global_step, value) == (str(tmp_path / "m-2"), 2, 2.0)
    assert [skip.save_path for skip in report.skipped] == [str(tmp_path / "m-3")]
    assert "1 skipped" in repr(report)


def test_resume_into_variables_that_do_not_fit_raises_and_takes_no_older_one(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 3))
    other = torch.zeros(5)
    saver = ts.Saver({"x": other})
    with pytest.raises(ts.MismatchError, match="m-2"):
        saver.resume(tmp_path)
    assert (other.tolist(), saver.last_checkpoints) == ([0.0] * 5, [])


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("call", ["open", "preadv", "listdir", "stat"])
def test_error_of_reading_is_raised_and_never_an_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    _run(tmp_path, range(1, 3))
    real, target = getattr(os, call), str(tmp_path if call == "listdir" else tmp_path / "m-2.safetensors")
    if call == "listdir":
        (tmp_path / "checkpoint").unlink()

    def failing(path: Any, *args: Any, **kwargs: Any) -> Any:
        if path == target or (isinstance(path, int) and os.readlink(f"/proc/self/fd/{path}") == target):
            raise OSError(number, os.strerror(number), path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match=os.strerror(number)):
        ts.newest_valid_checkpoint(tmp_path)


def test_checkpoint_of_a_newer_version_is_an_error_and_no_older_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(tmp_path, range(1, 2))
    with monkeypatch.context() as patch:
        patch.setattr("torchsaver.formats.manifest.FORMAT_VERSION", 2)
        saver, _, _ = _resumed(tmp_path)
        saver.save(tmp_path / "m", 2)
    with pytest.raises(ts.UnsupportedCheckpointError, match="newer"):
        ts.newest_valid_checkpoint(tmp_path)


# ---- only inside the directory


@pytest.mark.parametrize("text", ["{0}/other/m-3", "../other/m-3", "./../other/m-3", "sub/../../other/m-3", "x\\000y"])
def test_state_file_that_names_another_place_leads_nowhere(tmp_path: Path, text: str) -> None:
    _run(tmp_path / "other", range(3, 4))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").write_text(f'model_checkpoint_path: "{text.format(tmp_path)}"\n')
    with pytest.raises(ts.NoValidCheckpointError, match="does not stand in the directory"):
        ts.newest_valid_checkpoint(tmp_path / "run")
    _run(tmp_path / "run", range(1, 2))
    assert ts.newest_valid_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "m-1")


def test_state_file_with_absolute_paths_into_its_own_directory_is_followed(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 3), save_relative_paths=False)
    assert (tmp_path / "checkpoint").read_text().count(str(tmp_path)) == 3
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-2")


# ---- the list goes on


def test_resume_goes_on_with_the_list_in_order_of_saving(tmp_path: Path) -> None:
    first = _run(tmp_path, range(7, 10), max_to_keep=3)
    first.save(tmp_path / "m", 1)
    saver, _, _ = _resumed(tmp_path, max_to_keep=3)
    assert saver.last_checkpoints == first.last_checkpoints
    saver.save(tmp_path / "m", 2)
    assert saver.last_checkpoints == [str(tmp_path / name) for name in ("m-9", "m-1", "m-2")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("checkpoint", "m-1.safetensors", "m-2.safetensors", "m-9.safetensors")
    ]


def test_resume_with_a_smaller_window_shrinks_the_list_at_the_next_save(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 6))
    saver, _, _ = _resumed(tmp_path, max_to_keep=2)
    assert len(list(tmp_path.glob("*.safetensors"))) == 5
    saver.save(tmp_path / "m", 6)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["m-5.safetensors", "m-6.safetensors"]


def test_resume_past_damage_leaves_the_damaged_file_and_drops_it_from_the_list(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 4), max_to_keep=2)
    flip(tmp_path / "m-3.safetensors")
    saver, _, _ = _resumed(tmp_path, max_to_keep=2)
    assert saver.last_checkpoints == [str(tmp_path / "m-2")]
    saver.save(tmp_path / "m", 4)
    state = ts.get_checkpoint_state(tmp_path)
    assert state is not None
    assert [os.path.basename(path) for path in state.all_model_checkpoint_paths] == ["m-2", "m-4"]
    assert (tmp_path / "m-3.safetensors").exists()


def test_resume_keeps_the_hours_rule_by_the_times_in_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    value = torch.zeros(1)
    saver = ts.Saver({"x": value}, max_to_keep=1, keep_checkpoint_every_n_hours=1.0)
    now[0] += 2 * 3600
    saver.save(tmp_path / "m", 1)
    os.utime(tmp_path / "m-1.safetensors", (5, 5))
    again = ts.Saver({"x": value}, max_to_keep=1, keep_checkpoint_every_n_hours=1.0)
    again._rotation.start(1000.0)
    again.resume(tmp_path)
    again.save(tmp_path / "m", 2)
    assert (tmp_path / "m-1.safetensors").exists()


def test_resume_of_an_empty_saver_takes_the_list(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 3))
    saver = ts.Saver([], allow_empty=True)
    report = saver.resume(tmp_path)
    assert report is not None
    assert report.restored == ()
    assert len(saver.last_checkpoints) == 2


# ---- a writer that rotates meanwhile

_OTHER = """
import sys, torch, torchsaver as ts
value = torch.zeros(4)
saver = ts.Saver({"x": value}, max_to_keep=1)
saver.resume(sys.argv[1])
for step in map(int, sys.argv[2:]):
    value.fill_(step)
    saver.save(f"{sys.argv[1]}/m", step)
"""


def _other_process(directory: Path, *steps: int) -> None:
    subprocess.run([sys.executable, "-c", _OTHER, str(directory), *map(str, steps)], check=True)


def test_checkpoint_handed_out_is_not_removed_by_another_process_until_asked_again(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 2), max_to_keep=1)
    prefix = ts.newest_valid_checkpoint(tmp_path)
    _other_process(tmp_path, 2, 3)
    assert prefix == str(tmp_path / "m-1")
    assert ts.load_variable(prefix, "x").tolist() == [1.0] * 4
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["m-1.safetensors", "m-3.safetensors"]
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-3")
    _other_process(tmp_path, 4)
    names = [path.name for path in tmp_path.glob("*.safetensors")]
    assert sorted(names) == ["m-3.safetensors", "m-4.safetensors"]  # 1 was a leftover, 3 is handed out


def test_checkpoint_handed_out_is_removed_by_the_same_process(tmp_path: Path) -> None:
    saver = _run(tmp_path, range(1, 2), max_to_keep=1)
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-1")
    saver.save(tmp_path / "m", 2)
    assert not (tmp_path / "m-1.safetensors").exists()


def test_newest_valid_rotated_away_while_it_is_opened_gives_the_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saver = _run(tmp_path, range(1, 3), max_to_keep=1)
    steps, saving = iter(range(3, 6)), []
    opened = regular_file.open_regular

    def rotating(path: str) -> tuple[int, int]:
        if not saving and (step := next(steps, None)) is not None:
            saving.append(step)
            saver.save(tmp_path / "m", step)
            saving.clear()
        return opened(path)

    monkeypatch.setattr("torchsaver.formats.regular_file.open_regular", rotating)
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-5")
    assert caplog.records == []


def test_forked_child_does_not_let_go_of_what_its_parent_was_handed(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 2), max_to_keep=1)
    prefix = ts.newest_valid_checkpoint(tmp_path)
    assert prefix is not None
    pid = os.fork()
    if pid == 0:
        locks.unpin(str(tmp_path))
        os._exit(0)
    os.waitpid(pid, 0)
    _other_process(tmp_path, 2)
    assert ts.checkpoint_exists(prefix)
    locks.unpin(str(tmp_path))


def test_newest_valid_leaks_no_descriptor(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 3))
    flip(tmp_path / "m-2.safetensors")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        ts.newest_valid_checkpoint(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before + 1  # the one that is handed out
    locks.unpin(str(tmp_path))
    _resumed(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_newest_valid_of_a_directory_that_may_not_be_written_to(tmp_path: Path) -> None:
    _run(tmp_path / "run", range(1, 3))
    for path in [*(tmp_path / "run").iterdir(), tmp_path / "run"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert ts.newest_valid_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "m-2")
    finally:
        (tmp_path / "run").chmod(0o755)
        shutil.rmtree(tmp_path / "run")


# ---- TensorFlow's


def test_newest_valid_checkpoint_of_tensorflow_is_resumed_from_and_a_damaged_one_skipped(tmp_path: Path) -> None:
    prefixes = [ts.save_tf_checkpoint(tmp_path / f"m-{step}", {"w": torch.full((2,), step + 1.0)}) for step in range(3)]
    ts.update_checkpoint_state(tmp_path, prefixes[-1], all_model_checkpoint_paths=prefixes)
    assert ts.newest_valid_checkpoint(tmp_path) == prefixes[2]
    data = Path(prefixes[2] + ".data-00000-of-00001")
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    w = torch.zeros(2)
    saver = ts.Saver({"w": w}, max_to_keep=1)
    report = saver.resume(tmp_path)
    assert report is not None
    assert (report.save_path, w.tolist()) == (prefixes[1], [2, 2])
    assert [skip.save_path for skip in report.skipped] == [prefixes[2]]
    before = {path.name for path in tmp_path.iterdir()}
    saver.save(tmp_path / "ours", 1)
    saver.save(tmp_path / "ours", 2)
    assert before < {path.name for path in tmp_path.iterdir()}, "TensorFlow's own files stay"
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "ours-2")


def test_checkpoint_of_tensorflow_that_is_gone_is_told_so(tmp_path: Path) -> None:
    prefix = ts.save_tf_checkpoint(tmp_path / "m", {"w": torch.ones(1)})
    ts.update_checkpoint_state(tmp_path, prefix)
    Path(prefix + ".index").unlink()
    with pytest.raises(ts.NoValidCheckpointError, match="it is gone"):
        ts.newest_valid_checkpoint(tmp_path)


# ---- why it is this one, and what goes with it


def _measured(directory: Path, *steps: int) -> Path:
    saver = ts.Saver({"x": torch.ones(2)})
    for step in steps:
        saver.save(directory / "m", step, metrics={"loss": 1.0 / step})
    return directory


def _reason(directory: Path) -> str:
    report = ts.Saver({"x": torch.ones(2)}).resume(directory)
    assert report is not None
    return report.reason


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("nothing", "the newest that the state file lists"),
        ("the newest", "the newest that the state file lists, of those that hold"),
        ("no state file", "the newest by the checkpoints' own records, since there is no state file"),
        ("the state file", "the newest by the checkpoints' own records, since the state file is damaged"),
        ("all that is listed", "the newest by the checkpoints' own records, since nothing the state file lists holds"),
    ],
)
def test_resume_says_why_it_is_this_checkpoint(tmp_path: Path, damage: str, reason: str) -> None:
    _measured(tmp_path, 1, 2)
    if damage == "the newest":
        (tmp_path / "m-2.safetensors").write_bytes(b"\0" * 9)
    elif damage == "no state file":
        (tmp_path / "checkpoint").unlink()
    elif damage == "the state file":
        (tmp_path / "checkpoint").write_bytes(b"\xff")
    elif damage == "all that is listed":
        ts.update_checkpoint_state(tmp_path, "m-2")
        (tmp_path / "m-2.safetensors").unlink()
    assert _reason(tmp_path) == reason


def test_resume_gives_back_the_metrics_and_restore_does(tmp_path: Path) -> None:
    _measured(tmp_path, 1, 2)
    report = ts.Saver({"x": torch.ones(2)}).resume(tmp_path)
    assert report is not None
    assert report.metrics == {"loss": 0.5}
    restored = ts.Saver({"x": torch.ones(2)}).restore(tmp_path / "m-1")
    assert (restored.metrics, restored.reason) == ({"loss": 1.0}, "")


def test_records_kept_are_the_files_own_and_leave_out_what_is_damaged_or_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from torchsaver.recovery import find_newest_valid, records_kept

    _measured(tmp_path, 1, 2, 3, 4)
    (tmp_path / "m-1.safetensors").write_bytes(b"\0" * 9)
    search = find_newest_valid(str(tmp_path))
    assert search is not None
    assert search.reader is not None
    search.reader.close()
    (tmp_path / "m-2.safetensors").unlink()
    records = records_kept(str(tmp_path), search)
    assert [(r.name, r.step, dict(r.metrics)) for r in records] == [
        ("m-3", 3, {"loss": 1 / 3}),
        ("m-4", 4, {"loss": 0.25}),
    ]
    assert records[0].time <= records[1].time
    assert "m-1 is left out of the list" in caplog.text
    assert [os.path.basename(skip.save_path) for skip in search.skipped] == ["m-1"]
