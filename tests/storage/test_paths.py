"""File names: what is written can be parsed, names are literal, and a checkpoint is one however it is spelled."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from torchsaver.storage import paths


@pytest.mark.parametrize("given", ["run/m", b"run/m", Path("run/m")])
def test_path_text_of_any_kind_of_path_is_str(given: Any) -> None:
    assert paths.path_text(given) == "run/m"


@pytest.mark.parametrize("given", [None, 3, ["run/m"], bytearray(b"m")])
def test_path_text_of_anything_else_names_the_argument(given: Any) -> None:
    with pytest.raises(TypeError, match="ckpt_dir_or_file"):
        paths.path_text(given, "ckpt_dir_or_file")


def test_names_are_those_the_docstring_lists() -> None:
    assert paths.checkpoint_file("d/m-1") == "d/m-1.safetensors"
    assert paths.index_file("d/m-1") == "d/m-1.safetensors.index.json"
    assert paths.shard_file("d/m-1", 1, 3) == "d/m-1-00001-of-00003.safetensors"
    assert paths.shard_file("d/m", 100000, 123456, "0a1b2c3d") == "d/m-0a1b2c3d-100000-of-123456.safetensors"
    assert (paths.state_file("d"), paths.state_file("d", "other")) == ("d/checkpoint", "d/other")
    assert (paths.is_index("m.safetensors.index.json"), paths.is_index("m.safetensors")) == (True, False)


@pytest.mark.parametrize(
    ("step", "pad", "prefix"),
    [
        (None, True, "m"),
        (0, False, "m-0"),
        (7, True, "m-00000007"),
        (-5, False, "m--5"),
        (-5, True, "m--0000005"),
        (123456789, True, "m-123456789"),
    ],
)
def test_step_prefix_is_tfs(step: int | None, pad: bool, prefix: str) -> None:
    assert paths.step_prefix("m", step, pad) == prefix


@pytest.mark.parametrize("prefix", ["m", "m-1000", "m.ckpt", "a[x]*?", "m (copy)", "é", "m-00001-of-00002"])
@pytest.mark.parametrize("count", [1, 3])
def test_shard_files_are_recognized_plain_and_with_a_mark(tmp_path: Path, prefix: str, count: int) -> None:
    plain = paths.shard_files(str(tmp_path / prefix), count)
    Path(plain[-1]).symlink_to(tmp_path / "nowhere")  # a dangling link is a taken name too
    marked = paths.shard_files(str(tmp_path / prefix), count)
    assert len(set(plain) | set(marked)) == 2 * count
    assert plain == [f"{tmp_path}/{prefix}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    assert all(paths.is_shard_of(str(tmp_path / prefix), os.path.basename(name)) for name in plain + marked)
    assert len({re.sub(r"-\d{5}-of", "", os.path.basename(name)) for name in marked}) == 1, "one mark for all"


@pytest.mark.parametrize(
    "name",
    [
        "m.safetensors",
        "m.safetensors.index.json",
        "n-00001-of-00002.safetensors",
        "mm-00001-of-00002.safetensors",
        "m-00001-of-00002.safetensors.bak",
        "m-00001-of-00002xsafetensors",
        "m-1-of-2.safetensors",
        "../m",
        "m",
        "m-1000-00001-of-00002.safetensors",
        "m-0A1B2C3D-00001-of-00002.safetensors",
        "checkpoint",
        "",
        "x/m-00001-of-00002.safetensors",
        "m-00001-of-00002.safetensors\n",
        "m-٠٠٠٠١-of-٠٠٠٠٢.safetensors",
    ],
)
def test_is_shard_of_any_other_name_is_false(name: str) -> None:
    assert not paths.is_shard_of("dir/m", name)


def test_is_shard_of_takes_the_prefix_literally() -> None:
    assert not paths.is_shard_of("m.", "mx-00001-of-00002.safetensors")
    assert not paths.is_shard_of("m*", "mmm-00001-of-00002.safetensors")


def test_is_shard_of_a_padded_step_of_the_prefix_is_false() -> None:
    # pad_step_number writes m-00001000: its shards look like those of m with a mark, and are another checkpoint's.
    assert not paths.is_shard_of("m", "m-00001000-00001-of-00002.safetensors")


def test_find_checkpoint_takes_the_index_before_the_file_before_a_plain_file(tmp_path: Path) -> None:
    prefix = str(tmp_path / "m")
    found = [paths.find_checkpoint(prefix)]
    for path in (prefix, paths.checkpoint_file(prefix), paths.index_file(prefix)):
        Path(path).write_bytes(b"")
        found.append(paths.find_checkpoint(prefix))
    assert found == [None, prefix, prefix + ".safetensors", prefix + ".safetensors.index.json"]


@pytest.mark.parametrize("name", ["", "nothing", "directory", "file/below", "m\0", "missing/m", "dangling"])
def test_find_checkpoint_of_what_is_no_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("directory").mkdir()
    Path("file").write_bytes(b"")
    Path("dangling").symlink_to("nowhere")
    assert paths.find_checkpoint(name) is None


def test_find_checkpoint_that_may_not_be_looked_at_raises(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")  # stands for a directory that may not be read: root may read all
    with pytest.raises(OSError, match="loop"):
        paths.find_checkpoint(str(tmp_path / "loop" / "m"))


def test_identity_of_every_spelling_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "elsewhere").symlink_to("run/deep")
    monkeypatch.chdir(tmp_path / "run")
    spellings = ["m", "./m", "deep/../m", "../link/m", "../run//m", f"{tmp_path}/link/m", f"{tmp_path}/elsewhere/../m"]
    assert {paths.identity(spelling) for spelling in spellings} == {os.path.realpath(tmp_path / "run" / "m")}


@pytest.mark.parametrize(("one", "other"), [("m", "M"), ("m", "m-1"), ("m", "run/m"), ("m", "m.safetensors")])
def test_identity_of_different_checkpoints_differs(one: str, other: str) -> None:
    assert paths.identity(one) != paths.identity(other)


def test_identity_of_a_link_with_the_prefixs_own_name_is_the_name(tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to("other")  # a save replaces it: it is the name that counts
    assert paths.identity(str(tmp_path / "m")) == os.path.join(os.path.realpath(tmp_path), "m")


def test_temporary_file_is_recognized_hidden_and_never_the_same() -> None:
    names = [paths.temporary_file("d") for _ in range(100)]
    assert len(set(names)) == 100
    assert all(name.startswith("d/.") and paths.is_temporary(os.path.basename(name)) for name in names)


@pytest.mark.parametrize(
    "name",
    [
        ".torchsaver-.tmp",
        ".torchsaver-0123456789abcde.tmp",
        ".torchsaver-0123456789ABCDEF.tmp",
        "checkpoint.tmp",
        "x.torchsaver-0123456789abcdef.tmp",
        ".torchsaver-0123456789abcdef.tmp~",
        ".torchsaver-0123456789abcdef.tmp\n",
    ],
)
def test_is_temporary_of_any_other_name_is_false(name: str) -> None:
    assert not paths.is_temporary(name)
