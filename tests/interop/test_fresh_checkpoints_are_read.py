"""What real TensorFlow has just written, and nobody recorded, is read bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from interop.ours import DTYPES, any_bits, strings, to_record, to_records, to_value
from interop.peer import TensorFlow

import torchsaver as ts

NO_VARIABLES = {"float8_e4m3fnuz", "float8_e5m2fnuz"}
NOT_IN_V1 = {"bfloat16", "uint32", "uint64", *(name for name in DTYPES if name.startswith("float8"))}


def _tensors(version: int) -> dict[str, Any]:
    left_out = NO_VARIABLES | (NOT_IN_V1 if version == 1 else set())
    return {
        **{f"of/{dtype}": any_bits(dtype, 4, 3) for dtype in DTYPES if dtype not in left_out},
        "scalar": any_bits("float32"),
        "none": torch.zeros(0, 4),
        "text": strings(b"", b"\0\xff", b"x" * 300, b"y", shape=(2, 2)),
        "emb": any_bits("float32", 10, 3),
    }


def _read(prefix: str) -> dict[str, Any]:
    with ts.load_checkpoint(prefix) as reader:
        reader.verify()
        return to_records({key: reader.get_tensor(key) for key in reader.keys()})


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("partitions", [{}, {"emb": [3, 0]}, {"emb": [2, 1]}], ids=str)
def test_checkpoint_of_a_saver_is_read(
    tensorflow: TensorFlow, tmp_path: Path, version: int, is_sharded: bool, partitions: dict[str, list[int]]
) -> None:
    wanted = to_records(_tensors(version))
    arguments = {"version": version, "is_sharded": is_sharded, "partitions": partitions}
    prefix = tensorflow("write_with_saver", prefix=str(tmp_path / "m"), tensors=wanted, **arguments)
    assert _read(prefix) == wanted
    assert ts.verify_checkpoint(prefix).verdict == "valid"


@pytest.mark.parametrize("version", [1, 2])
def test_checkpoint_of_a_saver_is_restored_by_ours(tensorflow: TensorFlow, tmp_path: Path, version: int) -> None:
    wanted = {name: value for name, value in _tensors(version).items() if isinstance(value, torch.Tensor)}
    prefix = tensorflow(
        "write_with_saver", prefix=str(tmp_path / "m"), tensors=to_records(wanted), version=version, is_sharded=True
    )
    targets = {name: torch.zeros_like(value) for name, value in wanted.items()}
    ts.Saver(targets).restore(prefix)
    assert to_records(targets) == to_records(wanted)


@pytest.mark.parametrize("max_shard_bytes", [None, 48])
def test_objects_are_read_by_every_path(tensorflow: TensorFlow, tmp_path: Path, max_shard_bytes: int | None) -> None:
    prefix = str(tmp_path / "m")
    wanted = tensorflow("write_objects", prefix=prefix, max_shard_bytes=max_shard_bytes)
    assert len(list(tmp_path.glob("m.data-*"))) > (0 if max_shard_bytes is None else 1)
    with ts.load_checkpoint(prefix) as reader:
        reader.verify()
        assert to_records({path: reader.get_tensor(path) for path in wanted}) == wanted


def test_newest_checkpoint_of_a_manager_is_found_and_read(tensorflow: TensorFlow, tmp_path: Path) -> None:
    written = tensorflow("write_with_manager", directory=str(tmp_path), saves=5, max_to_keep=2)
    state = ts.get_checkpoint_state(tmp_path)
    assert state is not None
    assert list(state.all_model_checkpoint_paths) == written["kept"]
    assert ts.latest_checkpoint(tmp_path) == written["kept"][-1]
    with ts.load_checkpoint(tmp_path) as reader:
        assert to_record(reader.get_tensor("counter")) == written["counter"]


def test_checkpoint_read_and_written_again_is_the_same_file_for_file(tensorflow: TensorFlow, tmp_path: Path) -> None:
    tensors = to_records(_tensors(2))
    prefix = tensorflow("write_with_saver", prefix=str(tmp_path / "m"), tensors=tensors)
    again = ts.save_tf_checkpoint(tmp_path / "again", {name: to_value(tensors[name]) for name in sorted(tensors)})
    for ending in (".index", ".data-00000-of-00001"):
        assert Path(again + ending).read_bytes() == Path(prefix + ending).read_bytes()
