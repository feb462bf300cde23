"""What users pass in place of a TensorFlow prefix works, or gets a message of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import corpus
import pytest
import torch
from corpus import CORPUS

import torchsaver as ts
from torchsaver.storage import paths

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """A copy of a small bundle, with the .meta file beside it."""
    shutil.copytree(CORPUS / "v2_list", tmp_path / "run")
    return str(tmp_path / "run" / corpus.expected("v2_list")["prefix"])


@pytest.mark.parametrize("ending", [".index", ".data-00000-of-00001", ".meta"])
def test_file_of_a_bundle_stands_for_the_bundle(ending: str, prefix: str) -> None:
    assert ts.list_variables(prefix + ending) == ts.list_variables(prefix)
    assert ts.checkpoint_exists(prefix + ending)


@pytest.mark.parametrize(("ending", "what"), [(".data-00000-of-00001", "data file"), (".meta", "graph")])
def test_file_of_a_bundle_without_its_index_says_so(ending: str, what: str, prefix: str) -> None:
    Path(prefix + ".index").unlink()
    with pytest.raises(ts.CorruptCheckpointError, match=rf"{what} of TensorFlow's.*\.index' is missing"):
        ts.load_checkpoint(prefix + ending)
    (damage,) = ts.verify_checkpoint(prefix + ending).damage
    assert what in damage.reason


@pytest.mark.parametrize("ending", [".index", ".data-00000-of-00001"])
def test_pointer_of_git_lfs_in_the_place_of_a_file_is_told(ending: str, prefix: str) -> None:
    Path(prefix + ending).write_bytes(POINTER)
    with pytest.raises(ts.CorruptCheckpointError, match="git lfs pull"):
        ts.load_variable(prefix, corpus.expected("v2_list")["tensors"][0]["key"])


def test_pointer_of_git_lfs_in_the_place_of_a_safetensors_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(POINTER)
    with pytest.raises(ts.CorruptCheckpointError, match="git lfs pull"):
        ts.load_checkpoint(tmp_path / "m")


def test_directory_with_tensorflow_s_state_file_stands_for_the_newest() -> None:
    newest = corpus.prefix("checkpoint_state")
    directory = Path(newest).parent
    assert ts.latest_checkpoint(directory) == newest
    assert ts.list_variables(directory) == ts.list_variables(newest)


def test_directory_that_was_moved_stands_for_the_newest_though_its_state_file_has_absolute_paths() -> None:
    assert ts.latest_checkpoint(CORPUS / "v2_list") is None, "as in TF"
    assert ts.list_variables(CORPUS / "v2_list") == ts.list_variables(corpus.prefix("v2_list"))


def test_directory_of_a_saved_model_stands_for_its_values() -> None:
    case = "savedmodel_keras2"
    directory = Path(corpus.prefix(case)).parent.parent
    assert ts.list_variables(directory) == ts.list_variables(corpus.prefix(case))


def test_directory_without_a_state_file_names_the_checkpoints_in_it(prefix: str) -> None:
    (Path(prefix).parent / "checkpoint").unlink()
    with pytest.raises(ts.CheckpointNotFoundError, match=f"there are '{prefix}'"):
        ts.load_checkpoint(Path(prefix).parent)


def test_prefix_of_v1_files_without_the_question_marks_is_told_its_name() -> None:
    pattern = corpus.prefix("v1_sharded")
    with pytest.raises(ts.CheckpointNotFoundError, match=r"model.ckpt-\?\?\?\?\?-of-00002"):
        ts.load_checkpoint(pattern.partition("-?")[0])


def test_one_of_several_v1_files_stands_for_all_of_them() -> None:
    pattern = corpus.prefix("v1_sharded")
    assert ts.list_variables(pattern.replace("?????", "00001")) == ts.list_variables(pattern)


def test_own_checkpoint_of_the_same_prefix_comes_first(prefix: str) -> None:
    ts.Saver({"w": torch.ones(2)}).save(prefix)
    assert ts.list_variables(prefix) == [("w", [2])]


def test_saver_leaves_tensorflow_s_checkpoints_alone(prefix: str) -> None:
    before = {path.name: path.read_bytes() for path in Path(prefix).parent.iterdir() if path.name != "checkpoint"}
    saver = ts.Saver({"w": torch.ones(2)}, max_to_keep=1)
    state = ts.get_checkpoint_state(Path(prefix).parent)
    assert state is not None
    saver.recover_last_checkpoints(state.all_model_checkpoint_paths)
    for step in range(3):
        saver.save(Path(prefix).parent / "ours", step)
    assert {name: (Path(prefix).parent / name).read_bytes() for name in before} == before
    assert paths.find_checkpoint(prefix) is not None
