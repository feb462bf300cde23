"""A checkpoint's files as a whole: one form replaces the other, and removal takes exactly its own files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.dying_disk import install
from safetensors.torch import load_file

import torchsaver as ts
from torchsaver.formats.manifest import Manifest
from torchsaver.storage.checkpoint_files import write_checkpoint

STALE = ["m-1.safetensors", "m-00001-of-00002.safetensors.bak", "mm.safetensors", "m", "m.index.json", "checkpoint"]


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)  # without waiting for the device: what is durable is tested in test_disk.py


def _tensors(value: float, keys: str = "abc") -> dict[str, torch.Tensor]:
    return {key: torch.full((3,), value) for key in keys}


def _load(prefix: str) -> dict[str, float]:
    with ts.load_checkpoint(prefix) as reader:
        reader.verify()
        return {key: reader.get_tensor(key)[0].item() for key in reader.keys()}


@pytest.mark.parametrize("new", [None, 24, 12])
@pytest.mark.parametrize("old", [None, 24, 12])
def test_write_checkpoint_over_another_form_leaves_only_the_new_one(
    tmp_path: Path, old: int | None, new: int | None
) -> None:
    prefix = str(tmp_path / "m")
    for round_, max_shard_bytes in enumerate([old, new, old, new]):
        write_checkpoint(prefix, _tensors(float(round_)), Manifest(), max_shard_bytes)
        assert _load(prefix) == dict.fromkeys("abc", round_)
        with ts.load_checkpoint(prefix) as reader:
            files = {os.path.basename(file.path) for file in reader.files}
        index = {"m.safetensors.index.json"} if max_shard_bytes else set()
        assert set(os.listdir(tmp_path)) == files | index
        assert len(files) == {None: 1, 24: 2, 12: 3}[max_shard_bytes]


@pytest.mark.parametrize(
    ("sizes", "limit", "groups"),
    [
        ({"a": 4, "b": 4, "c": 4}, 12, ["abc"]),
        ({"a": 4, "b": 4, "c": 4}, 8, ["ab", "c"]),
        ({"a": 4, "b": 40, "c": 4}, 8, ["a", "b", "c"]),  # a larger tensor is a shard of its own
        ({"c": 4, "b": 4, "a": 4}, 8, ["ab", "c"]),  # sorted by key
        ({"a": 0, "b": 8, "c": 0, "d": 1}, 8, ["abc", "d"]),
        ({"a": 40}, 8, ["a"]),
    ],
)
def test_write_checkpoint_with_a_limit_groups_tensors_in_key_order(
    tmp_path: Path, sizes: dict[str, int], limit: int, groups: list[str]
) -> None:
    tensors = {key: torch.ones(size, dtype=torch.uint8) for key, size in sizes.items()}
    write_checkpoint(str(tmp_path / "m"), tensors, Manifest(), limit)
    files = sorted(path for path in tmp_path.iterdir() if path.suffix == ".safetensors")
    assert ["".join(sorted(load_file(file))) for file in files] == groups


def test_write_checkpoint_over_a_checkpoint_of_a_longer_name_touches_neither_way(tmp_path: Path) -> None:
    for name, value in (("m", 1.0), ("m-1", 2.0), ("mm", 3.0), ("m", 4.0)):
        write_checkpoint(str(tmp_path / name), _tensors(value), Manifest(), 12)
    assert [_load(str(tmp_path / name))["a"] for name in ("m", "m-1", "mm")] == [4.0, 2.0, 3.0]


@pytest.mark.parametrize("max_shard_bytes", [None, 12])
def test_remove_checkpoint_removes_exactly_its_own_files(tmp_path: Path, max_shard_bytes: int | None) -> None:
    write_checkpoint(str(tmp_path / "m"), _tensors(1.0), Manifest(), max_shard_bytes)
    for name in STALE:
        (tmp_path / name).write_bytes(b"mine")
    ts.remove_checkpoint(tmp_path / "m")
    assert sorted(os.listdir(tmp_path)) == sorted(STALE)
    ts.remove_checkpoint(tmp_path / "m")  # nothing there: silent
    assert sorted(os.listdir(tmp_path)) == sorted(STALE)


def test_remove_checkpoint_in_both_forms_removes_both(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path / "m"), _tensors(1.0), Manifest(), 12)
    write_checkpoint(str(tmp_path / "other"), _tensors(1.0), Manifest())
    (tmp_path / "other.safetensors").rename(tmp_path / "m.safetensors")
    ts.remove_checkpoint(tmp_path / "m")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "victim",
    [
        "victim.safetensors",
        "m.safetensors.bak",
        "m",
        "n-00001-of-00002.safetensors",
        "checkpoint",
        "m-1.safetensors",
        "mm-00001-of-00002.safetensors",
        "m-00001000-00001-of-00002.safetensors",
        "sub/m-00001-of-00001.safetensors",
        "../outside/m-00001-of-00001.safetensors",
        "{0}/run/sub/m-00001-of-00001.safetensors",
    ],
)
@pytest.mark.parametrize("act", ["remove", "overwrite"])
def test_hostile_index_never_has_a_file_removed_that_is_not_its_checkpoints(
    tmp_path: Path, victim: str, act: str
) -> None:
    (tmp_path / "run" / "sub").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    path = Path(os.path.join(tmp_path / "run", victim.format(tmp_path)))
    path.write_bytes(b"precious")
    weight_map = {"w": victim.format(tmp_path)}
    (tmp_path / "run" / "m.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    if act == "remove":
        ts.remove_checkpoint(tmp_path / "run" / "m")
    else:
        write_checkpoint(str(tmp_path / "run" / "m"), _tensors(1.0), Manifest())
    assert path.read_bytes() == b"precious"
    assert not (tmp_path / "run" / "m.safetensors.index.json").exists()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"weight_map": 3}', b'{"weight_map": {"w": null}}'])
def test_remove_checkpoint_with_a_broken_index_removes_the_index_alone(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.safetensors.index.json").write_bytes(data)
    (tmp_path / "n-00001-of-00001.safetensors").write_bytes(b"mine")
    ts.remove_checkpoint(tmp_path / "m")
    assert os.listdir(tmp_path) == ["n-00001-of-00001.safetensors"]


def test_remove_checkpoint_behind_links_removes_the_links_alone(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    write_checkpoint(str(tmp_path / "real" / "m"), _tensors(1.0), Manifest())
    (tmp_path / "m.safetensors").symlink_to(tmp_path / "real" / "m.safetensors")
    ts.remove_checkpoint(tmp_path / "m")
    assert os.listdir(tmp_path) == ["real"]
    assert _load(str(tmp_path / "real" / "m"))["a"] == 1.0


@pytest.mark.parametrize("name", ["m?", "m*", "[m]", "m[0-9]", "m\\1", "{m,n}", "~", "$HOME", "m\n", "é"])
@pytest.mark.parametrize("max_shard_bytes", [None, 12])
def test_checkpoint_named_like_a_pattern_is_literal(tmp_path: Path, name: str, max_shard_bytes: int | None) -> None:
    for other in ("m", "m1", "n", "mX", "m?x"):
        write_checkpoint(str(tmp_path / other), _tensors(0.0), Manifest(), max_shard_bytes)
    others = sorted(os.listdir(tmp_path))
    assert not ts.checkpoint_exists(tmp_path / name)
    write_checkpoint(str(tmp_path / name), _tensors(1.0), Manifest(), max_shard_bytes)
    assert ts.checkpoint_exists(tmp_path / name)
    assert _load(str(tmp_path / name))["a"] == 1.0
    ts.remove_checkpoint(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == others


@pytest.mark.parametrize(
    ("given", "there"),
    [
        ("m", True),
        (b"m", True),
        (Path("m"), True),
        ("sharded", True),
        ("m.safetensors", True),
        ("plain", True),
        ("sharded-00001-of-00003", True),
        ("", False),
        ("directory", False),
        ("M", False),
        ("m.", False),
        ("m/", False),
        ("no/m", False),
        ("m\x00", False),
        ("taken", False),
    ],
)
def test_checkpoint_exists_for_literal_prefixes_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, there: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint("m", _tensors(1.0), Manifest())
    write_checkpoint("sharded", _tensors(1.0), Manifest(), 12)
    Path("plain").write_bytes(b"")
    Path("directory").mkdir()
    Path("taken.safetensors").mkdir()
    assert ts.checkpoint_exists(given) is there


@pytest.mark.parametrize("function", [ts.checkpoint_exists, ts.remove_checkpoint])
def test_checkpoint_exists_and_remove_of_no_path_are_type_errors(function: Any) -> None:
    with pytest.raises(TypeError, match="checkpoint_prefix"):
        function(None)


def test_get_checkpoint_mtimes_gives_seconds_in_order_and_leaves_out_what_is_missing(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path / "one"), _tensors(1.0), Manifest())
    write_checkpoint(str(tmp_path / "two"), _tensors(1.0), Manifest(), 12)
    os.utime(tmp_path / "one.safetensors", (5, 1700000000.5))
    os.utime(tmp_path / "two.safetensors.index.json", (5, 1600000000.25))
    prefixes = [tmp_path / "two", str(tmp_path / "missing"), os.fsencode(tmp_path / "one")]
    assert ts.get_checkpoint_mtimes(prefixes) == [1600000000.25, 1700000000.5]
    assert ts.get_checkpoint_mtimes([]) == []


@pytest.mark.parametrize("call", [1, 2])
def test_saver_whose_removal_of_an_old_sharded_checkpoint_failed_half_way_removes_the_rest_after_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    saver = ts.Saver(_tensors(1.0), max_to_keep=1, max_shard_bytes=12)
    saver.save(tmp_path / "m", 1)
    unlink, seen = os.unlink, []

    def fail_once(path: Any, **kwargs: Any) -> None:
        seen.append(path)
        if len(seen) == call:
            raise PermissionError(13, "Permission denied", path)
        unlink(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail_once)
        saver.save(tmp_path / "m", 2)
    assert len(seen) >= call
    saver.save(tmp_path / "m", 3)
    assert [name for name in os.listdir(tmp_path) if name.startswith(("m-1", "m-2"))] == []


# ---- what others read, and what removing frees


@pytest.mark.parametrize("shard_bytes", [None, 12])
def test_checkpoint_is_pinned_while_any_of_its_files_is(tmp_path: Path, shard_bytes: int | None) -> None:
    from torchsaver.storage import locks
    from torchsaver.storage.checkpoint_files import is_pinned, remove_unpinned

    prefix = str(tmp_path / "m")
    write_checkpoint(prefix, _tensors(1.0), Manifest(), shard_bytes)
    for path in sorted(tmp_path.iterdir()):
        assert not is_pinned(prefix)
        fd = os.open(path, os.O_RDONLY)
        assert locks.acquire(fd, shared=True)
        assert is_pinned(prefix)
        assert not remove_unpinned(prefix)
        os.close(fd)
    assert not is_pinned(str(tmp_path / "none"))
    assert remove_unpinned(prefix)


@pytest.mark.parametrize("shard_bytes", [None, 12])
def test_bytes_to_free_are_those_of_files_without_another_name(tmp_path: Path, shard_bytes: int | None) -> None:
    from torchsaver.storage.checkpoint_files import bytes_to_free

    prefix = str(tmp_path / "m")
    write_checkpoint(prefix, _tensors(1.0), Manifest(), shard_bytes)
    sizes = {path: path.stat().st_size for path in tmp_path.iterdir()}
    assert bytes_to_free(prefix) == sum(sizes.values())
    for path in sizes:
        os.link(path, tmp_path / f"{path.name}.other")
    assert bytes_to_free(prefix) == bytes_to_free(str(tmp_path / "none")) == 0
