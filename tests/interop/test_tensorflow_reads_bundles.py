"""Real TensorFlow reads what save_tf_checkpoint writes, bit for bit: its Saver, its reader, and the op beneath them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from interop.ours import DTYPES, any_bits, strings, to_record, to_records, to_value
from interop.peer import TensorFlow, TensorFlowError

import torchsaver as ts

# TensorFlow has no variables of these, and no joining of the parts of those.
NO_VARIABLES = {"float8_e4m3fnuz", "float8_e5m2fnuz"}
NOT_JOINED = {"float16", "uint16", "uint32", "uint64", *(name for name in DTYPES if name.startswith("float8"))}
ODD_NAMES = (
    "a",
    "a b",
    "a/b:0",
    "\u00e9\U0001f600",
    "a\0b",
    "\0",
    "\x01",
    "a" * 3000,
    "a/",
    "\udcff\udcfe",
    ".",
    "a\n",
)


def _all_dtypes() -> dict[str, torch.Tensor]:
    return {f"of/{dtype}": any_bits(dtype, 3, 5) for dtype in DTYPES}


def test_the_two_sides_have_each_its_own_library(tensorflow: TensorFlow) -> None:
    assert tensorflow("versions") == {"tensorflow": "2.21.0", "ours": []}
    with pytest.raises(ImportError):
        __import__("tensorflow")


@pytest.mark.parametrize("max_shard_bytes", [None, 100])
def test_saver_restores_every_dtype_it_has_variables_of(
    tensorflow: TensorFlow, tmp_path: Path, max_shard_bytes: int | None
) -> None:
    prefix = ts.save_tf_checkpoint(tmp_path / "m", _all_dtypes(), max_shard_bytes=max_shard_bytes)
    assert (len(list(tmp_path.glob("m.data-*"))) > 5) is (max_shard_bytes is not None)
    wanted = {name: each for name, each in to_records(_all_dtypes()).items() if each["dtype"] not in NO_VARIABLES}
    assert tensorflow("restore_with_saver", prefix=prefix, variables=wanted) == wanted


def test_op_restores_every_dtype(tensorflow: TensorFlow, tmp_path: Path) -> None:
    prefix = ts.save_tf_checkpoint(tmp_path / "m", _all_dtypes())
    wanted = to_records(_all_dtypes())
    dtypes = {name: each["dtype"] for name, each in wanted.items()}
    assert tensorflow("read_with_op", prefix=prefix, dtypes=dtypes) == wanted


def test_reader_lists_and_reads_every_dtype(tensorflow: TensorFlow, tmp_path: Path) -> None:
    prefix = ts.save_tf_checkpoint(tmp_path / "m", _all_dtypes())
    assert tensorflow("read_with_reader", prefix=prefix) == to_records(_all_dtypes())


def test_scalars_empty_tensors_and_many_dimensions_are_read(tensorflow: TensorFlow, tmp_path: Path) -> None:
    tensors = {
        "scalar": any_bits("float32"),
        "step": torch.tensor(2**40),
        "none": torch.zeros(0),
        "none of three": torch.zeros(3, 0, 2, dtype=torch.int64),
        "deep": any_bits("int16", *[1] * 7, 3),
        "strided": any_bits("float64", 4, 6).T[::2],
    }
    prefix = ts.save_tf_checkpoint(tmp_path / "m", tensors)
    assert tensorflow("restore_with_saver", prefix=prefix, variables=to_records(tensors)) == to_records(tensors)
    assert tensorflow("read_with_reader", prefix=prefix) == to_records(tensors)


def test_strings_are_read(tensorflow: TensorFlow, tmp_path: Path) -> None:
    tensors = {
        "scalar": strings(b"one", shape=()),
        "table": strings(b"", b"\xff\0", b"x" * 70_000, "\u00e9".encode(), b"a", b"b", shape=(2, 3)),
        "none": strings(shape=(0, 2)),
    }
    prefix = ts.save_tf_checkpoint(tmp_path / "m", tensors)
    assert tensorflow("restore_with_saver", prefix=prefix, variables=to_records(tensors)) == to_records(tensors)


def test_names_of_any_bytes_are_restored_and_those_of_text_are_listed(tensorflow: TensorFlow, tmp_path: Path) -> None:
    tensors = {name: any_bits("float32", 2, seed=number) for number, name in enumerate(ODD_NAMES)}
    prefix = ts.save_tf_checkpoint(tmp_path / "m", tensors)
    dtypes = dict.fromkeys(tensors, "float32")
    assert tensorflow("read_with_op", prefix=prefix, dtypes=dtypes) == to_records(tensors)
    text = {name: tensor for name, tensor in tensors.items() if name.isprintable()}
    prefix = ts.save_tf_checkpoint(tmp_path / "text", text)
    assert tensorflow("read_with_reader", prefix=prefix) == to_records(text)


def test_thousands_of_tensors_in_many_blocks_and_files_are_read(tensorflow: TensorFlow, tmp_path: Path) -> None:
    tensors = {f"{'layer/' * 20}{number}": torch.tensor([number]) for number in range(6000)}
    prefix = ts.save_tf_checkpoint(tmp_path / "m", tensors, max_shard_bytes=10_000)
    assert tensorflow("read_with_reader", prefix=prefix) == to_records(tensors)


def test_large_tensor_is_read(tensorflow: TensorFlow, tmp_path: Path) -> None:
    tensors = {"small": torch.ones(1), "large": any_bits("float32", 1500, 1500)}
    prefix = ts.save_tf_checkpoint(tmp_path / "m", tensors)
    assert tensorflow("restore_with_saver", prefix=prefix, variables=to_records(tensors)) == to_records(tensors)


@pytest.mark.parametrize("parts", [1, 3, 10])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("stored", [None, [3, 1], [1, 4], [10, 1], [2, 2]], ids=str)
def test_partitioned_variable_is_restored_however_it_was_cut(
    tensorflow: TensorFlow, tmp_path: Path, parts: int, axis: int, stored: list[int] | None
) -> None:
    tensors = {"emb": any_bits("float32", 10, 11), "other": torch.ones(1)}
    partitions = {} if stored is None else {"emb": stored}
    prefix = ts.save_tf_checkpoint(tmp_path / "m", tensors, partitions=partitions, max_shard_bytes=100)
    variable = {"name": "emb", "dtype": "float32", "shape": [10, 11], "parts": parts, "axis": axis}
    restored = [to_value(part) for part in tensorflow("restore_partitioned", prefix=prefix, **variable)]
    assert len(restored) == parts
    assert to_record(torch.cat(restored, axis)) == to_record(tensors["emb"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_partitioned_variable_of_every_dtype_is_joined_or_restored_part_by_part(
    tensorflow: TensorFlow, tmp_path: Path, dtype: str
) -> None:
    tensor = any_bits(dtype, 5, 3)
    prefix = ts.save_tf_checkpoint(tmp_path / "m", {"emb": tensor}, partitions={"emb": [2, 1]})
    for spec, part in (("5 3 0,3:0,3", tensor[:3]), ("5 3 3,2:0,3", tensor[3:])):
        assert tensorflow("read_slice", prefix=prefix, name="emb", dtype=dtype, spec=spec) == to_record(part)
    if dtype in NOT_JOINED:  # as save_tf_checkpoint's docstring has it
        with pytest.raises(TensorFlowError, match="not supported"):
            tensorflow("read_with_op", prefix=prefix, dtypes={"emb": dtype})
    else:
        assert tensorflow("read_with_op", prefix=prefix, dtypes={"emb": dtype}) == {"emb": to_record(tensor)}


@pytest.mark.parametrize("before", ["ours", "tensorflow"])
def test_checkpoint_that_replaced_another_is_read_and_so_is_the_next(
    tensorflow: TensorFlow, tmp_path: Path, before: str
) -> None:
    tensors: dict[str, Any] = {"w": any_bits("float32", 50, seed=1), "b": any_bits("int8", 3, seed=2)}
    if before == "ours":
        prefix = ts.save_tf_checkpoint(tmp_path / "m", tensors, max_shard_bytes=10)
    else:
        prefix = tensorflow("write_with_saver", prefix=str(tmp_path / "m"), tensors=to_records(tensors))
    for seed in range(3, 6):
        tensors = {name: any_bits("float32", seed, seed=seed) for name in tensors}
        assert ts.save_tf_checkpoint(prefix, tensors, overwrite=True) == prefix
        assert tensorflow("restore_with_saver", prefix=prefix, variables=to_records(tensors)) == to_records(tensors)


def test_variables_of_a_checkpoint_object_are_restored_by_their_full_names(
    tensorflow: TensorFlow, tmp_path: Path
) -> None:
    tensors = {"dense/kernel": any_bits("float32", 3, 2), "dense/bias": any_bits("float32", 2), "n": torch.tensor(5)}
    prefix = ts.save_tf_checkpoint(tmp_path / "m", tensors)
    assert tensorflow("restore_checkpoint", prefix=prefix, variables=to_records(tensors)) == to_records(tensors)
    lacking = ts.save_tf_checkpoint(tmp_path / "lacking", {"n": torch.tensor(5)})
    with pytest.raises(TensorFlowError, match="dense/kernel"):
        tensorflow("restore_checkpoint", prefix=lacking, variables=to_records(tensors))
