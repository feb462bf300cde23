"""verify_directory and list_checkpoints: which checkpoints a directory holds, in which order, and what is wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import flip
from safetensors.torch import save_file

import torchsaver as ts
from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.inspection import directory as directory_report
from torchsaver.inspection.directory import in_order_of_commit, list_checkpoints, verify_directory
from torchsaver.inspection.reports import Progress, VerifyReport


def _run(directory: Path, steps: range, **settings: Any) -> ts.Saver:
    saver = ts.Saver({"x": torch.arange(4.0), "y": torch.arange(3.0)}, **settings)
    for step in steps:
        saver.save(directory / "m", step)
    return saver


def _facts(directory: Path, **arguments: Any) -> list[tuple[str, str, str]]:
    return [(s.name, s.report.verdict, s.listed) for s in list_checkpoints(directory, **arguments)]


def test_listing_is_in_order_of_commit_with_unlisted_ones_where_their_records_put_them(tmp_path: Path) -> None:
    saver = _run(tmp_path, range(9, 12), max_to_keep=2)
    old = (tmp_path / "m-10.safetensors").read_bytes()
    saver.save(tmp_path / "m", 2)  # m-10 leaves the list
    (tmp_path / "m-10.safetensors").write_bytes(old)
    ts.Saver({"z": torch.ones(1)}).save(tmp_path / "never_listed", write_state=False)
    save_file({"t": torch.ones(1)}, tmp_path / "their.safetensors")
    assert _facts(tmp_path) == [
        ("their", "no_checksums", "no"),
        ("never_listed", "valid", "no"),
        ("m-10", "valid", "no"),
        ("m-11", "valid", "yes"),
        ("m-2", "valid", "newest"),
    ]


def test_order_listed_ones_as_listed_others_before_the_first_with_a_higher_sequence() -> None:
    sequences = {"a": 7, "b": 3, "c": None, "d": 9, "u2": 2, "u8": 8, "u12": 12, "n2": None, "n1": None}
    reports = {
        name: VerifyReport(name, "valid", sequence=sequence, time=5.0 if name == "n2" else None)
        for name, sequence in sequences.items()
    }
    assert in_order_of_commit(["a", "b", "c", "gone", "d"], reports) == [
        *("n1", "n2", "u2", "a", "b", "c", "u8", "d", "u12")
    ]


def test_order_without_a_state_file_is_that_of_the_records(tmp_path: Path) -> None:
    saver = _run(tmp_path, range(9, 12))
    saver.save(tmp_path / "m", 2)
    (tmp_path / "checkpoint").unlink()
    assert _facts(tmp_path) == [(name, "valid", "no") for name in ("m-9", "m-10", "m-11", "m-2")]
    assert verify_directory(tmp_path).is_sound


def test_damage_of_one_checkpoint_does_not_stop_the_others(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 5))
    flip(tmp_path / "m-1.safetensors")
    flip(tmp_path / "m-3.safetensors", 3)
    report = verify_directory(tmp_path)
    assert not report.is_sound
    assert [status.report.verdict for status in report.checkpoints] == ["damaged", "valid", "damaged", "valid"]
    assert [status.report.damage[0].tensor for status in report.checkpoints[::2]] == ["y", None]


def test_headers_only_reads_no_tensor_and_sees_damaged_headers(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 4))
    save_file({"t": torch.ones(1)}, tmp_path / "their.safetensors")
    flip(tmp_path / "m-1.safetensors")
    flip(tmp_path / "m-2.safetensors", 3)
    verdicts = [verdict for _, verdict, _ in _facts(tmp_path, headers_only=True)]
    assert verdicts == ["no_checksums", "headers_ok", "damaged", "headers_ok"]
    assert all(status.report.checked_bytes == 0 for status in list_checkpoints(tmp_path, headers_only=True))


@pytest.mark.parametrize("text", ["model_checkpoint_path: 'm-1", "", "model_checkpoint_path: ''", "\x00"])
def test_damaged_state_file_is_reported_and_the_checkpoints_are_still_found(tmp_path: Path, text: str) -> None:
    _run(tmp_path, range(1, 3))
    (tmp_path / "checkpoint").write_text(text)
    report = verify_directory(tmp_path)
    (damage,) = report.damage
    assert damage[:3] == (str(tmp_path / "checkpoint"), None, 0)
    assert [(status.name, status.listed) for status in report.checkpoints] == [("m-1", "no"), ("m-2", "no")]
    assert not report.is_sound


def test_state_file_that_is_no_text_has_the_offset_of_the_byte(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 2))
    data = (tmp_path / "checkpoint").read_bytes()
    (tmp_path / "checkpoint").write_bytes(data[:30] + b"\xff" + data[31:])
    assert [damage.offset for damage in verify_directory(tmp_path).damage] == [30]


def test_path_outside_the_directory_is_not_followed_and_reported(tmp_path: Path) -> None:
    _run(tmp_path / "other", range(1, 2))
    _run(tmp_path / "run", range(1, 2))
    ts.update_checkpoint_state(
        tmp_path / "run", "m-1", all_model_checkpoint_paths=[str(tmp_path / "other" / "m-1"), "m-1"]
    )
    report = verify_directory(tmp_path / "run")
    assert [status.report.save_path for status in report.checkpoints] == [str(tmp_path / "run" / "m-1")]
    assert "does not stand in the directory itself" in report.damage[0].reason


@pytest.mark.parametrize("shards", [False, True])
def test_listed_checkpoint_that_is_gone_is_damage_in_its_place(tmp_path: Path, shards: bool) -> None:
    _run(tmp_path, range(1, 4), max_shard_bytes=17 if shards else None)
    missing = tmp_path / f"m-2.safetensors{'.index.json' if shards else ''}"
    missing.unlink()
    report = verify_directory(tmp_path)
    assert [(s.name, s.report.verdict) for s in report.checkpoints] == [
        ("m-1", "valid"),
        ("m-2", "gone"),
        ("m-3", "valid"),
    ]
    (damage,) = report.checkpoints[1].report.damage
    assert damage[:3] == (str(missing), None, None)
    assert not report.is_sound


def test_checkpoint_that_a_saver_removes_meanwhile_is_left_out(tmp_path: Path) -> None:
    saver = _run(tmp_path, range(1, 3), max_to_keep=2)

    def rotate(progress: Progress) -> None:
        if progress.name == "m-1":
            saver.save(tmp_path / "m", 3)  # removes m-1, which is open, and is read to its end
            saver.save(tmp_path / "m", 4)  # removes m-2

    report = verify_directory(tmp_path, progress=rotate)
    assert [(status.name, status.report.verdict) for status in report.checkpoints] == [("m-1", "valid")]
    assert report.is_sound


def test_unlisted_shards_without_an_index_are_incomplete_and_no_damage(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 2))
    ts.Saver({"x": torch.ones(4), "y": torch.ones(4)}, max_shard_bytes=16).save(tmp_path / "s", write_state=False)
    (tmp_path / "s.safetensors.index.json").unlink()
    assert _facts(tmp_path) == [("s", "incomplete", "no"), ("m-1", "valid", "newest")]
    assert verify_directory(tmp_path).is_sound


def test_what_is_no_checkpoint_is_left_out(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 2))
    (tmp_path / "directory.safetensors").mkdir()
    (tmp_path / "link.safetensors").symlink_to("nowhere")
    (tmp_path / ".torchsaver-0123456789abcdef.tmp").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    assert _facts(tmp_path) == [("m-1", "valid", "newest")]


def test_error_of_reading_one_is_unreadable_not_damaged_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(tmp_path, range(1, 4))
    flip(tmp_path / "m-3.safetensors")
    checksums = SafetensorsFile.checksums

    def failing(self: SafetensorsFile, *arguments: Any, **options: Any) -> list[int]:
        if self.path.endswith("m-2.safetensors"):
            raise OSError(errno.EIO, "Input/output error", self.path)
        return checksums(self, *arguments, **options)

    monkeypatch.setattr(SafetensorsFile, "checksums", failing)
    reports = [status.report for status in verify_directory(tmp_path).checkpoints]
    assert [report.verdict for report in reports] == ["valid", "unreadable", "damaged"]
    assert ("Input/output error" in reports[1].problem, reports[1].damage, reports[1].is_sound) == (True, (), False)


def test_listed_name_the_system_refuses_is_unreadable(tmp_path: Path) -> None:
    _run(tmp_path, range(1, 2))
    ts.update_checkpoint_state(tmp_path, "m-1", all_model_checkpoint_paths=["n" * 300, "m-1"])
    assert [verdict for _, verdict, _ in _facts(tmp_path)] == ["unreadable", "valid"]


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_no_directory_is_an_error(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        verify_directory(tmp_path / kind)


def test_empty_directory_holds_nothing(tmp_path: Path) -> None:
    report = verify_directory(tmp_path)
    assert (report.checkpoints, report.damage, report.is_sound) == ((), (), True)


def test_other_state_file_is_the_one_asked_for(tmp_path: Path) -> None:
    saver = _run(tmp_path, range(1, 2))
    saver.save(tmp_path / "b", 1, latest_filename="best")
    assert ("b-1", "valid", "newest") in _facts(tmp_path, latest_filename="best")


def test_fifos_in_every_place_do_not_hang(tmp_path: Path) -> None:
    for name in ("checkpoint", "f.safetensors", "g.safetensors.index.json"):
        os.mkfifo(tmp_path / name)
    report = verify_directory(tmp_path)
    assert [status.report.verdict for status in report.checkpoints] == ["damaged", "damaged"]
    assert [damage.reason for damage in report.damage] == ["it is no regular file"]


def test_read_only_directory_is_verified_and_nothing_in_it_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(tmp_path, range(1, 4), max_shard_bytes=17)
    flip(tmp_path / "m-2-00001-of-00002.safetensors")
    for path in tmp_path.iterdir():
        path.chmod(0o444)
    tmp_path.chmod(0o555)
    system_open = os.open

    def reading(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC), "nothing is opened to be written"
        return system_open(path, flags, *arguments, **keywords)

    def state() -> list[tuple[str, bytes, int]]:
        return [(str(path), path.read_bytes(), path.stat().st_ctime_ns) for path in sorted(tmp_path.iterdir())]

    before, changed = state(), tmp_path.stat().st_ctime_ns
    monkeypatch.setattr(os, "open", reading)
    try:
        assert [verdict for _, verdict, _ in _facts(tmp_path)] == ["valid", "damaged", "valid"]
        assert (state(), tmp_path.stat().st_ctime_ns) == (before, changed)
    finally:
        tmp_path.chmod(0o755)


def test_progress_counts_over_all_checkpoints_and_names_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsaver.inspection.verification._GROUP_BYTES", 16)
    _run(tmp_path, range(1, 3))
    seen: list[Progress] = []
    directory_report.verify_directory(tmp_path, progress=seen.append)
    assert seen == [
        Progress(16, 56, "m-1"),
        Progress(28, 56, "m-1"),
        Progress(44, 56, "m-2"),
        Progress(56, 56, "m-2"),
    ]
