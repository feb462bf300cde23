"""Aliases: other names of checkpoints, which move on, never displace a checkpoint, and are never taken for one."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import torchsaver as ts
from torchsaver.storage import aliases, disk, paths
from torchsaver.storage.aliases import is_alias, led_to, link_alias, link_aliases
from torchsaver.storage.catalog import read_commit

FORMS = pytest.mark.parametrize("shard_bytes", [None, 8], ids=["single", "sharded"])


def _saver(shard_bytes: int | None = None, keep: list[Any] | None = None) -> ts.Saver:
    policies = [ts.Latest(1, alias="last"), ts.Best("loss", alias="best")] if keep is None else keep
    return ts.Saver({key: torch.zeros(2) for key in "ab"}, keep=policies, max_shard_bytes=shard_bytes)


def _save(saver: ts.Saver, directory: Path, *losses: float, start: int = 1) -> None:
    for step, loss in enumerate(losses, start):
        saver.save(directory / "m", step, metrics={"loss": loss})


def _step(directory: Path, alias: str) -> int | None:
    """Return the step of the checkpoint an alias leads to, which verifies."""
    with ts.load_checkpoint(directory / alias) as reader:
        reader.verify()
        assert reader.keys() == ["a", "b"]
        return reader.global_step


def _file(directory: Path, name: str) -> Path:
    return Path(paths.find_checkpoint(str(directory / name)) or "")


def _checkpoints(directory: Path) -> list[str]:
    names = {found[0] for path in os.listdir(directory) if (found := paths.prefix_name(path)) is not None}
    return sorted(names - {"last", "best"})


# ---- what they lead to


@FORMS
def test_aliases_are_the_checkpoint_s_own_file_and_move_on(tmp_path: Path, shard_bytes: int | None) -> None:
    saver = _saver(shard_bytes)
    for step, (loss, best) in enumerate([(0.5, 1), (0.7, 1), (0.3, 3), (0.4, 3), (0.3, 3)], 1):
        _save(saver, tmp_path, loss, start=step)
        assert (_step(tmp_path, "last"), _step(tmp_path, "best")) == (step, best)
        for alias, own in (("last", step), ("best", best)):
            assert _file(tmp_path, alias).samefile(_file(tmp_path, f"m-{own}"))
        assert _checkpoints(tmp_path) == sorted({f"m-{best}", f"m-{step}"})


def test_alias_moves_on_from_one_file_to_shards_and_back(tmp_path: Path) -> None:
    for step, form in enumerate([None, 8, None, 8], 1):
        saver = _saver(form)
        saver.resume(tmp_path)
        _save(saver, tmp_path, 1.0 / step, start=step)
        assert (_step(tmp_path, "last"), _step(tmp_path, "best")) == (step, step)
        assert len(list(tmp_path.glob("last.*"))) == 1
        assert len(list(tmp_path.glob("last.safetensors.index.json"))) == (form is not None)


@FORMS
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_alias_without_hard_links_is_an_equal_copy(
    tmp_path: Path, shard_bytes: int | None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    saver = _saver(shard_bytes)
    _save(saver, tmp_path, 0.5, 0.4)
    assert (_step(tmp_path, "last"), _step(tmp_path, "best")) == (2, 2)
    assert not _file(tmp_path, "last").samefile(_file(tmp_path, "m-2"))
    assert _file(tmp_path, "last").read_bytes() == _file(tmp_path, "m-2").read_bytes()
    assert [name for name in os.listdir(tmp_path) if paths.is_temporary(name)] == []


def test_copy_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    saver = _saver()
    _save(saver, tmp_path, 0.5)
    before = os.stat(tmp_path / "best.safetensors").st_ino, os.stat(tmp_path / "last.safetensors").st_ino
    _save(saver, tmp_path, 0.6, start=2)
    assert os.stat(tmp_path / "best.safetensors").st_ino == before[0]
    assert _step(tmp_path, "last") == 2


def test_alias_that_is_right_already_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(_saver(), tmp_path, 0.5)
    monkeypatch.setattr(os, "link", lambda *_, **__: pytest.fail("linked"))
    link_alias(str(tmp_path / "m-1"), str(tmp_path / "last"))
    assert _step(tmp_path, "last") == 1


# ---- what they never displace


@pytest.mark.parametrize("kind", ["listed", "unlisted", "theirs", "damaged", "text", "directory"])
def test_what_has_the_name_of_an_alias_stays_and_is_told_and_saving_goes_on(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import save_file

    plain = ts.Saver({"a": torch.ones(1)})
    file = tmp_path / "last.safetensors"
    if kind in ("listed", "unlisted"):
        plain.save(tmp_path / "last", write_state=kind == "listed")
    elif kind == "theirs":
        save_file({"a": torch.ones(1)}, file)
    elif kind == "damaged":
        file.write_bytes(b"\x08\0\0\0\0\0\0\0{header}")
    elif kind == "directory":
        file.mkdir()
    else:
        file = tmp_path / "last"
        file.write_text("notes")
    before = None if kind == "directory" else file.read_bytes()
    saver = _saver()
    _save(saver, tmp_path, 0.5, 0.4, 0.6)
    assert (None if kind == "directory" else file.read_bytes()) == before
    assert caplog.text.count("last could not be made another name of") == 3
    assert {"m-2", "m-3"} <= set(_checkpoints(tmp_path)) | {"m-3"}
    assert not ts.checkpoint_exists(tmp_path / "m-1")
    assert _step(tmp_path, "best") == 2


def test_genuine_checkpoint_saved_over_an_alias_stays_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saver = _saver()
    _save(saver, tmp_path, 0.5)
    torch_saver = ts.Saver({"a": torch.ones(1)})
    torch_saver.save(tmp_path / "best", 7, write_state=False)
    torch_saver.save(tmp_path / "best", write_state=False)
    assert _step_of_m(tmp_path) == 1  # the checkpoint the alias led to is as it was
    _save(saver, tmp_path, 0.1, start=2)
    assert list(ts.load_checkpoint(tmp_path / "best").keys()) == ["a"]
    assert "a checkpoint was saved under this name" in caplog.text


def _step_of_m(directory: Path) -> int | None:
    return _step(directory, "m-1")


def test_alias_of_a_user_s_policy_that_leads_out_of_the_directory_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _save(_saver(keep=[ts.Latest(1)]), tmp_path / "run", 0.5)
    own = paths.identity(str(tmp_path / "run" / "m-1"))
    for alias in ("../out", str(tmp_path / "out"), "", "a\0b", "m-00001-of-00002", "x.safetensors"):
        link_aliases(str(tmp_path / "run"), {alias: own})
        assert "is no name for a checkpoint" in caplog.text
        caplog.clear()
    assert sorted(os.listdir(tmp_path)) == ["run"]
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint", "m-1.safetensors"]


def test_alias_of_a_checkpoint_in_another_directory_is_none(tmp_path: Path) -> None:
    _save(_saver(keep=[ts.Latest(1)]), tmp_path / "one", 0.5)
    (tmp_path / "two").mkdir()
    link_aliases(str(tmp_path / "two"), {"last": paths.identity(str(tmp_path / "one" / "m-1"))})
    assert os.listdir(tmp_path / "two") == []


# ---- failures


@FORMS
def test_alias_that_cannot_move_on_leads_to_a_whole_checkpoint_until_it_can(
    tmp_path: Path, shard_bytes: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saver = _saver(shard_bytes)
    _save(saver, tmp_path, 0.5)

    def failing(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "link_atomic", failing)
        _save(saver, tmp_path, 0.4, start=2)
    assert "could not be made another name" in caplog.text
    assert (_step(tmp_path, "last"), _step(tmp_path, "best")) == (1, 1)
    _save(saver, tmp_path, 0.6, start=3)
    assert (_step(tmp_path, "last"), _step(tmp_path, "best")) == (3, 2)
    assert _checkpoints(tmp_path) == ["m-2", "m-3"]


def test_led_to_names_sharded_checkpoints_that_aliases_need(tmp_path: Path) -> None:
    _save(_saver(8), tmp_path, 0.5, 0.6)
    _save(_saver(), tmp_path / "other", 0.5)
    real = paths.real_directory(str(tmp_path))
    assert led_to(str(tmp_path), ["last", "best", "m-2", "none"]) == {f"{real}/m-2": "last", f"{real}/m-1": "best"}
    assert led_to(str(tmp_path / "other"), ["last", "best"]) == {}  # their file is theirs as well
    (tmp_path / "last.safetensors.index.json").unlink()
    (tmp_path / "last.safetensors.index.json").write_text("{")
    assert led_to(str(tmp_path), ["last"]) == {}


# ---- what they are never taken for


@FORMS
@pytest.mark.parametrize("state", ["there", "lost", "damaged"])
def test_newest_valid_and_resume_name_the_checkpoint_and_not_its_alias(
    tmp_path: Path, shard_bytes: int | None, state: str
) -> None:
    _save(_saver(shard_bytes), tmp_path, 0.5, 0.4)
    if state == "lost":
        (tmp_path / "checkpoint").unlink()
    elif state == "damaged":
        (tmp_path / "checkpoint").write_bytes(b"\xff")
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-2")
    saver = _saver(shard_bytes)
    report = saver.resume(tmp_path)
    assert report is not None
    assert report.save_path == str(tmp_path / "m-2")
    assert saver.last_checkpoints == [str(tmp_path / "m-2")]
    _save(saver, tmp_path, 0.6, start=3)
    assert saver.last_checkpoints == [str(tmp_path / f"m-{step}") for step in (2, 3)]
    assert (_step(tmp_path, "last"), _step(tmp_path, "best")) == (3, 2)


@pytest.mark.parametrize("alias", ["a", "z"])
def test_alias_of_any_name_comes_after_its_checkpoint_where_only_records_tell(tmp_path: Path, alias: str) -> None:
    saver = _saver(keep=[ts.Latest(2, alias=alias)])
    _save(saver, tmp_path, 0.5, 0.4)
    (tmp_path / "checkpoint").unlink()
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-2")
    (tmp_path / "m-2.safetensors").write_bytes(b"\0" * 9)  # the alias is this file, and goes with it
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-1")


def test_alias_is_taken_where_its_checkpoint_s_own_file_and_the_state_file_are_gone(tmp_path: Path) -> None:
    _save(_saver(), tmp_path, 0.5, 0.6)
    for name in ("checkpoint", "m-2.safetensors"):
        (tmp_path / name).unlink()
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "last")  # it is the newest there is


@FORMS
def test_alias_is_no_leftover_and_is_not_taken_over_when_the_state_file_is_gone(
    tmp_path: Path, shard_bytes: int | None
) -> None:
    _save(_saver(shard_bytes), tmp_path, 0.5)
    (tmp_path / "checkpoint").unlink()  # m-1's record knows of no state file before: it is adopted, once
    plain = ts.Saver({key: torch.zeros(2) for key in "ab"}, max_to_keep=9)
    plain.save(tmp_path / "m", 2)
    assert [os.path.basename(path) for path in plain.last_checkpoints] == ["m-1", "m-2"]
    assert (_step(tmp_path, "last"), _step(tmp_path, "best")) == (1, 1)


@FORMS
def test_alias_of_a_checkpoint_whose_save_looks_undone_stays(tmp_path: Path, shard_bytes: int | None) -> None:
    saver = _saver(shard_bytes, [ts.Latest(5, alias="last")])
    _save(saver, tmp_path, 0.5)
    state = (tmp_path / "checkpoint").read_bytes()
    _save(saver, tmp_path, 0.5, start=2)
    (tmp_path / "checkpoint").write_bytes(state)
    os.utime(tmp_path / "checkpoint", (5, 5))  # as if m-2's save had died before it wrote the state file
    plain = ts.Saver({key: torch.zeros(2) for key in "ab"})
    plain.resume(tmp_path)
    plain.save(tmp_path / "m", 3)
    assert _checkpoints(tmp_path) == ["m-1", "m-3"]
    assert os.path.lexists(tmp_path / ("last.safetensors" if shard_bytes is None else "last.safetensors.index.json"))


@FORMS
def test_retention_neither_counts_nor_removes_an_alias(tmp_path: Path, shard_bytes: int | None) -> None:
    saver = _saver(shard_bytes, [ts.Latest(3, alias="last")])
    _save(saver, tmp_path, *[0.5] * 6)
    assert _checkpoints(tmp_path) == ["m-4", "m-5", "m-6"]
    assert [os.path.basename(d.save_path) for d in saver.plan()] == ["m-4", "m-5", "m-6"]
    assert _step(tmp_path, "last") == 6


@FORMS
def test_verify_and_ls_show_an_alias_as_what_it_is_and_find_no_damage(
    tmp_path: Path, shard_bytes: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchsaver.cli import main

    _save(_saver(shard_bytes), tmp_path, 0.5, 0.6)
    report = ts.verify_directory(tmp_path)
    assert report.is_sound
    assert [(status.name, status.listed, status.report.alias_of) for status in report.checkpoints] == [
        ("best", "no", "m-1"),
        ("m-1", "yes", None),
        ("last", "no", "m-2"),
        ("m-2", "newest", None),
    ]
    assert ts.verify_checkpoint(tmp_path / "best").alias_of == "m-1"
    assert ts.verify_checkpoint(_file(tmp_path, "best")).alias_of == "m-1"
    assert main(["ls", str(tmp_path)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows if row.endswith(("is m-1", "is m-2"))] == ["best", "last"]
    assert main(["verify", str(tmp_path)]) == 0


def test_listed_checkpoint_that_was_renamed_is_shown_as_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchsaver.cli import main

    _save(_saver(keep=[ts.Latest(1)]), tmp_path, 0.5)
    shutil.move(tmp_path / "m-1.safetensors", tmp_path / "final.safetensors")
    ts.update_checkpoint_state(tmp_path, "final")
    assert main(["ls", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("newest")
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "final")


def test_copy_of_an_alias_that_a_run_was_resumed_from_is_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    _save(_saver(), old, 0.5)
    new.mkdir()
    shutil.copy(old / "best.safetensors", new)
    saver = _saver(keep=[ts.Latest(1), ts.Best("loss", alias="best"), ts.Pinned()])
    saver.resume(new)
    _save(saver, new, 0.1, 0.2, start=2)
    assert _step(new, "best") == 1
    assert _checkpoints(new) == ["m-2", "m-3"]
    assert next(str(decision) for decision in saver.plan()) == f"{new / 'best'} stays: this run was resumed from it"
    assert "rename one" in caplog.text


def test_is_alias_goes_by_the_name_in_the_record(tmp_path: Path) -> None:
    _save(_saver(), tmp_path, 0.5)
    commit = read_commit(str(tmp_path / "last"))
    assert is_alias("last", commit)
    assert not is_alias("m-1", commit)
    assert not is_alias("m-1", None)
    assert aliases.is_alias("anything", commit)
