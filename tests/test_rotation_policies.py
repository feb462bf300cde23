"""`keep=` on a real disk: the files that stay are those that `plan()` says, whatever happens in between."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import no_room_for_the_state_file

import torchsaver as ts
from torchsaver.storage import locks, paths


def _saver(*keep: Any, **settings: Any) -> ts.Saver:
    return ts.Saver({"x": torch.ones(2)}, keep=list(keep), **settings)


def _save(saver: ts.Saver, directory: Path, losses: dict[int, float | None]) -> None:
    for step, loss in losses.items():
        saver.save(directory / "m", step, metrics=None if loss is None else {"loss": loss})


def _names(directory: Path) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in directory.iterdir() if path.name != "checkpoint")


def _listed(directory: Path) -> list[str]:
    state = ts.get_checkpoint_state(directory)
    assert state is not None
    return [os.path.basename(path) for path in state.all_model_checkpoint_paths]


def _planned(saver: ts.Saver) -> list[str]:
    return [os.path.basename(d.save_path) for d in saver.plan() if d.keep]


def _touch(directory: Path) -> None:
    """Give the files times that say the opposite of the records."""
    for number, path in enumerate(sorted(directory.glob("*.safetensors"))):
        os.utime(path, (10_000 - number, 10_000 - number))


MIXED = {1: 0.9, 2: 0.5, 3: 0.7, 10: 0.8, 11: 0.6, 12: None, 21: math.nan}
MIXED_KEPT = ["m-2", "m-10", "m-12", "m-21"]  # the best, the first from 10 on, the last two, of which one from 20 on


def _mixed(**settings: Any) -> ts.Saver:
    return _saver(ts.Latest(2), ts.Best("loss"), ts.EveryNSteps(10), **settings)


def test_files_that_stay_are_those_that_plan_says_after_every_save(tmp_path: Path) -> None:
    saver = _mixed()
    for step, loss in MIXED.items():
        _save(saver, tmp_path, {step: loss})
        assert _names(tmp_path) == sorted(_planned(saver))
        assert _listed(tmp_path) == _planned(saver) == [os.path.basename(path) for path in saver.last_checkpoints]
    assert _planned(saver) == MIXED_KEPT


def test_reasons_stand_in_the_plan(tmp_path: Path) -> None:
    saver = _mixed()
    _save(saver, tmp_path, MIXED)
    assert [str(decision).split(" stays: ")[1] for decision in saver.plan()] == [
        "number 1 by min loss, 0.5",
        "the first at or after step 10",
        "one of the last 2",
        "one of the last 2; the first at or after step 20",
    ]


@pytest.mark.parametrize("state", ["there", "lost", "damaged"])
@pytest.mark.parametrize("form", [None, 4])
def test_resumed_run_goes_on_by_the_checkpoints_own_records_whatever_the_times_of_files(
    tmp_path: Path, state: str, form: int | None
) -> None:
    straight, first = tmp_path / "straight", tmp_path / "broken"
    more: dict[int, float | None] = {22: 0.55, 30: 0.4, 31: 1.0, 32: None}
    _save(_mixed(max_shard_bytes=form), straight, {**MIXED, **more})
    _save(_mixed(max_shard_bytes=form), first, MIXED)
    _touch(first)
    if state == "lost":
        (first / "checkpoint").unlink()
    elif state == "damaged":
        (first / "checkpoint").write_bytes(b"\xff\xfe")
    again = _mixed(max_shard_bytes=form)
    report = again.resume(first)
    assert report is not None
    assert report.save_path == str(first / "m-21")
    assert _planned(again) == MIXED_KEPT
    _save(again, first, more)
    assert _listed(first) == _listed(straight)
    assert _names(first) == _names(straight)


def test_hours_are_counted_from_the_time_in_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    for minutes in range(0, 200, 20):
        saver = _saver(ts.EveryNHours(1), ts.Latest(1))  # a process of its own for each save
        saver.resume(tmp_path)
        now = 1_000_000.0 + 60 * minutes
        saver.save(tmp_path / "m", minutes)
        _touch(tmp_path)
    assert _listed(tmp_path) == ["m-0", "m-60", "m-120", "m-180"]


def test_two_savers_keep_each_what_they_keep_and_list_the_other_s(tmp_path: Path) -> None:
    one, two = _saver(ts.Best("loss"), ts.Latest(1)), _saver(ts.Latest(1))
    for step, loss in ((1, 0.1), (2, 0.5), (3, 0.4)):
        one.save(tmp_path / "a", step, metrics={"loss": loss})
        two.save(tmp_path / "b", step, metrics={"loss": -loss})
    assert _listed(tmp_path) == ["a-1", "a-3", "b-3"]
    assert _names(tmp_path) == ["a-1", "a-3", "b-3"]


def test_pinned_and_the_one_resumed_from_stay_over_restarts(tmp_path: Path) -> None:
    _save(_saver(ts.Latest(1), ts.Pinned("m-2")), tmp_path, dict.fromkeys((1, 2, 3)))
    assert _names(tmp_path) == ["m-2", "m-3"]
    again = _saver(ts.Latest(1), ts.Pinned("m-2"))
    again.resume(tmp_path)
    _save(again, tmp_path, dict.fromkeys((4, 5)))
    assert _names(tmp_path) == ["m-2", "m-3", "m-5"]
    third = _saver(ts.Latest(1), ts.Pinned("m-2"))
    third.resume(tmp_path)
    _save(third, tmp_path, dict.fromkeys((6, 7)))
    assert _names(tmp_path) == ["m-2", "m-5", "m-7"]  # m-3 was the other run's


# ---- what another process reads


def test_checkpoint_another_process_reads_stays_and_plan_says_so_until_it_lets_go(tmp_path: Path) -> None:
    saver = _saver(ts.Latest(1))
    _save(saver, tmp_path, {1: None})
    code = "import sys, torchsaver as ts\nprint(ts.newest_valid_checkpoint(sys.argv[1]), flush=True)\nsys.stdin.read()"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline().strip() == str(tmp_path / "m-1")
        _save(saver, tmp_path, {2: None})
        assert [(os.path.basename(d.save_path), d.keep) for d in saver.plan()] == [("m-1", True), ("m-2", True)]
        assert "another process is reading it; later, it is not kept by any" in saver.plan()[0].reason
        assert _names(tmp_path) == ["m-1", "m-2"]
        assert _listed(tmp_path) == ["m-2"]
        reader.communicate("")
    assert [d.keep for d in saver.plan()] == [False, True]
    _save(saver, tmp_path, {3: None})
    assert _names(tmp_path) == ["m-3"]


def test_plan_lets_go_of_no_lock(tmp_path: Path) -> None:
    saver = _saver(ts.Latest(1))
    _save(saver, tmp_path, {1: None})
    fd = os.open(tmp_path / "m-1.safetensors", os.O_RDONLY)
    assert locks.acquire(fd, shared=True)
    _save(saver, tmp_path, {2: None})
    assert _planned(saver) == _planned(saver) == ["m-1", "m-2"]
    os.close(fd)
    assert _planned(saver) == ["m-2"]


# ---- failures


def test_removal_that_failed_is_planned_and_done_by_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saver = _saver(ts.Latest(1), ts.Best("loss"))
    _save(saver, tmp_path, {1: 0.5})
    with monkeypatch.context() as patch:
        patch.setattr("torchsaver.rotation.remove_unpinned", lambda _: (_ for _ in ()).throw(OSError(5, "EIO")))
        _save(saver, tmp_path, {2: 0.1})
    assert "could not remove the old checkpoint" in caplog.text
    assert [(os.path.basename(d.save_path), d.keep) for d in saver.plan()] == [("m-1", False), ("m-2", True)]
    _save(saver, tmp_path, {3: 0.4})
    assert _names(tmp_path) == ["m-2", "m-3"]


def test_removal_that_failed_is_done_by_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = _saver(ts.Latest(1))
    with monkeypatch.context() as patch:
        patch.setattr("torchsaver.rotation.remove_unpinned", lambda _: (_ for _ in ()).throw(OSError(5, "EIO")))
        _save(saver, tmp_path, dict.fromkeys((1, 2, 3)))
    again = _saver(ts.Latest(2))
    again.resume(tmp_path)
    _save(again, tmp_path, {4: None})
    assert _names(tmp_path) == ["m-3", "m-4"]


def test_save_that_failed_changes_no_decision(tmp_path: Path) -> None:
    saver = _saver(ts.Latest(1), ts.Best("loss", alias="best"))
    _save(saver, tmp_path, {1: 0.5, 2: 0.6})
    before = saver.plan()
    with no_room_for_the_state_file():
        _save(saver, tmp_path, {3: 0.1})
    assert saver.plan() == before
    assert (tmp_path / "best.safetensors").samefile(tmp_path / "m-1.safetensors")
    _save(saver, tmp_path, {4: 0.7})
    assert _names(tmp_path) == ["best", "m-1", "m-4"]  # m-3 was never listed, and never the best


# ---- what it is told


@pytest.mark.parametrize("how", ["set", "recover"])
def test_told_checkpoints_have_their_own_steps_and_metrics(tmp_path: Path, how: str) -> None:
    _save(ts.Saver({"x": torch.ones(2)}), tmp_path, {9: 0.5, 10: 0.3, 11: 0.1, 12: 0.7})
    told = [str(tmp_path / f"m-{step}") for step in (9, 10, 11, 12)]
    _touch(tmp_path)
    saver = _saver(ts.Latest(1), ts.Best("loss"), ts.EveryNSteps(10))
    (saver.set_last_checkpoints if how == "set" else saver.recover_last_checkpoints)(told)
    assert [(os.path.basename(d.save_path), d.keep) for d in saver.plan()] == [
        ("m-9", False),
        ("m-10", True),
        ("m-11", True),
        ("m-12", True),
    ]
    _save(saver, tmp_path, {13: 0.9})
    assert _names(tmp_path) == ["m-10", "m-11", "m-13"]


@pytest.mark.parametrize("how", ["set", "set with time", "recover"])
def test_told_checkpoints_have_their_own_times_and_not_those_of_files(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = ts.Saver({"x": torch.ones(2)})
    for hour in range(4):
        monkeypatch.setattr("time.time", lambda hour=hour: 1e6 + 3600.0 * hour)
        writer.save(tmp_path / "m", hour)
    monkeypatch.undo()
    _touch(tmp_path)
    saver = _saver(ts.EveryNHours(2))
    if how == "recover":
        saver.recover_last_checkpoints(writer.last_checkpoints)
    elif how == "set":
        saver.set_last_checkpoints(writer.last_checkpoints)
    else:
        saver.set_last_checkpoints_with_time([(prefix, 5.0) for prefix in writer.last_checkpoints])
    assert _planned(saver) == ["m-0", "m-2", "m-3"]


def test_told_checkpoint_that_is_not_ours_to_remove_stays_and_plan_says_why(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "theirs.safetensors")
    _save(ts.Saver({"x": torch.ones(2)}), tmp_path / "other", {1: None})
    saver = _saver(ts.Latest(1))
    saver.set_last_checkpoints([str(tmp_path / "theirs"), str(tmp_path / "other" / "m-1"), str(tmp_path / "gone")])
    _save(saver, tmp_path / "run", {1: None})
    saver.set_last_checkpoints([str(tmp_path / "theirs"), str(tmp_path / "run" / "m-1")])
    assert [d.keep for d in saver.plan()] == [True, True]
    assert "does not stand in" in saver.plan()[0].reason
    saver.set_last_checkpoints([str(tmp_path / "theirs"), str(tmp_path / "n")])
    assert "no intact checkpoint of torchsaver" in saver.plan()[0].reason


def test_record_of_a_save_by_policies_says_what_was_kept_and_let_go(tmp_path: Path) -> None:
    saver = _saver(ts.Latest(1), ts.Best("loss"))
    _save(saver, tmp_path, {1: 0.5, 2: 0.1, 3: 0.2})
    from torchsaver.storage.catalog import read_commit

    second, third = (read_commit(str(tmp_path / f"m-{step}")) for step in (2, 3))
    assert second is not None
    assert third is not None
    assert (second.kept, second.expired) == (("m-2",), ("m-1",))
    assert (third.kept, third.expired) == (("m-2", "m-3"), ())


def test_save_without_a_listing_takes_no_part(tmp_path: Path) -> None:
    saver = _saver(ts.Latest(1), ts.Best("loss", alias="best"))
    _save(saver, tmp_path, {1: 0.5})
    saver.save(tmp_path / "export", metrics={"loss": 0.0}, write_state=False)
    _save(saver, tmp_path, {2: 0.7})
    assert _names(tmp_path) == ["best", "export", "m-1", "m-2"]
    assert (tmp_path / "best.safetensors").samefile(tmp_path / "m-1.safetensors")


def test_checkpoint_through_another_spelling_of_its_directory_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    saver = _saver(ts.Latest(2, alias="last"), ts.Best("loss"))
    for number, place in enumerate(["run", "link", "run", "link"]):
        saver.save(tmp_path / place / "m", number, metrics={"loss": float(number)})
    assert _names(tmp_path / "run") == ["last", "m-0", "m-2", "m-3"]
    assert paths.find_version(str(tmp_path / "run" / "last"))


# ---- Saver(keep=)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"keep": []}, ValueError, "keep is empty"),
        ({"keep": ts.Latest(1)}, TypeError, r"keep=\[Latest"),
        ({"keep": [ts.Latest]}, TypeError, "keep holds"),
        ({"keep": ["latest"]}, TypeError, "keep holds 'latest'"),
        ({"keep": [ts.Latest(1, alias="a"), ts.Best("x", alias="a")]}, ValueError, "the alias 'a'"),
        ({"keep": [ts.Latest(1, alias="a.safetensors")]}, ValueError, "no name for a checkpoint"),
        ({"keep": [ts.Latest(1, alias="a-00001-of-00002")]}, ValueError, "no name for a checkpoint"),
        ({"keep": [ts.Latest(1)], "max_to_keep": 3}, ValueError, r"Latest\(n\)"),
        ({"keep": [ts.Latest(1)], "max_to_keep": None}, ValueError, r"Latest\(n\)"),
        ({"keep": [ts.Latest(1)], "keep_checkpoint_every_n_hours": 2.0}, ValueError, r"EveryNHours\(n\)"),
    ],
)
def test_saver_refuses_a_keep_that_is_none_and_one_beside_tf_s_arguments(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ts.Saver({"x": torch.ones(1)}, **settings)


def test_saver_takes_a_generator_and_gives_its_policies_among_the_settings(tmp_path: Path) -> None:
    saver = ts.Saver({"x": torch.ones(1)}, keep=(ts.Latest(n) for n in (1, 2)))  # type: ignore[arg-type]
    _save(saver, tmp_path, dict.fromkeys((1, 2, 3)))
    assert _names(tmp_path) == ["m-2", "m-3"]
    again = ts.Saver({"x": torch.ones(1)}, **saver.settings)
    assert again.settings["keep"] == (ts.Latest(1), ts.Latest(2))


class _EvenSteps:
    """A user's own policy."""

    def kept(self, records: Any) -> dict[str, str]:
        return {record.identity: "even" for record in records if record.step % 2 == 0}

    def aliases(self, records: Any) -> dict[str, Any]:
        return {"first": records[0]}


def test_user_s_own_policy_decides_on_the_disk(tmp_path: Path) -> None:
    saver = _saver(_EvenSteps())
    _save(saver, tmp_path, dict.fromkeys((2, 3, 4, 5, 7)))
    assert _names(tmp_path) == ["first", "m-2", "m-4", "m-7"]
    assert (tmp_path / "first.safetensors").samefile(tmp_path / "m-2.safetensors")
