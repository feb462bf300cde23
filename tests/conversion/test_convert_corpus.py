"""Checkpoints of real TensorFlow become safetensors bit for bit, and TensorFlow's again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pytest
import torch
from conversion.contents import bits, contents, names
from safetensors.torch import load_file

import torchsaver as ts
from torchsaver.conversion.convert import convert_checkpoint
from torchsaver.conversion.plan import Format
from torchsaver.errors import ConversionError
from torchsaver.formats.tensorflow.data_types import DATA_TYPES
from torchsaver.formats.tensorflow.stored_value import key_text
from torchsaver.variables.mapping.rules_file import parse_rules

STRINGS, GRAPH = "strings, which safetensors cannot hold", "the graph of TensorFlow's objects"
VARIANT = "a variant, the state of a TensorFlow object"
# Keys of the corpus that safetensors cannot hold.
PRINTABLE = "[[rename]]\nregex = '[\\udc80-\\udcff]'\nto = '_'\n[[rename]]\nname = '__metadata__'\nto = 'metadata'"


def _left_out(case: str, to: Format) -> dict[str, str]:
    found = {}
    for tensor in corpus.expected(case)["tensors"]:
        key, name = key_text(corpus.key_of(tensor)), DATA_TYPES[tensor["enum"]].name
        if key == "_CHECKPOINTABLE_OBJECT_GRAPH":
            found[key] = GRAPH
        elif name == "variant":
            found[key] = VARIANT
        elif name == "string" and to == "safetensors":
            found[key] = STRINGS
    return found


@pytest.mark.parametrize("case", corpus.CASES)
def test_corpus_becomes_safetensors_bit_for_bit_and_tensorflows_again(case: str, tmp_path: Path) -> None:
    rules = parse_rules(PRINTABLE)
    stored = {key: value for key, value in contents_of_case(case).items() if isinstance(value, tuple)}
    wanted = {str(rules.rename(key)): value for key, value in stored.items()}
    done = convert_checkpoint(corpus.prefix(case), tmp_path / "m", rules=rules)
    assert {key: bits(tensor) for key, tensor in load_file(tmp_path / "m.safetensors").items()} == _as_stored(wanted)
    assert contents(tmp_path / "m") == wanted
    assert done.left_out == _left_out(case, "safetensors")
    assert ts.verify_checkpoint(tmp_path / "m").verdict == "valid"
    again = convert_checkpoint(tmp_path / "m", tmp_path / "again", to="tf")
    assert contents(tmp_path / "again") == wanted
    assert again.left_out == {}


def contents_of_case(case: str) -> dict[str, Any]:
    with ts.load_checkpoint(corpus.prefix(case)) as reader:
        left_out = _left_out(case, "tf")
        values = {key: reader.get_tensor(key) for key in reader.keys() if key not in left_out}
    return {key: value.tolist() if isinstance(value, np.ndarray) else bits(value) for key, value in values.items()}


def _as_stored(wanted: dict[str, Any]) -> dict[str, Any]:
    """Return values as safetensors itself has them: complex128 are pairs of float64."""
    pair = torch.complex128
    return {k: (torch.float64, [*s, 2], b) if d == pair else (d, s, b) for k, (d, s, b) in wanted.items()}


@pytest.mark.parametrize("case", corpus.CASES)
def test_corpus_becomes_tensorflows_again_with_its_strings_and_odd_names(case: str, tmp_path: Path) -> None:
    done = convert_checkpoint(corpus.prefix(case), tmp_path / "m", to="tf")
    assert contents(tmp_path / "m") == contents_of_case(case)
    assert done.left_out == _left_out(case, "tf")


def test_names_that_safetensors_cannot_have_are_told_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConversionError) as raised:
        convert_checkpoint(corpus.prefix("non_utf8_names_v2"), tmp_path / "m")
    assert len(raised.value.problems) == 2
    assert names(tmp_path) == []


@pytest.mark.parametrize("max_shard_bytes", [None, 64])
def test_bundle_to_safetensors_and_back_has_the_same_bytes(max_shard_bytes: int | None, tmp_path: Path) -> None:
    values = {f"v{n}": torch.arange(n, n + 5, dtype=torch.float32) for n in range(5)} | {
        "v5/half": torch.ones(3, 2, dtype=torch.bfloat16),
        "v6": torch.tensor(7),
        "v7": torch.zeros(0, 3),
        "v8": torch.ones(2, dtype=torch.complex128),
    }
    source = ts.save_tf_checkpoint(tmp_path / "a" / "m", values, max_shard_bytes=max_shard_bytes)
    convert_checkpoint(source, tmp_path / "b" / "m")
    convert_checkpoint(tmp_path / "b" / "m", tmp_path / "c" / "m", to="tf", max_shard_bytes=max_shard_bytes)
    assert names(tmp_path / "a") == names(tmp_path / "c")
    assert len(names(tmp_path / "a")) == (2 if max_shard_bytes is None else 4)
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
