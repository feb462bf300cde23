"""Real TensorFlow finds the newest checkpoint by the state file that torchsaver writes, and goes on from there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from interop.ours import to_records
from interop.peer import TensorFlow

import torchsaver as ts


def _save(directory: Path, step: int) -> str:
    return ts.save_tf_checkpoint(directory / f"model.ckpt-{step}", {"w": torch.tensor([float(step)])})


@pytest.mark.parametrize("latest_filename", [None, "other"])
@pytest.mark.parametrize("name", ["run", "with space", "\u00e9'\""])
def test_latest_checkpoint_is_the_one_the_state_file_was_made_with(
    tensorflow: TensorFlow, tmp_path: Path, name: str, latest_filename: str | None
) -> None:
    directory = tmp_path / name
    directory.mkdir()
    prefixes = [_save(directory, step) for step in (9, 10, 3)]
    ts.update_checkpoint_state(
        directory, prefixes[-1], all_model_checkpoint_paths=prefixes, latest_filename=latest_filename
    )
    found = tensorflow("state", directory=str(directory), latest_filename=latest_filename)
    assert found["latest"] == found["model_checkpoint_path"] == prefixes[-1]
    assert found["all_model_checkpoint_paths"] == prefixes
    assert found["values"] == to_records({"w": torch.tensor([3.0])})


def test_moved_directory_with_relative_paths_has_its_latest_checkpoint(
    tensorflow: TensorFlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("old")
    ts.update_checkpoint_state("old", _save(Path("old"), 1))
    os.rename("old", "new")
    assert tensorflow("state", directory=str(tmp_path / "new"))["latest"] == str(tmp_path / "new" / "model.ckpt-1")


def test_state_file_of_a_saver_is_read_though_its_checkpoints_are_not_tensorflow_s(
    tensorflow: TensorFlow, tmp_path: Path
) -> None:
    saver = ts.Saver({"w": torch.zeros(2)}, max_to_keep=2)
    prefixes = [saver.save(tmp_path / "model.ckpt", step) for step in range(4)]
    found = tensorflow("state", directory=str(tmp_path))
    assert found["latest"] is None  # there is no .index
    assert found["model_checkpoint_path"] == prefixes[-1]
    assert found["all_model_checkpoint_paths"] == prefixes[-2:]


def test_checkpoint_manager_of_tensorflow_goes_on_in_a_directory_of_ours(
    tensorflow: TensorFlow, tmp_path: Path
) -> None:
    prefixes = [_save(tmp_path, step) for step in (1, 2)]
    ts.update_checkpoint_state(
        tmp_path, prefixes[-1], all_model_checkpoint_paths=prefixes, all_model_checkpoint_timestamps=[1.5, 2.5]
    )
    found = tensorflow("continue_manager", directory=str(tmp_path), max_to_keep=2, saves=1)
    assert found["found"] == prefixes
    assert found["kept"][0] == prefixes[-1]
    assert found["latest"] == found["kept"][-1] == ts.latest_checkpoint(tmp_path)
    assert sorted(name for name in os.listdir(tmp_path) if name.endswith(".index")) == [
        "ckpt-100.index",
        "model.ckpt-2.index",
    ]
