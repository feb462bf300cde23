"""Checkpoints that others have published, 2015 to today, have the values that real TensorFlow reads from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import torchsaver as ts
from torchsaver.formats.tensor_bytes import byte_view

WILD = Path(__file__).parent / "data" / "wild"
EXPECTED: dict[str, dict[str, Any]] = json.loads((WILD / "expected.json").read_text())


@pytest.mark.parametrize("prefix", EXPECTED)
def test_published_checkpoint_has_the_values_tensorflow_reads(prefix: str) -> None:
    with ts.load_checkpoint(WILD / prefix) as reader:
        assert reader.keys() == sorted(EXPECTED[prefix])
        for key, wanted in EXPECTED[prefix].items():
            stored = reader.stored(key)
            assert (stored.dtype_name, list(stored.shape)) == (wanted["dtype"], wanted["shape"])
            if "sha256" in wanted:
                value = reader.get_tensor(key)
                data = (
                    b"".join(value.reshape(-1).tolist()) if stored.dtype_name == "string" else bytes(byte_view(value))
                )
                assert hashlib.sha256(data).hexdigest() == wanted["sha256"], key


def test_index_without_its_data_is_listed_and_says_what_is_missing_when_read() -> None:
    prefix = WILD / "deepconsensus_index_only" / "checkpoint-1"
    (key, *_), _ = ts.list_variables(prefix)[5], None
    with pytest.raises(ts.CorruptCheckpointError, match="missing"):
        ts.load_variable(prefix, key)


def test_directory_with_tensorflow_s_state_file_stands_for_its_newest_checkpoint() -> None:
    assert len(ts.list_variables(WILD / "t2t_transformer")) == 250
