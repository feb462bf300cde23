"""JSON as our formats have it: strict when read, canonical when written, and what has a place in it."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from torchsaver.errors import CorruptCheckpointError

MAX_DEPTH = 200  # of nested lists and dicts; Python's own reader gives up at about 1000


def parse_json(data: bytes, path: str, offset: int = 0) -> dict[str, Any]:
    """Return the JSON object in `data`, refusing what JSON does not have: doubled keys, NaN, wrong UTF-8.

    Raises:
        CorruptCheckpointError: `data` is not one JSON object; `offset` is where it starts in the file.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CorruptCheckpointError(path, offset, f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(path, offset, f"a JSON object was wanted, not {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        doubled = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {doubled!r} stands twice")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is beyond a double")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def canonical_json(value: Any) -> str:
    """Return JSON text that depends on the value alone: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def require_json(metadata: Any) -> None:
    """Check that a user's metadata comes back from JSON as it is.

    Raises:
        ValueError: It does not: NaN, a tuple, a key that is not a str, an object of a class.
    """
    try:
        text = canonical_json(metadata)
        text.encode("utf-8")
        back = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"metadata is no JSON value: {error}; use dict, list, str, finite numbers, bool and None"
        ) from error
    if depth(metadata) > MAX_DEPTH:
        raise ValueError(
            f"metadata is nested over {MAX_DEPTH} deep, which not every reader can follow; make it flatter"
        )
    if back != metadata:
        raise ValueError(
            "metadata would come back from JSON changed (a tuple, a key that is not a str?); use dict and list"
        )


def depth(value: Any) -> int:
    """Return how deep lists and dicts are nested in a JSON value; 0 for one that is neither."""
    levels, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        levels += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return levels


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can hold `text`: a lone surrogate it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
