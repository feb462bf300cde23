"""What the promise costs: how often a save waits for the device, whatever it saves."""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path

import pytest
import torch

import torchsaver as ts


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What the process waits for the device with: each fsync by what it was of, other calls by their name."""
    found: Counter[str] = Counter()
    really = os.fsync

    def fsync(fd: int) -> None:
        found["directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"] += 1
        really(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("fdatasync", "sync"):
        monkeypatch.setattr(os, name, lambda *args, name=name: found.update([name]))
    return found


def _tensors(count: int, nbytes: int) -> dict[str, torch.Tensor]:
    return {f"x{number}": torch.ones(nbytes, dtype=torch.uint8) for number in range(count)}


@pytest.mark.parametrize(("count", "nbytes"), [(1, 0), (1, 4), (300, 4), (1, 9 << 20), (20, 300_000)])
def test_save_of_one_file_waits_for_two_files_and_two_directories_whatever_it_saves(
    tmp_path: Path, synced: Counter[str], count: int, nbytes: int
) -> None:
    saver = ts.Saver(_tensors(count, nbytes), max_to_keep=1)
    saver.save(tmp_path / "m", 1)
    synced.clear()
    saver.save(tmp_path / "m", 2)  # and m-1 goes
    assert synced == {"file": 2, "directory": 2}
    saver.save(tmp_path / "m", 2)  # over itself
    assert synced == {"file": 4, "directory": 4}


@pytest.mark.parametrize("levels", [0, 1, 2, 5])
def test_first_save_waits_for_one_more_directory_a_level_it_makes(
    tmp_path: Path, synced: Counter[str], levels: int
) -> None:
    directory = Path(tmp_path, *"abcde"[:levels])
    ts.Saver(_tensors(1, 4)).save(directory / "m", 1)
    assert synced == {"file": 2, "directory": 2 + levels}


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_sharded_save_waits_for_each_shard_the_index_and_the_state_file_and_three_directories(
    tmp_path: Path, synced: Counter[str], shards: int
) -> None:
    saver = ts.Saver(_tensors(shards, 16), max_to_keep=1, max_shard_bytes=16)
    for step in (1, 2, 2):  # into an empty directory, beside an older one that goes, and over itself
        synced.clear()
        saver.save(tmp_path / "m", step)
        assert synced == {"file": shards + 2, "directory": 3}


def test_save_of_one_file_over_a_sharded_one_waits_for_one_more_directory(tmp_path: Path, synced: Counter[str]) -> None:
    variables = _tensors(2, 16)
    ts.Saver(variables, max_shard_bytes=16).save(tmp_path / "m", 1)
    synced.clear()
    ts.Saver(variables).save(tmp_path / "m", 1)
    assert synced == {"file": 2, "directory": 3}


def test_save_that_is_not_listed_waits_for_one_file_and_one_directory(tmp_path: Path, synced: Counter[str]) -> None:
    ts.Saver(_tensors(1, 4)).save(tmp_path / "m", write_state=False)
    assert synced == {"file": 1, "directory": 1}


def test_update_checkpoint_state_waits_for_one_file_and_one_directory(tmp_path: Path, synced: Counter[str]) -> None:
    ts.update_checkpoint_state(tmp_path, os.fspath(tmp_path / "m-1"))
    assert synced == {"file": 1, "directory": 1}


def test_restoring_and_removing_wait_for_nothing(tmp_path: Path, synced: Counter[str]) -> None:
    saver = ts.Saver(_tensors(1, 4))
    for step in (1, 2):
        saver.save(tmp_path / "m", step)
    synced.clear()
    saver.resume(tmp_path)
    ts.newest_valid_checkpoint(tmp_path)
    ts.remove_checkpoint(tmp_path / "m-1")
    assert not synced
