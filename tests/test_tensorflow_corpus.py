"""Checkpoints of real TensorFlow are read bit for bit, through every door a reader has; damaged ones are refused."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pytest
import torch
from corpus import CORRUPT

import torchsaver as ts
from torchsaver.errors import (
    CheckpointKeyError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    TorchSaverError,
    UnsupportedCheckpointError,
)
from torchsaver.formats.tensor_bytes import byte_view
from torchsaver.formats.tensorflow.data_types import DATA_TYPES
from torchsaver.formats.tensorflow.stored_value import key_text
from torchsaver.reader import CheckpointReader

# What expect.json calls the kinds of damage, in our classes.
KINDS: dict[str, tuple[type[TorchSaverError], ...]] = {
    "unsupported": (UnsupportedCheckpointError,),
    "version": (UnsupportedCheckpointError,),
    "missing_file": (CheckpointNotFoundError,),
    "missing_shard": (CorruptCheckpointError, CheckpointNotFoundError),
}
# The bits of what torch has no dtype for, as numbers: by the definitions of the types.
FLOAT4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
SMALL: dict[str, Any] = {
    "int4": lambda bits: (bits & 15) - 16 * (bits >> 3 & 1),
    "uint4": lambda bits: bits & 15,
    "int2": lambda bits: (bits & 3) - 4 * (bits >> 1 & 1),
    "uint2": lambda bits: bits & 3,
    "float4_e2m1fn": lambda bits: FLOAT4[bits & 7] * (-1 if bits & 8 else 1),
    "float8_e4m3b11fnuz": lambda bits: _e4m3b11(bits),  # noqa: PLW0108  # defined below
}


def _e4m3b11(bits: int) -> float:
    if bits == 0x80:
        return float("nan")
    exponent, fraction = bits >> 3 & 15, bits & 7
    value = fraction / 8 * 2.0**-10 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 11)
    return -value if bits & 0x80 else value


def require_same(case: str, tensor: dict[str, Any], value: Any) -> None:
    """Compare what was read with what TensorFlow has under that key."""
    name = DATA_TYPES[tensor["enum"]].name
    assert list(value.shape) == tensor["shape"]
    if tensor["store"] == "hex":
        assert value.dtype == object
        assert value.reshape(-1).tolist() == corpus.texts(tensor)
        assert {type(text) for text in value.reshape(-1)} <= {bytes}
    elif name in SMALL:
        raw = corpus.stored_bytes(case, tensor)
        assert raw is not None
        wanted = torch.tensor([SMALL[name](bits) for bits in raw], dtype=value.dtype).reshape(value.shape)
        torch.testing.assert_close(value, wanted, rtol=0, atol=0, equal_nan=True)
    else:
        assert value.dtype == getattr(torch, DATA_TYPES[tensor["enum"]].torch_name)
        assert bytes(byte_view(value)) == corpus.stored_bytes(case, tensor)


def readable(case: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (key, recorded tensor) of all that has values."""
    tensors = corpus.expected(case)["tensors"]
    return [(key_text(corpus.key_of(tensor)), tensor) for tensor in tensors if tensor["store"] != "none"]


@pytest.mark.parametrize("case", corpus.CASES)
def test_every_tensor_is_read_bit_for_bit_one_by_one(case: str) -> None:
    tensors = corpus.expected(case)["tensors"]
    with ts.load_checkpoint(corpus.prefix(case)) as reader:
        assert reader.keys() == [key_text(key) for key in sorted(map(corpus.key_of, tensors))]
        for key, tensor in readable(case):
            require_same(case, tensor, reader.get_tensor(key))
        reader.verify()


@pytest.mark.parametrize("case", corpus.CASES)
def test_shapes_and_dtypes_are_listed_without_the_values(case: str) -> None:
    tensors = corpus.expected(case)["tensors"]
    listed = dict(ts.list_variables(corpus.prefix(case)))
    assert listed == {key_text(corpus.key_of(tensor)): tensor["shape"] for tensor in tensors}
    with ts.load_checkpoint(corpus.prefix(case)) as reader:
        dtypes = reader.get_variable_to_dtype_map()
    for tensor in tensors:
        name = DATA_TYPES[tensor["enum"]].torch_name
        assert dtypes[key_text(corpus.key_of(tensor))] == (getattr(torch, name) if name else np.dtype(object))


@pytest.mark.parametrize("case", corpus.CASES)
@pytest.mark.parametrize("is_strided", [False, True])
def test_every_tensor_is_restored_bit_for_bit_by_a_saver(case: str, *, is_strided: bool) -> None:
    wanted = dict(readable(case))
    with ts.load_checkpoint(corpus.prefix(case)) as reader:
        kinds = {key: (reader.stored(key).shape, reader.stored(key).dtype) for key in wanted}
    targets = {
        key: _transposed(shape, dtype) if is_strided else torch.zeros(shape, dtype=dtype)
        for key, (shape, dtype) in kinds.items()
        if isinstance(dtype, torch.dtype) and key not in ("", "__metadata__") and key.isprintable()
    }
    if not targets:
        return
    report = ts.Saver(targets).restore(corpus.prefix(case))
    assert set(report.restored) == set(targets)
    for key, target in targets.items():
        require_same(case, wanted[key], target.contiguous())


