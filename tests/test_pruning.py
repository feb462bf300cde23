"""`prune_checkpoints`: what no policy keeps goes, unlisted first, and nothing else does."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.crash_states import snapshot

import torchsaver as ts
from torchsaver import pruning
from torchsaver.pruning import prune, prune_checkpoints
from torchsaver.storage import locks

LOSSES = {1: 0.9, 2: 0.3, 3: 0.7, 10: 0.5, 11: 0.6}
FORMS = pytest.mark.parametrize("shard_bytes", [None, 8], ids=["single", "sharded"])


def _fill(directory: Path, shard_bytes: int | None = None, **settings: Any) -> Path:
    saver = ts.Saver({key: torch.ones(2) for key in "ab"}, max_to_keep=9, max_shard_bytes=shard_bytes, **settings)
    for step, loss in LOSSES.items():
        saver.save(directory / "m", step, metrics={"loss": loss})
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return _fill(tmp_path / "run")


def _there(directory: Path) -> list[int]:
    names = {name.split(".")[0].removesuffix("-00001-of-00002") for name in os.listdir(directory) if name[:2] == "m-"}
    return sorted(int(name[2:]) for name in names if name.count("-") == 1)


def _listed(directory: Path) -> list[int]:
    state = ts.get_checkpoint_state(directory)
    assert state is not None
    assert state.model_checkpoint_path == state.all_model_checkpoint_paths[-1]
    return [int(path.rsplit("-", 1)[1]) for path in state.all_model_checkpoint_paths]


def _stays(decisions: list[ts.Decision]) -> list[int]:
    return [int(decision.save_path.rsplit("-", 1)[1]) for decision in decisions if decision.keep]


def _damage(file: Path, at: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


# ---- what goes


@FORMS
@pytest.mark.parametrize(
    ("keep", "stays"),
    [
        ([ts.Latest(1)], [11]),
        ([ts.Latest(2), ts.Best("loss")], [2, 10, 11]),
        ([ts.Best("loss", 2)], [2, 10, 11]),
        ([ts.Best("loss", mode="max")], [1, 11]),
        ([ts.EveryNSteps(10)], [10, 11]),
        ([ts.EveryNHours(1)], [1, 11]),
        ([ts.Pinned("m-3")], [3, 11]),
        ([ts.Pinned()], [11]),
        ([ts.Pinned("none"), ts.Best("none")], [11]),
        ([ts.Latest(99)], [1, 2, 3, 10, 11]),
    ],
    ids=str,
)
def test_what_no_policy_keeps_goes_and_the_newest_stays(
    tmp_path: Path, shard_bytes: int | None, keep: list[Any], stays: list[int]
) -> None:
    run = _fill(tmp_path / "run", shard_bytes)
    before = snapshot(str(run))
    planned = prune_checkpoints(run, keep, dry_run=True)
    assert snapshot(str(run)) == before
    decisions = prune_checkpoints(run, keep)
    assert decisions == planned
    assert [decision.save_path for decision in decisions] == [str(run / f"m-{step}") for step in LOSSES]
    assert _stays(decisions) == _there(run) == _listed(run) == stays
    assert ts.verify_directory(run).is_sound


def test_reasons_are_those_of_the_policies(run: Path) -> None:
    decisions = prune_checkpoints(run, [ts.Best("loss"), ts.EveryNSteps(10)])
    assert [decision.reason for decision in decisions if decision.keep] == [
        "number 1 by min loss, 0.3",
        "the first at or after step 10",
        "the newest",
    ]
    assert decisions[0].reason.startswith("not kept by any of Best(")


def test_order_is_the_state_file_s_whatever_the_times_of_files(run: Path) -> None:
    for number, path in enumerate(sorted(run.glob("*.safetensors"))):
        os.utime(path, (9000 - number, 9000 - number))
    ts.update_checkpoint_state(run, "m-2", all_model_checkpoint_paths=["m-10", "m-1", "m-2"])
    assert _stays(prune_checkpoints(run, [ts.Latest(2)])) == [1, 2]
    assert _there(run) == [1, 2, 3, 11]  # those that are not listed stay


def test_second_time_nothing_goes(run: Path) -> None:
    prune_checkpoints(run, [ts.Latest(2)])
    before = snapshot(str(run))
    assert [decision.keep for decision in prune_checkpoints(run, [ts.Latest(2)])] == [True, True]
    assert snapshot(str(run)) == before


def test_run_goes_on_after_it(run: Path) -> None:
    prune_checkpoints(run, [ts.Latest(1), ts.Best("loss")])
    saver = ts.Saver({key: torch.ones(2) for key in "ab"}, max_to_keep=2)
    report = saver.resume(run)
    assert report is not None
    assert report.global_step == 11
    saver.save(run / "m", 12)
    assert _there(run) == _listed(run) == [11, 12]


@pytest.mark.parametrize("relative", [True, False])
def test_rest_of_the_state_file_stays_as_it_was(tmp_path: Path, relative: bool) -> None:
    run = _fill(tmp_path / "run", save_relative_paths=relative)
    paths_before = [f"{run}/m-{step}" if not relative else f"m-{step}" for step in LOSSES]
    ts.update_checkpoint_state(
        run,
        paths_before[-1],
        all_model_checkpoint_paths=["../elsewhere/m-1", *paths_before],
        all_model_checkpoint_timestamps=[0.5, *map(float, LOSSES)],
        last_preserved_timestamp=4.5,
    )
    prune_checkpoints(run, [ts.Latest(2)])
    text = (run / "checkpoint").read_text()
    prefix = "" if relative else f"{run}/"
    assert text.splitlines() == [
        f'model_checkpoint_path: "{prefix}m-11"',
        'all_model_checkpoint_paths: "../elsewhere/m-1"',
        f'all_model_checkpoint_paths: "{prefix}m-10"',
        f'all_model_checkpoint_paths: "{prefix}m-11"',
        "all_model_checkpoint_timestamps: 0.5",
        "all_model_checkpoint_timestamps: 10.0",
        "all_model_checkpoint_timestamps: 11.0",
        "last_preserved_timestamp: 4.5",
    ]


def test_other_state_file_of_the_directory_is_asked_for_by_its_name(run: Path) -> None:
    saver = ts.Saver({key: torch.ones(2) for key in "ab"})
    for step in (1, 2):
        saver.save(run / "n", step, latest_filename="other")
    before = (run / "checkpoint").read_bytes()
    assert _stays(prune_checkpoints(run, [ts.Latest(1)], latest_filename="other")) == [2]
    assert (run / "checkpoint").read_bytes() == before
    assert _there(run) == list(LOSSES)
    assert not ts.checkpoint_exists(run / "n-1")


# ---- what stays


def test_damaged_newest_does_not_cost_the_last_one_that_holds(run: Path) -> None:
    for step in (10, 11):
        _damage(run / f"m-{step}.safetensors")  # its last tensor, which no header shows
    decisions = prune_checkpoints(run, [ts.Latest(1)])
    assert _stays(decisions) == _listed(run) == _there(run) == [3, 10, 11]
    assert [d.reason for d in decisions[-2:]] == ["it is damaged; `torchsaver verify` says how"] * 2
    assert ts.newest_valid_checkpoint(run) == str(run / "m-3")


def test_older_one_with_a_damaged_header_stays_listed(run: Path) -> None:
    _damage(run / "m-2.safetensors", 20)
    decisions = prune_checkpoints(run, [ts.Latest(1)])
    assert _stays(decisions) == _listed(run) == [2, 11]
    assert "damaged" in decisions[1].reason


def test_nothing_goes_where_nothing_listed_holds(run: Path) -> None:
    for step in (1, 2):
        _damage(run / f"m-{step}.safetensors")
    ts.update_checkpoint_state(run, "m-2", all_model_checkpoint_paths=["m-1", "m-2"])
    assert _stays(prune_checkpoints(run, [ts.Latest(1)])) == [1, 2]
    for step in (3, 10, 11):
        _damage(run / f"m-{step}.safetensors")
    with pytest.raises(ts.NoValidCheckpointError):
        prune_checkpoints(run, [ts.Latest(1)])
    assert _there(run) == list(LOSSES)


def test_checkpoint_that_is_gone_is_passed_over(run: Path) -> None:
    (run / "m-3.safetensors").unlink()
    assert _stays(prune_checkpoints(run, [ts.Latest(2)])) == [10, 11]


def test_what_is_not_ours_stays(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, run / "theirs-1.safetensors")
    ts.save_tf_checkpoint(run / "tf-1", {"x": torch.ones(1)})
    (tmp_path / "away").mkdir()
    shutil.copy(run / "m-1.safetensors", tmp_path / "away")
    (run / "link-1.safetensors").symlink_to(tmp_path / "away" / "m-1.safetensors")
    listed = ["theirs-1", "tf-1", "link-1", "../away/m-1", "m-1", "m-11"]
    ts.update_checkpoint_state(run, "m-11", all_model_checkpoint_paths=listed)
    decisions = prune_checkpoints(run, [ts.Latest(1)])
    stays = {os.path.basename(d.save_path): d.reason for d in decisions if d.keep}
    assert stays.keys() == {"theirs-1", "tf-1", "link-1", "m-11"}
    assert "no intact checkpoint of torchsaver" in stays["theirs-1"]
    assert (tmp_path / "away" / "m-1.safetensors").exists()
    assert [os.path.basename(d.save_path) for d in decisions if not d.keep] == ["m-1"]


def test_what_another_process_reads_stays_listed(run: Path) -> None:
    fd = os.open(run / "m-2.safetensors", os.O_RDONLY)
    assert locks.acquire(fd, shared=True)
    decisions = prune_checkpoints(run, [ts.Latest(1)])
    assert _stays(decisions) == _there(run) == _listed(run) == [2, 11]
    assert "another process is reading it" in decisions[1].reason
    os.close(fd)
    assert _stays(prune_checkpoints(run, [ts.Latest(1)])) == _there(run) == [11]


@FORMS
def test_alias_leads_to_a_whole_checkpoint_afterwards(tmp_path: Path, shard_bytes: int | None) -> None:
    run = tmp_path / "run"
    saver = ts.Saver(
        {key: torch.ones(2) for key in "ab"}, keep=[ts.Latest(9), ts.Best("loss", alias="best")],
        max_shard_bytes=shard_bytes,
    )  # fmt: skip
    for step, loss in LOSSES.items():
        saver.save(run / "m", step, metrics={"loss": loss})
    found = {p.decision.record.name: p for p in prune(run, [ts.Latest(1)])}
    with ts.load_checkpoint(run / "best") as reader:
        reader.verify()
        assert reader.global_step == 2
    if shard_bytes is None:  # a hard link holds the bytes
        assert _there(run) == [11]
        assert (found["m-2"].freed_bytes, found["m-1"].freed_bytes > 0) == (0, True)
    else:
        assert _there(run) == _listed(run) == [2, 11]
        assert found["m-2"].decision.reason == "best is another name of it"


def test_alias_of_a_policy_is_made(run: Path) -> None:
    prune_checkpoints(run, [ts.Best("loss", alias="best"), ts.Latest(1)])
    assert (run / "best.safetensors").samefile(run / "m-2.safetensors")


# ---- failures and others


def test_state_file_is_written_before_anything_goes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        assert _there(run) == list(LOSSES)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torchsaver.rotation.write_state", failing)
        with pytest.raises(OSError, match="No space"):
            prune_checkpoints(run, [ts.Latest(1)])
    assert _there(run) == _listed(run) == list(LOSSES)


def test_checkpoint_that_cannot_be_removed_is_reported(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = pruning.Rotation._removed

    def failing(self: Any, record: Any, directory: str) -> bool:
        return record.name != "m-2" and real(self, record, directory)

    monkeypatch.setattr(pruning.Rotation, "_removed", failing)
    decisions = prune_checkpoints(run, [ts.Latest(1)])
    assert _there(run) == _stays(decisions) == [2, 11]
    assert _listed(run) == [11]
    assert decisions[1].reason == "it could not be removed; it is not listed any more"


def test_save_of_another_process_meanwhile_is_taken_into_account(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, once = pruning.Rotation.let_go, iter([True])
    other = ts.Saver({key: torch.ones(2) for key in "ab"}, max_to_keep=99)
    other.resume(run)

    def after_a_save(self: Any, *arguments: Any) -> Any:
        if next(once, False):
            other.save(run / "m", 12)
        return real(self, *arguments)

    monkeypatch.setattr(pruning.Rotation, "let_go", after_a_save)
    assert _stays(prune_checkpoints(run, [ts.Latest(1)])) == _there(run) == _listed(run) == [12]


def test_no_pin_is_left_behind(run: Path) -> None:
    prune_checkpoints(run, [ts.Latest(1)], dry_run=True)
    prune_checkpoints(run, [ts.Latest(1)])
    assert not [pinned for pinned in locks._pins if pinned == os.path.realpath(run)]


def test_directory_without_checkpoints_has_none_to_prune(tmp_path: Path) -> None:
    assert prune_checkpoints(tmp_path, [ts.Latest(1)]) == []
    with pytest.raises(FileNotFoundError):
        prune_checkpoints(tmp_path / "none", [ts.Latest(1)])
    _fill(tmp_path)
    with pytest.raises(NotADirectoryError):
        prune_checkpoints(tmp_path / "m-1.safetensors", [ts.Latest(1)])
    (tmp_path / "checkpoint").unlink()
    assert prune_checkpoints(tmp_path, [ts.Latest(1)]) == []  # nothing is listed, so nothing goes
    assert _there(tmp_path) == list(LOSSES)


@pytest.mark.parametrize(
    ("keep", "error"), [([], ValueError), (None, ValueError), (ts.Latest(1), TypeError), ([3], TypeError),
                        ([ts.Latest(1, alias="x.safetensors")], ValueError)], ids=str
)  # fmt: skip
def test_keep_that_is_no_list_of_policies_is_refused_before_anything_is_read(
    tmp_path: Path, keep: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        prune_checkpoints(tmp_path / "none", keep)
