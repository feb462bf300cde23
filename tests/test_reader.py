"""Reading without a model."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import torchsaver as ts


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    values = {
        "w": torch.arange(24.0).reshape(6, 4),
        "s": torch.tensor(7, dtype=torch.int16),
        "z": torch.tensor([1 + 2j], dtype=torch.complex128),
    }
    saved = ts.Saver(values).save(tmp_path / "run" / "m", 5, metadata={"k": [1]})
    assert saved is not None
    return saved


def test_reader_knows_everything_but_the_values_from_the_header(prefix: str) -> None:
    with ts.load_checkpoint(prefix) as reader:
        assert reader.keys() == ["s", "w", "z"]
        assert reader.get_variable_to_shape_map() == {"s": [], "w": [6, 4], "z": [1]}
        assert reader.get_variable_to_dtype_map() == {"s": torch.int16, "w": torch.float32, "z": torch.complex128}
        assert (reader.global_step, reader.metadata) == (5, {"k": [1]})
        assert reader.debug_string() == b"s (DT_INT16) []\nw (DT_FLOAT) [6,4]\nz (DT_COMPLEX128) [1]\n"
        assert (reader.has_tensor("w"), reader.has_tensor("w:0")) == (True, False)


@pytest.mark.parametrize("given", ["directory", "prefix", "file", "pathlib"])
def test_checkpoint_is_found_by_any_of_its_names(given: str, prefix: str) -> None:
    forms: dict[str, Any] = {
        "directory": os.path.dirname(prefix),
        "prefix": prefix,
        "file": f"{prefix}.safetensors",
        "pathlib": Path(prefix),
    }
    assert ts.load_variable(forms[given], "w:0").sum() == 276


def test_missing_key_names_the_nearest(tmp_path: Path) -> None:
    prefix = ts.Saver({"dense/kernel": torch.ones(1)}).save(tmp_path / "m")
    with pytest.raises(ts.CheckpointKeyError, match="'dense/kernel'") as caught:
        ts.load_variable(prefix, "dense/kernal")
    assert caught.value.nearest == ("dense/kernel",)


SLICES = [
    *(slice(2, 4), slice(None), slice(1, None, 2), slice(4, 2), slice(-2, None), 3, -1),
    *((slice(2, 4), 1), (2, slice(1, 3)), (slice(None), [0, 2]), ..., [1, 3], (Ellipsis, 0)),
]


@pytest.mark.parametrize("index", SLICES, ids=repr)
def test_slice_gives_what_the_whole_tensor_gives(index: Any, prefix: str) -> None:
    with ts.load_checkpoint(prefix) as reader:
        piece = reader.get_slice("w")
        assert torch.equal(piece[index], torch.arange(24.0).reshape(6, 4)[index])
        assert (piece.get_shape(), piece.get_dtype()) == ([6, 4], torch.float32)


@pytest.mark.parametrize(("index", "error"), [(6, IndexError), (slice(None, None, -1), ValueError)], ids=repr)
def test_slice_out_of_range_is_an_error(index: Any, error: type[Exception], prefix: str) -> None:
    with ts.load_checkpoint(prefix) as reader, pytest.raises(error):
        reader.get_slice("w")[index]


def test_slice_reads_only_the_rows_asked_for(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    with ts.load_checkpoint(prefix) as reader:
        preadv = os.preadv

        def counting(fd: int, buffers: Any, offset: int) -> int:
            read.append(sum(map(len, buffers)))
            return preadv(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", counting)
        reader.get_slice("w")[2:4]
    assert sum(read) == 2 * 4 * 4


def test_slice_of_a_scalar_is_the_scalar(prefix: str) -> None:
    with ts.load_checkpoint(prefix) as reader:
        assert reader.get_slice("s")[()].item() == 7


def test_reader_stays_on_its_checkpoint_when_that_is_replaced_or_removed(prefix: str) -> None:
    with ts.load_checkpoint(prefix) as reader:
        ts.Saver({"w": torch.zeros(6, 4)}).save(prefix)
        ts.remove_checkpoint(prefix)
        assert reader.get_tensor("w").sum() == 276


def test_get_tensor_finds_a_flipped_bit(prefix: str) -> None:
    path = Path(f"{prefix}.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of "s": narrow dtypes are last
    path.write_bytes(data)
    with ts.load_checkpoint(prefix) as reader, pytest.raises(ts.CorruptCheckpointError, match="checksum"):
        reader.get_tensor("s")
    with ts.load_checkpoint(prefix) as reader, pytest.raises(ts.CorruptCheckpointError, match="checksum"):
        reader.verify()


def test_directory_without_a_checkpoint_is_not_found_and_named(tmp_path: Path) -> None:
    with pytest.raises(ts.CheckpointNotFoundError, match=tmp_path.name):
        ts.load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["m", "m.safetensors", "m.safetensors.index.json"])
def test_third_party_shards_are_read_through_their_index(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "y.safetensors")
    index = {"metadata": {"total_size": 16}, "weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    if name == "m.safetensors":
        with pytest.raises(ts.CheckpointNotFoundError):
            ts.load_checkpoint(tmp_path / name)
        return
    with ts.load_checkpoint(tmp_path / name) as reader:
        assert reader.get_tensor("a").tolist() == [1.0, 1.0]
        assert (reader.keys(), reader.global_step) == (["a", "b"], None)


@pytest.mark.parametrize(
    "weight_map", [{"a": "../x.safetensors"}, {"a": "/x.safetensors"}, {"a": 1}, {"c": "x.safetensors"}, []]
)
def test_hostile_index_is_refused(weight_map: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "in" / "x.safetensors")
    (tmp_path / "in" / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ts.CorruptCheckpointError, match="index"):
        ts.load_checkpoint(tmp_path / "in" / "m")


def test_key_in_two_shards_is_that_of_the_shard_the_index_names(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "x.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "y.safetensors")
    (tmp_path / "m.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"b": "x.safetensors", "a": "y.safetensors"}})
    )
    assert ts.load_variable(tmp_path / "m", "a").tolist() == [0.0, 0.0]


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x04pickle", b"PK\x03\x04" + bytes(99)], ids=repr)
def test_foreign_file_is_a_corrupt_checkpoint_that_names_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ts.CorruptCheckpointError, match=r"m\.safetensors"):
        ts.load_checkpoint(tmp_path / "m")


def test_readers_close_their_files(prefix: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = ts.load_checkpoint(prefix)
    reader.close()
    reader.close()
    Path(f"{prefix}.safetensors").write_bytes(b"junk")
    with pytest.raises(ts.CorruptCheckpointError):
        ts.load_checkpoint(prefix)
    assert len(os.listdir("/proc/self/fd")) == before
