"""JSON within limits: what is too large is known before it is parsed, and the checksum's pieces are the whole text."""

from __future__ import annotations

import json

import pytest

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats import json_text
from torchsaver.formats.json_text import (
    JsonCursor,
    canonical_json,
    decode_json,
    parse_json,
    why_too_large,
    why_too_long,
)


@pytest.mark.parametrize(("text", "width"), [("a", 1), ("\u00e9", 2), ("\u4e2d", 2), ("\U0001f600", 4)])
def test_decode_json_of_the_limit_is_taken_and_more_is_refused(
    text: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("x" * 96 + text).encode()
    monkeypatch.setattr(json_text, "MAX_TEXT_BYTES", len(data) * width)
    assert decode_json(data, "p") == "x" * 96 + text
    monkeypatch.setattr(json_text, "MAX_TEXT_BYTES", len(data) * width - 1)
    with pytest.raises(CorruptCheckpointError, match="limit"):
        decode_json(data, "p")


def test_decode_json_wrong_utf8_is_a_corrupt_checkpoint_and_says_where() -> None:
    with pytest.raises(CorruptCheckpointError, match="UTF-8") as caught:
        decode_json(b"abc\xff", "p", 8)
    assert caught.value.offset == 11


@pytest.mark.parametrize("member", ["[]", "{}", '{"a":{}}', "1", '"x"', "[[[[]]]]"])
def test_parse_json_many_small_values_are_refused_before_they_are_made(member: str) -> None:
    text = '{"a":[' + f"{member}," * 1_800_000 + "1]}"
    with pytest.raises(CorruptCheckpointError, match="limit"):
        parse_json(text, "p")


def test_parse_json_hundred_thousand_keys_and_checksums_are_taken() -> None:
    checksums = {f"model.layers.{number}.attention.weight": "00000000" for number in range(100_000)}
    assert parse_json(canonical_json({"crc32c": checksums}), "p") == {"crc32c": checksums}


@pytest.mark.parametrize("number", ["-0", "1" * 4301, "NaN", "-Infinity", "1e999"])
def test_parse_json_number_that_means_nothing_is_a_corrupt_checkpoint(number: str) -> None:
    with pytest.raises(CorruptCheckpointError, match="not JSON"):
        parse_json(f'{{"a":{number}}}', "p")


def test_parse_json_numbers_at_their_limits_are_taken() -> None:
    found = parse_json(f'{{"a":[{"9" * 4300},-1,-0.0,1e308]}}', "p")
    assert found == {"a": [10**4300 - 1, -1, 0.0, 1e308]}


def test_why_too_large_counts_what_is_in_strings_too_so_that_a_header_bounds_its_manifest() -> None:
    inner = '{"a":[' + "[]," * 1_000_000 + "1]}"
    assert why_too_large(inner) is not None
    assert why_too_large(json.dumps({"torchsaver": inner})) is not None


def test_why_too_long_of_text_as_we_write_it_is_none() -> None:
    assert why_too_long(b"x" * 31_000_000) is None


def test_json_cursor_reads_members_in_any_spacing() -> None:
    cursor = JsonCursor(' {\n"a" : "x" ,"b":{"c":[1]}, "d" :{ } } ', 10)
    found = {key: cursor.read_string() if key == "a" else cursor.read_flat_object(20) for key in cursor.members()}
    cursor.end()
    assert found == {"a": "x", "b": {"c": [1]}, "d": {}}


def _read_all(text: str) -> None:
    cursor = JsonCursor(text, 3)
    cursor.read_strings()
    cursor.end()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "}", "[]", "{}{}", "{,}", '{"a"}', '{"a":}', '{"a":"b"', '{"a":"b",}', '{"a":"b" "c":"d"}', "{1:2}"),
        *('{"a":"b"}x', '{"a":1}', '{"a":"\n"}', '{"a":"b","a":"c"}', "{'a':'b'}", '{"a":"b"}\0', "\ufeff{}"),
        '{"a":"","b":"","c":"","d":""}',
    ],
)
def test_json_cursor_of_what_is_no_object_of_strings_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        _read_all(text)


def test_json_cursor_flat_object_longer_than_allowed_is_a_value_error() -> None:
    text = '{"a":{"b":1}}'
    for most in range(len(text)):
        cursor = JsonCursor(text, 1)
        for _ in cursor.members():
            if most < len('{"b":1}'):
                with pytest.raises(ValueError, match="no object ends"):
                    cursor.read_flat_object(most)
                break
            assert cursor.read_flat_object(most) == {"b": 1}
