"""Text for a terminal."""

import json

import pytest

from torchsaver.inspection.terminal_text import bytes_text, json_text, table_lines, visible


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (999.9, "1 kB"),
        (1234, "1.23 kB"),
        (999_600, "1 MB"),
        (2e9, "2 GB"),
        (1.5e12, "2 TB"),
        (4e18, "4,000,000 TB"),
    ],
)
def test_size_has_three_digits_and_a_unit(nbytes: float, text: str) -> None:
    assert bytes_text(nbytes) == text


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\x9b", "\u202e", "\x7f", "\udcff"])
def test_what_is_not_printable_is_escaped_in_lines_and_in_json(text: str) -> None:
    assert visible(text).isprintable()
    shown = json_text({"key": text})
    assert all(line.isprintable() for line in shown.split("\n"))
    assert json.loads(shown) == {"key": text}


def test_printable_text_stays_as_it_is() -> None:
    assert visible("gewicht/\u00e4\u6a21") == "gewicht/\u00e4\u6a21"
    assert "\u6a21" in json_text({"key": "\u6a21"})


def test_table_sets_columns_in_line() -> None:
    assert table_lines([("key", "n"), ("w", "10"), ("x", "")], [False, True]) == ["key   n", "w    10", "x"]
