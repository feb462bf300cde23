"""JSON as our formats have it: strict when read, canonical when written, and what has a place in it."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from json.encoder import encode_basestring
from typing import Any, NoReturn

from torchsaver.errors import CorruptCheckpointError

MAX_DEPTH = 200  # of nested lists and dicts; Python's own reader gives up at about 1000
MAX_TEXT_BYTES = 40_000_000  # of one text in memory: 100 000 tensors with names of 100 letters take 19 MB
MAX_JSON_BYTES = 165_000_000  # of memory for what one text can hold: a hostile file stays within 200 MB
_BYTES_PER_MARK = 95  # the dearest shapes, `[[[` and `"k":{},`, measured with CPython 3.11
_COPIES = 4  # text, the strings in it, and the text and bytes its checksum is taken of
_MAX_DIGITS = 4300  # Python's own limit, which a program can lift: more digits take quadratic time
_SPACES = " \t\n\r"
_SPACE = re.compile(r"[ \t\n\r]*")
_MARKS = "[{,:"  # every value and key needs one of its own, but the first


def decode_json(data: bytes | bytearray, path: str, offset: int = 0) -> str:
    """Return `data` as text.

    Raises:
        CorruptCheckpointError: `data`, which starts at `offset` of the file, is too long (`why_too_long`, known
            before anything is allocated) or not UTF-8.
    """
    if (reason := why_too_long(data)) is not None:
        raise CorruptCheckpointError(path, offset, reason)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptCheckpointError(path, offset + error.start, "a text is not UTF-8") from error


def why_too_long(data: bytes | bytearray) -> str | None:
    """Return why `decode_json` refuses a text for its size in memory, where one emoji makes all of it four bytes."""
    width = 1 if data.isascii() else 4 if re.search(rb"[\xf0-\xff]", data) else 2
    if len(data) * width <= MAX_TEXT_BYTES:
        return None
    return f"its text can take {len(data) * width} bytes of memory, and {MAX_TEXT_BYTES} are the limit"


def why_too_large(text: str) -> str | None:
    """Return why `parse_json` refuses a text for what its values could take in memory; None when it does not."""
    nbytes = _COPIES * sys.getsizeof(text)
    if nbytes + _BYTES_PER_MARK * len(text) <= MAX_JSON_BYTES:  # even if it is all marks, which take time to count
        return None
    nbytes += _BYTES_PER_MARK * sum(text.count(mark) for mark in _MARKS)
    if nbytes <= MAX_JSON_BYTES:
        return None
    return f"its JSON can take {nbytes} bytes of memory, and {MAX_JSON_BYTES} are the limit"


def parse_json(data: bytes | bytearray | str, path: str, offset: int = 0) -> dict[str, Any]:
    """Return the JSON object in `data`, refusing what JSON does not have: doubled keys, NaN, wrong UTF-8.

    Raises:
        CorruptCheckpointError: `data` is not one JSON object, or it is too large for one (`why_too_large`, known
            before anything is allocated); `offset` is where it starts in the file.
    """
    text = data if isinstance(data, str) else decode_json(data, path, offset)
    if (reason := why_too_large(text)) is not None:
        raise CorruptCheckpointError(path, offset, reason)
    try:
        value = loads(text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
        raise CorruptCheckpointError(path, offset, f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(path, offset, f"a JSON object was wanted, not {type(value).__name__}")
    return value


def loads(text: str) -> Any:
    """Return the value of a JSON text, strictly.

    Raises:
        ValueError: It is not JSON, has a key twice, or a number that is none or beyond a double.
        RecursionError: It is nested too deep.
    """
    return _DECODER.decode(text)


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


def _integer(text: str) -> int:
    if text == "-0" or len(text) > _MAX_DIGITS:
        raise ValueError(f"{text[:20]} is no integer that means anything here")
    return int(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer
)


class JsonCursor:
    """Reads one JSON object member by member, so that the caller can refuse one before the next takes memory.

    Every method raises ValueError (or RecursionError) for what is not JSON or not what was asked for.

    Args:
        text: The object's text.
        max_members: How many members it and the objects in it may have together.
    """

    def __init__(self, text: str, max_members: int) -> None:
        self._text = text
        self._position = 0
        self._room = max_members

    @property
    def position(self) -> int:
        """How many characters have been read."""
        return self._position

    def skip(self, text: str) -> bool:
        """Go on beyond `text` if the very next characters are that; return whether they are."""
        found = self._text.startswith(text, self._position)
        self._position += len(text) if found else 0
        return found

    def members(self) -> Iterator[str]:
        """Yield the key of each member of the object at hand; the caller reads its value before the next."""
        self._take("{")
        if self._at_hand() == "}":
            self._take("}")
            return
        while True:
            self._room -= 1
            if self._room < 0:
                raise ValueError("it has too many members")
            key = self.read_string()
            self._take(":")
            yield key
            if self._at_hand() == "}":
                self._take("}")
                return
            self._take(",")

    def read_string(self) -> str:
        """Return the string at hand."""
        if self._at_hand() != '"':
            raise ValueError(f"a string was wanted at character {self._position}")
        value, self._position = _DECODER.raw_decode(self._text, self._position)
        return str(value)

    def read_strings(self) -> dict[str, str]:
        """Return the object of strings at hand."""
        strings: dict[str, str] = {}
        for key in self.members():
            if key in strings:
                raise ValueError(f"key {key!r} stands twice")
            strings[key] = self.read_string()
        return strings

    def read_flat_object(self, max_characters: int) -> Any:
        """Return the object at hand, which has no object in it and takes at most so many characters."""
        self._at_hand()
        end = self._text.find("}", self._position, self._position + max_characters) + 1
        if end == 0:
            raise ValueError(f"no object ends within {max_characters} characters from {self._position} on")
        value = loads(self._text[self._position : end])
        self._position = end
        return value

    def end(self) -> None:
        """Check that nothing but space is left."""
        if self._at_hand():
            raise ValueError(f"there is more after the object, at character {self._position}")

    def _at_hand(self) -> str:
        """Skip space and return the character after it, "" at the end."""
        character = self._text[self._position : self._position + 1]
        if character in _SPACES and (space := _SPACE.match(self._text, self._position)):
            self._position = space.end()
            character = self._text[self._position : self._position + 1]
        return character

    def _take(self, mark: str) -> None:
        if self._at_hand() != mark:
            raise ValueError(f"{mark!r} was wanted at character {self._position}")
        self._position += 1


def quoted(text: str) -> str:
    """Return a JSON string, as `canonical_json` has it."""
    return encode_basestring(text)


def canonical_json(value: Any) -> str:
    """Return JSON text that depends on the value alone: sorted keys, no spaces."""
    return _ENCODER.encode(value)


def require_json(metadata: Any) -> None:
    """Check that a user's metadata comes back from JSON as it is.

    Raises:
        ValueError: It does not: NaN, a tuple, a key that is not a str, an object of a class.
    """
    try:
        text = canonical_json(metadata)
        text.encode("utf-8")
        back = loads(text)  # as its reader will
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
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
