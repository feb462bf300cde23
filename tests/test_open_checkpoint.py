"""A checkpoint without its values; what it shares with the reader is tested in test_reader.py."""

import os
from pathlib import Path

import pytest
import torch

import torchsaver as ts
from torchsaver.formats.tensor_bytes import TORCH_DTYPES
from torchsaver.open_checkpoint import OpenCheckpoint, TensorDescription, open_checkpoint

# Two tensors of one float4 each: in all a byte, and no shape in torch.
ODD_FLOAT4 = b'{"x":{"dtype":"F4","shape":[2,1],"data_offsets":[0,1]}}'
FLOAT4 = b'{"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'


def _written(path: Path, header: bytes) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(1))
    return path


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 3), "b": torch.nn.Linear(2, 3)})
    model["b"].weight = model["a"].weight
    values = {"m": model, "z": torch.ones(4, dtype=torch.complex128)}
    return str(ts.Saver(values).save(tmp_path / "run" / "m", 5, metadata={"k": [1]}))


def test_open_checkpoint_knows_everything_but_the_values(prefix: str) -> None:
    with open_checkpoint(prefix) as checkpoint:
        assert checkpoint.keys() == ["m.a.bias", "m.a.weight", "m.b.bias", "z"]
        assert checkpoint.aliases == {"m.b.weight": "m.a.weight"}
        assert checkpoint.describe("z") == TensorDescription("z", "complex128", (4,), 64)
        assert checkpoint.describe("m.b.weight") == ("m.a.weight", "float32", (3, 2), 24)
        assert (checkpoint.has_tensor("m.b.weight"), checkpoint.has_tensor("z"), checkpoint.has_tensor("z:0")) == (
            True,
            True,
            False,
        )
        assert (checkpoint.save_path, checkpoint.global_step, checkpoint.metadata) == (prefix, 5, {"k": [1]})
        assert [file.path for file in checkpoint.files] == [f"{prefix}.safetensors"]


def test_open_checkpoint_of_a_directory_is_its_newest(prefix: str) -> None:
    with open_checkpoint(os.path.dirname(prefix)) as checkpoint:
        assert (type(checkpoint), checkpoint.save_path) == (OpenCheckpoint, prefix)


def test_missing_key_is_the_readers_error(prefix: str) -> None:
    with open_checkpoint(prefix) as checkpoint, ts.load_checkpoint(prefix) as reader:
        with pytest.raises(ts.CheckpointKeyError) as one:
            checkpoint.describe("m.a.wieght")
        with pytest.raises(ts.CheckpointKeyError) as other:
            reader.stored("m.a.wieght")
    assert str(one.value) == str(other.value)
    assert one.value.nearest[0] == "m.a.weight"


@pytest.mark.parametrize("where", ["nowhere", "run", "empty"])
def test_nothing_there_is_the_readers_error(where: str, prefix: str, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint").unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ts.CheckpointNotFoundError) as one:
        open_checkpoint(tmp_path / where)
    with pytest.raises(ts.CheckpointNotFoundError) as other:
        ts.load_checkpoint(tmp_path / where)
    assert str(one.value) == str(other.value)


def test_odd_number_of_float4_is_refused_and_the_file_closed(tmp_path: Path) -> None:
    path = _written(tmp_path / "m.safetensors", ODD_FLOAT4)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ts.UnsupportedCheckpointError, match="in pairs"):
        open_checkpoint(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_dtype_that_this_torch_lacks_is_described_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _written(tmp_path / "m.safetensors", FLOAT4)
    monkeypatch.delitem(TORCH_DTYPES, "F4", raising=False)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.describe("x") == ("x", "float4_e2m1fn_x2", (1,), 1)
    with pytest.raises(ts.UnsupportedCheckpointError, match=r"'x' is F4, which torch .* lacks"):
        ts.load_checkpoint(path)


def test_open_checkpoint_is_closed_at_the_end_of_its_with_block(prefix: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open_checkpoint(prefix) as checkpoint:
        assert len(os.listdir("/proc/self/fd")) == before + 1
    checkpoint.close()
    assert len(os.listdir("/proc/self/fd")) == before