def _transposed(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(shape[::-1], dtype=dtype).permute(tuple(reversed(range(len(shape)))))


@pytest.mark.parametrize("case", corpus.CASES)
def test_rows_are_those_of_the_whole(case: str) -> None:
    with ts.load_checkpoint(corpus.prefix(case)) as reader:
        for key, tensor in readable(case)[:100]:
            if tensor["store"] == "hex" or not tensor["shape"] or not tensor["shape"][0]:
                continue
            whole = reader.get_tensor(key)
            for rows in (slice(0, 1), slice(1, None), slice(None, None, 2)):
                part = reader.get_slice(key)[rows]
                assert bytes(byte_view(part.contiguous())) == bytes(byte_view(whole[rows].contiguous()))


def test_a_variant_is_listed_and_refused_by_name() -> None:
    with ts.load_checkpoint(corpus.prefix("variant_v2")) as reader:
        key = next(key for key in reader.keys() if reader.stored(key).dtype_name == "variant")
        with pytest.raises(UnsupportedCheckpointError, match="variant"):
            reader.get_tensor(key)


def test_key_that_is_not_there_is_named_with_the_nearest() -> None:
    with ts.load_checkpoint(corpus.prefix("resnet_like")) as reader:
        near = reader.keys()[3]
        with pytest.raises(CheckpointKeyError) as caught:
            reader.get_tensor(near + "x")
        assert near in caught.value.nearest


def test_a_string_does_not_fit_a_tensor_and_nothing_is_restored() -> None:
    key, _ = next((key, t) for key, t in readable("strings_v2") if t["store"] == "hex")
    with pytest.raises(ts.MismatchError, match="string"):
        ts.Saver({key: torch.zeros(2)}).restore(corpus.prefix("strings_v2"))


# ---- damaged ones

DAMAGED = sorted(path.parent.name for path in CORRUPT.glob("*/expect.json"))


def _allowed(kinds: list[str]) -> tuple[type[TorchSaverError], ...]:
    return tuple({error for kind in kinds for error in KINDS.get(kind, (CorruptCheckpointError,))})


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_ends_in_its_error_and_leaves_the_rest_readable(case: str) -> None:
    expect = json.loads((CORRUPT / case / "expect.json").read_text())
    prefix = str(CORRUPT / case / expect["prefix"])
    start, before = time.process_time(), _memory_mb("VmRSS")
    if expect["kind"]:
        with pytest.raises(_allowed(expect["kind"])):
            _use(prefix, expect)
    else:
        _use(prefix, expect)
    if expect["ok_keys"]:
        with ts.load_checkpoint(prefix) as reader:
            for key in expect["ok_keys"]:
                reader.get_tensor(key)
    assert time.process_time() - start < 2
    assert _memory_mb("VmHWM") - before < 500


def _memory_mb(name: str) -> float:
    """Return the memory of this process, or its peak since it was last asked for VmRSS; 0 where the system has none."""
    try:
        if name == "VmRSS":
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def _use(prefix: str, expect: dict[str, Any]) -> None:
    with ts.load_checkpoint(prefix) as reader:
        if expect["when"] == "graph":
            reader.object_graph()
        for key in [expect["key"]] if expect["key"] else reader.keys():
            reader.get_tensor(key)


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_leaves_a_saver_s_tensors_as_they_were(case: str) -> None:
    expect = json.loads((CORRUPT / case / "expect.json").read_text())
    prefix = str(CORRUPT / case / expect["prefix"])
    if not expect["kind"] or expect["when"] == "graph":
        pytest.skip("nothing is wrong with the values")
    key = expect["key"] or "x"
    target = torch.full(_shape(prefix, key), 7.0)
    with pytest.raises((TorchSaverError, OSError)):
        ts.Saver({key: target}).restore(prefix)
    assert (target == 7).all()


def _shape(prefix: str, key: str) -> list[int]:
    try:
        with CheckpointReader(prefix) as reader:
            shape = list(reader.stored(key).shape)
    except (TorchSaverError, OSError):
        return [2, 3]
    return shape if np.prod(shape) < 1e6 else [2, 3]


# ---- verify


@pytest.mark.parametrize("case", corpus.CASES)
def test_checkpoint_verifies_with_every_checksum_compared(case: str) -> None:
    report = ts.verify_checkpoint(corpus.prefix(case))
    assert (report.verdict, report.damage, report.problem) == ("valid", (), "")
    assert report.checked_tensors == report.tensors >= len(corpus.expected(case)["tensors"])


@pytest.mark.parametrize("case", DAMAGED)
def test_verify_reports_the_damage_of_the_values(case: str) -> None:
    expect = json.loads((CORRUPT / case / "expect.json").read_text())
    if expect["when"] == "graph" or case == "nothing_there":
        pytest.skip("nothing is wrong with the values" if expect["when"] == "graph" else "there is nothing to verify")
    report = ts.verify_checkpoint(str(CORRUPT / case / expect["prefix"]))
    assert report.is_sound is not bool(expect["kind"])
    assert all(damage.tensor not in expect["ok_keys"] for damage in report.damage)
