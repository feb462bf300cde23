"""Checkpoints recorded from real TensorFlow, and what it read from them (tests/data/corpus/README.md)."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

CORPUS = Path(__file__).parent / "data" / "corpus"
CASES = sorted(path.parent.name for path in CORPUS.glob("*/expected.json"))
CORRUPT = CORPUS / "corrupt"


@functools.cache
def expected(case: str) -> dict[str, Any]:
    """Return a case's expected.json, with its tensors in it."""
    content: dict[str, Any] = json.loads((CORPUS / case / "expected.json").read_text())
    if isinstance(content["tensors"], str):
        with gzip.open(CORPUS / case / content["tensors"], "rt") as file:
            content["tensors"] = json.load(file)
    return content


@functools.cache
def _arrays(case: str) -> dict[str, Any]:
    with np.load(CORPUS / case / "expected.npz") as arrays:
        return dict(arrays)


def prefix(case: str) -> str:
    """Return what a user passes to read a case."""
    return str(CORPUS / case / expected(case)["prefix"])


def key_of(tensor: dict[str, Any]) -> bytes:
    """Return a tensor's key; those that are not UTF-8 are recorded in hexadecimal."""
    return bytes.fromhex(tensor["key_hex"]) if "key_hex" in tensor else tensor["key"].encode()


def stored_bytes(case: str, tensor: dict[str, Any]) -> bytes | None:
    """Return a tensor's values as little-endian bytes in row-major order; None of strings and variants."""
    arrays = _arrays(case)
    if tensor["store"] == "native":
        array = arrays[tensor["npz"]]
        return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    if tensor["store"] == "raw":
        return arrays[tensor["npz"]].tobytes()
    if tensor["store"] == "blob":
        start, length = tensor["at"]
        return arrays["blob"].tobytes()[start : start + length]
    return None


def texts(tensor: dict[str, Any]) -> list[bytes] | None:
    """Return a string tensor's elements in row-major order, None of any other."""
    return [bytes.fromhex(text) for text in tensor["hex"]] if tensor["store"] == "hex" else None
