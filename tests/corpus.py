"""Checkpoints recorded from real TensorFlow, and what it read from them (tests/data/corpus/README.md)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "data" / "corpus"
CASES = sorted(path.parent.name for path in CORPUS.glob("*/expected.json"))
CORRUPT = CORPUS / "corrupt"


def expected(case: str) -> dict[str, Any]:
    """Return a case's expected.json, with its tensors in it."""
    content: dict[str, Any] = json.loads((CORPUS / case / "expected.json").read_text())
    if isinstance(content["tensors"], str):
        with gzip.open(CORPUS / case / content["tensors"], "rt") as file:
            content["tensors"] = json.load(file)
    return content


def key_of(tensor: dict[str, Any]) -> bytes:
    """Return a tensor's key; those that are not UTF-8 are recorded in hexadecimal."""
    return bytes.fromhex(tensor["key_hex"]) if "key_hex" in tensor else tensor["key"].encode()
