r"""Protobuf's text format, as far as TensorFlow's state file uses it: string and double fields, single or repeated.

Reads what protobuf's own parser takes: `#` comments, single or double quotes, adjacent strings, several fields a line,
`,` or `;` after a field, `[a, b]` lists, octal, hexadecimal, unicode and letter escapes, nan and inf. Writes what its
printer writes: one `name: value` a line, non-ASCII as it is, other control characters as three octal digits.

Source: protobuf's text format specification; checked against protobuf's parser and printer (formats/README.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["string", "strings", "double", "doubles"]  # in the plural: a repeated field
Value: TypeAlias = "str | float"

MAX_STEPS = 700_000  # tokens, comments and escapes: 230 000 checkpoints, and a second or two
MAX_STRING = 1 << 20  # bytes; no path has a hundredth of them

_SPACE = re.compile(r"\s+|#[^\n]*")
_TOKEN = re.compile(
    r"""(?P<name>[A-Za-z_][0-9A-Za-z_]*)
      | (?P<number>(?:[0-9+-]|\.[0-9])[0-9a-zA-Z_.+-]*)
      | (?P<quote>["'])
      | (?P<mark>[][:,;])""",
    re.VERBOSE,
)
# A string is read from stop to stop: one pattern for all of it takes 200 bytes of memory an escape.
_STOPS = {quote: re.compile(rf"[{quote}\\\n]") for quote in "\"'"}
_ESCAPE = re.compile(
    r"\\(?:(?P<octal>[0-7]{1,3})|x(?P<hex>[0-9a-fA-F]{1,2})|u(?P<u4>[0-9a-fA-F]{4})|U(?P<u8>[0-9a-fA-F]{8})|(?P<letter>.))"
)
_DOUBLE = re.compile(  # a leading zero would be octal; a trailing f is C's
    r"(?P<number>[+-]?(?:inf(?:inity)?|nan|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?|\.[0-9]+(?:e[+-]?[0-9]+)?))f?",
    re.IGNORECASE,
)
_LETTERS = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, "'": 39, '"': 34, "?": 63}
_WRITTEN = {10: r"\n", 13: r"\r", 9: r"\t", 34: r"\"", 39: r"\'", 92: r"\\"}


class TextProtoError(ValueError):
    """The text does not parse; `position` is a character offset into it."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(position, reason)
        self.position = position
        self.reason = reason

    def __str__(self) -> str:
        return f"character {self.position}: {self.reason}"


def parse_text(text: str, fields: Mapping[str, Kind]) -> dict[str, list[Value]]:
    """Return the values of each field of a message, in the order they stand in `text`.

    Args:
        text: A message in protobuf's text format.
        fields: The message's field names and kinds; any other name is an error, and so is a list for a single field.

    Returns:
        A list for every name in `fields`, empty when the field is absent. For a single field the last value counts.

    Raises:
        TextProtoError: The text does not parse, holds a name not in `fields`, or takes more than
            MAX_STEPS or MAX_STRING.
    """
    values: dict[str, list[Value]] = {name: [] for name in fields}
    tokens = _Tokens(text)
    while tokens.kind:
        name, position = tokens.take("name", "a field name")
        if name not in fields:
            raise TextProtoError(position, f"unknown field {name!r}")
        tokens.take_mark(":")
        if tokens.text == "[" and fields[name].endswith("s"):
            values[name] += _read_list(tokens, fields[name])
        else:
            values[name].append(_read_value(tokens, fields[name]))
        if tokens.text in (",", ";"):
            tokens.advance()
    return values


def format_text(fields: Iterable[tuple[str, Value]]) -> str:
    """Return the text protobuf's printer gives for these fields: one a line, in the order given."""
    return "".join(
        f"{name}: {_quote(value) if isinstance(value, str) else _format_double(value)}\n" for name, value in fields
    )


class _Tokens:
    """A cursor over the text: the token at hand is (kind, text, position); kind is "" at the end.

    Of a string only the quote is a token; `take_string` reads on from there.
    """

    def __init__(self, text: str) -> None:
        self._source = text
        self._next = 0
        self._steps_left = MAX_STEPS
        self.advance()

    def advance(self) -> None:
        self.position = self._next
        while space := _SPACE.match(self._source, self.position):
            if self._source[self.position] == "#":
                self._step()
            self.position = space.end()
        self._step()
        match = _TOKEN.match(self._source, self.position)
        if match is None and self.position < len(self._source):
            raise TextProtoError(self.position, f"unexpected {self._source[self.position]!r}")
        self.kind = (match.lastgroup or "") if match else ""
        self.text = match.group() if match else ""
        self._next = match.end() if match else self.position

    def _step(self) -> None:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise TextProtoError(self.position, f"it takes over {MAX_STEPS} tokens, comments and escapes")

    def take_string(self) -> bytes:
        """Return the bytes of the string whose quote is at hand."""
        if self.kind != "quote":
            raise self._unexpected("a quoted string")
        quote, position = self.text, self.position
        data = bytearray()
        start = self._next
        while (stop := _STOPS[quote].search(self._source, start)) and stop.group() == "\\":
            self._step()
            data += self._plain_bytes(start, stop.start())
            escape = _ESCAPE.match(self._source, stop.start())
            if escape is None:
                break
            data += _escaped_bytes(escape, position)
            start = escape.end()
        if stop is None or stop.group() != quote:
            raise TextProtoError(position, f"unexpected {quote!r}, which no other one closes on its line")
        data += self._plain_bytes(start, stop.start())
        self._next = stop.end()
        self.advance()
        return bytes(data)

    def _plain_bytes(self, start: int, end: int) -> bytes:
        if end - start > MAX_STRING:
            raise TextProtoError(start, f"a string is longer than {MAX_STRING} bytes")
        return self._source[start:end].encode("utf-8", "surrogatepass")

    def take(self, kind: str, wanted: str) -> tuple[str, int]:
        if self.kind != kind:
            raise self._unexpected(wanted)
        taken = self.text, self.position
        self.advance()
        return taken

    def take_mark(self, mark: str) -> None:
        if self.text != mark:
            raise self._unexpected(repr(mark))
        self.advance()

    def _unexpected(self, wanted: str) -> TextProtoError:
        return TextProtoError(self.position, f"wanted {wanted}, found {self.text or 'the end'!r}")


def _read_list(tokens: _Tokens, kind: Kind) -> list[Value]:
    tokens.take_mark("[")
    values: list[Value] = []
    while tokens.text != "]":
        if values:
            tokens.take_mark(",")
        values.append(_read_value(tokens, kind))
    tokens.take_mark("]")
    return values


def _read_value(tokens: _Tokens, kind: Kind) -> Value:
    if kind in ("double", "doubles"):
        return _read_double(tokens)
    position = tokens.position
    data = bytearray(tokens.take_string())
    while tokens.kind == "quote":  # adjacent strings are one
        data += tokens.take_string()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextProtoError(position, "string is not UTF-8") from error


def _read_double(tokens: _Tokens) -> float:
    text, position = tokens.take("name" if tokens.kind == "name" else "number", "a number")
    match = _DOUBLE.fullmatch(text)
    if match is None:
        raise TextProtoError(position, f"{text!r} is not a number")
    return float(match["number"])


def _escaped_bytes(match: re.Match[str], position: int) -> bytes:
    letter, digits = match["letter"], match["u4"] or match["u8"]
    if letter is not None:
        if letter not in _LETTERS:
            raise TextProtoError(position, f"unknown escape \\{letter}")
        return bytes([_LETTERS[letter]])
    if digits is not None:
        if int(digits, 16) > 0x10FFFF:
            raise TextProtoError(position, f"escape beyond Unicode: {digits}")
        return chr(int(digits, 16)).encode("utf-8", "surrogatepass")
    code = int(match["octal"], 8) if match["octal"] is not None else int(match["hex"], 16)
    if code > 0xFF:
        raise TextProtoError(position, f"escape beyond a byte: {match.group()}")
    return bytes([code])


def _quote(text: str) -> str:
    characters = (_WRITTEN.get(ord(c)) or (f"\\{ord(c):03o}" if ord(c) < 0x20 or ord(c) == 0x7F else c) for c in text)
    return '"' + "".join(characters) + '"'


def _format_double(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else str(float(value))
