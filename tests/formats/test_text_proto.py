"""The state file's grammar: by hand, by hypothesis, and as protobuf itself was recorded to read and write it."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchsaver.formats.text_proto import Kind, TextProtoError, Value, format_text, parse_text

FIELDS: dict[str, Kind] = {"s": "strings", "d": "doubles"}
RECORDED = json.loads(Path(__file__).parents[1].joinpath("data", "text_proto.json").read_text(encoding="utf-8"))
SINGLE, PATHS, TIMES, PRESERVED = STATE_FIELDS = (
    "model_checkpoint_path",
    "all_model_checkpoint_paths",
    "all_model_checkpoint_timestamps",
    "last_preserved_timestamp",
)
STATE: dict[str, Kind] = {SINGLE: "string", PATHS: "strings", TIMES: "doubles", PRESERVED: "double"}


@pytest.mark.parametrize(
    ("text", "strings", "doubles"),
    [
        ("", [], []),
        ("# comment", [], []),
        (" \t\r\n# comment\n\v\f", [], []),
        ('s: "a"', ["a"], []),
        ("s: 'a'", ["a"], []),
        ('s:"a"d:1', ["a"], [1.0]),
        ('s\n: # comment "b"\n"a"', ["a"], []),
        ('s: "a" "b"\n"" \'c\'', ["abc"], []),
        ('s: "a" s: "b"', ["a", "b"], []),
        ('s: "a", s: "b"; d: 1,', ["a", "b"], [1.0]),
        ('s: ["a", "b" "c"], d: [1,2]', ["a", "bc"], [1.0, 2.0]),
        ("s: [] d:[ ];", [], []),
        ("s: \"it's\" s: '\"'", ["it's", '"'], []),
        ('s: "# no comment"', ["# no comment"], []),
        ('s: "\t\x01\u00e9\U0001f600"', ["\t\x01\u00e9\U0001f600"], []),
        ("d: 0 d: -1 d: +1 d: 1.5 d: .5 d: 1. d: 1e3 d: -1.5E-3", [], [0.0, -1.0, 1.0, 1.5, 0.5, 1.0, 1000.0, -0.0015]),
        ("d: 1.5f d: 2F d: .5e1f", [], [1.5, 2.0, 5.0]),
        ("d: inf d: -Infinity d: 1e400 d: INFf", [], [math.inf, -math.inf, math.inf, math.inf]),
    ],
)
def test_parse_text_each_form_of_syntax_gives_values_in_order(
    text: str, strings: list[str], doubles: list[float]
) -> None:
    assert parse_text(text, FIELDS) == {"s": strings, "d": doubles}


@pytest.mark.parametrize("text", ["nan", "NaN", "-nan", "nanf"])
def test_parse_text_nan_in_any_spelling_is_nan(text: str) -> None:
    assert [math.isnan(value) for value in parse_text(f"d: {text}", FIELDS)["d"]] == [True]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        (r'"\a\b\f\n\r\t\v\\\'\"\?"', "\a\b\f\n\r\t\v\\'\"?"),
        (r"'\a\b\f\n\r\t\v\\\'\"\?'", "\a\b\f\n\r\t\v\\'\"?"),
        (r'"\1\12\101\1012\0"', "\x01\nAA2\0"),
        (r'"\303\251\xc3\xA9"', "\u00e9\u00e9"),
        (r'"\x4g\x411"', "\x04gA1"),
        (r'"\u00e9\u00E91"', "\u00e9\u00e91"),
        (r'"\U0001F600\U0010ffff"', "\U0001f600\U0010ffff"),
        (r"""  "\303" '\251' """, "\u00e9"),  # one character of two adjacent strings
    ],
)
def test_parse_text_escape_gives_its_character(literal: str, text: str) -> None:
    assert parse_text(f"s: {literal}", FIELDS)["s"] == [text]


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("s", 1),
        ("s:", 2),
        ("  s  ", 5),
        ('s "a"', 2),
        ("s: a", 3),
        ("s: 1", 3),
        ('s: "a', 3),
        ('s: "a\n"', 3),
        ('d: "1"', 3),
        ("d: 01", 3),
        ("d: 0x1", 3),
        ("d: 1.5.5", 3),
        ("d: 1e", 3),
        ("d: - 1", 3),
        ("d: one", 3),
        ("d: \u0661", 3),
        ("d: 1\u0662", 4),
        ('t: "a"', 0),
        ('s: "a" t: 1', 7),
        ('s: ["a"', 7),
        ('s: ["a",]', 8),
        ('s: ["a" d: 1', 8),
        ("d: [1; 2]", 5),
        ('s: "a",,', 7),
        ('"s": "a"', 0),
        ('{s: "a"}', 0),
        ('s: "a"}', 6),
        ("s: <a>", 3),
        ('s: "a" \x00', 7),
        ('\ufeffs: "a"', 0),
        (r's: "\q"', 3),
        (r's: "\400"', 3),
        (r's: "\x"', 3),
        (r's: "\u12"', 3),
        (r's: "\ud800"', 3),
        (r's: "\U00110000"', 3),
        (r's: "\303"', 3),
        (r's: "a" "\377"', 3),
        ('s: "\ud800"', 3),
    ],
)
def test_parse_text_wrong_syntax_names_its_position(text: str, position: int) -> None:
    with pytest.raises(TextProtoError, match=f"^character {position}: ") as caught:
        parse_text(text, FIELDS)
    assert caught.value.position == position


@given(st.text(st.characters(exclude_categories=["Cs"])), st.floats())
def test_parse_text_of_format_text_gives_any_string_and_double_back(text: str, number: float) -> None:
    read = parse_text(format_text([("s", text), ("d", number)]), FIELDS)
    assert read["s"] == [text]
    assert repr(read["d"]) == repr([number])


@given(st.text("\"'\\ nx01uU7fsd:[],;#\n-.e\u00e9", max_size=30))
def test_parse_text_any_text_is_read_or_a_text_proto_error(text: str) -> None:
    try:
        values = parse_text(text, FIELDS)
    except TextProtoError as error:
        assert 0 <= error.position <= len(text)  # noqa: PT017
    else:
        assert set(values) == set(FIELDS)


def test_format_text_fields_stand_one_a_line_in_the_order_given() -> None:
    assert format_text([("d", 1), ("s", "\u00e9\n\x01"), ("d", -math.inf)]) == 'd: 1.0\ns: "\u00e9\\n\\001"\nd: -inf\n'


@pytest.mark.parametrize("form", ['s: "{}"', "s: '{}'", 's: "" # {}'])
def test_parse_text_long_line_takes_memory_in_proportion(form: str) -> None:
    text = form.format("a" * 200_000)
    tracemalloc.start()
    try:
        parse_text(text, FIELDS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(text)


def difference(text: str) -> str | None:
    """Return why a text is read otherwise than by the recorded parser, on purpose; None when it should be as there."""
    if re.search(r"\\[^abfnrtvxuU\\'\"?0-7]", text):
        return "refused: C++ protobuf knows no such escape either; Python's keeps the backslash"
    if r"\?" in text:
        return "a question mark, as in C++ protobuf; Python's keeps the backslash"
    if re.search(r"[0-9]_[0-9]|[\u0661\u0662\uff11]", text):
        return "refused: Python's float() alone takes 1_000 and digits beyond ASCII"
    if re.search(r"[0-9]ff\b", text):
        return "refused: one f is C's suffix; Python's protobuf strips any number of them"
    return None


def observed(text: str) -> dict[str, list[Any]] | None:
    """Return what we read, as the recording has it."""
    try:
        values = parse_text(text, STATE)
    except TextProtoError:
        return None
    read: dict[str, list[Any]] = {
        name: [value if isinstance(value, str) else repr(value) for value in found] for name, found in values.items()
    }
    read[SINGLE] = [value for value in read[SINGLE][-1:] if value]
    read[PRESERVED] = [value for value in read[PRESERVED][-1:] if value != "0.0"]
    return read


def test_parse_text_recorded_texts_are_read_as_protobuf_reads_them() -> None:
    differing = [text for text, wanted in RECORDED["parse"] if observed(text) != wanted]
    assert [text for text in differing if difference(text) is None] == []


def test_parse_text_recorded_differences_all_still_occur() -> None:
    found = {difference(text) for text, wanted in RECORDED["parse"] if observed(text) != wanted}
    assert len(found) == 4


@pytest.mark.parametrize(("kind", "value", "text"), RECORDED["print"])
def test_format_text_recorded_value_is_written_as_protobuf_writes_it(kind: str, value: str, text: str) -> None:
    field: tuple[str, Value] = (PATHS, value) if kind == "string" else (TIMES, float(value))
    assert format_text([field]) == text


@pytest.mark.parametrize(
    "text", ["paths: ['a', 'b']", "paths: '\\n\\n\\n\\n\\n'", "#\n#\n#\n#\n#\n#\n", "paths: '' '' '' ''"]
)
def test_parse_text_of_more_steps_than_allowed_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Kind] = {"paths": "strings"}
    parse_text(text, fields)
    monkeypatch.setattr("torchsaver.formats.text_proto.MAX_STEPS", 5)
    with pytest.raises(TextProtoError, match="over 5 tokens"):
        parse_text(text, fields)


def test_parse_text_two_hundred_thousand_checkpoints_are_read() -> None:
    assert len(parse_text('paths: "m"\n' * 200_000, {"paths": "strings"})["paths"]) == 200_000


def test_parse_text_string_longer_than_allowed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsaver.formats.text_proto.MAX_STRING", 3)
    assert parse_text('paths: "abc"', {"paths": "strings"}) == {"paths": ["abc"]}
    with pytest.raises(TextProtoError, match="longer than 3"):
        parse_text('paths: "abcd"', {"paths": "strings"})
