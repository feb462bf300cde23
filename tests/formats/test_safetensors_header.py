"""The header: ours is exact and aligned, and whatever else a file may hold there is refused before it is believed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from formats.builders import header_file, read_all

from torchsaver.errors import CorruptCheckpointError, TorchSaverError, UnsupportedCheckpointError
from torchsaver.formats.file_layout import DTYPE_BITS, FileLayout, TensorSpec
from torchsaver.formats.safetensors_header import MAX_HEADER_BYTES, format_header, is_sizes, parse_header, parse_length

SPECS = [TensorSpec("b", "F32", (2, 1), 0, 8), TensorSpec("a", "I8", (), 8, 9)]


def entry(dtype: Any = "F32", shape: Any = (1,), start: Any = 0, end: Any = 4, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end], **more}


def test_format_header_example_gives_these_bytes() -> None:
    text = '{"__metadata__":{"m":"\u00e9"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"a":{"dtype":"I8","shape":[],"data_offsets":[8,9]}}'
    assert format_header(FileLayout(SPECS), {"m": "\u00e9"}) == (184).to_bytes(8, "little") + text.encode().ljust(184)


def test_format_header_any_length_starts_data_at_a_multiple_of_64_and_parses_back() -> None:
    for length in range(130):
        head = format_header(FileLayout(SPECS), {"m": "x" * length})
        assert len(head) % 64 == 0
        assert parse_length(head[:8], len(head) + 9, "p") == len(head) - 8
        found, metadata = parse_header(head[8:], 9, "p")
        assert (list(found.specs.values()), metadata) == (SPECS, {"m": "x" * length})


@pytest.mark.parametrize("separators", [None, (",", ":")])
def test_parse_header_specs_in_any_order_come_in_the_order_of_the_file(separators: tuple[str, str] | None) -> None:
    header = {"a": entry("I8", [], 8, 9), "b": entry("F32", [2, 1], 0, 8), "e": entry("F32", [0], 8, 8)}
    text = json.dumps(header, separators=separators)
    assert list(parse_header(text.encode(), 9, "p")[0].specs) == ["b", "e", "a"]


@pytest.mark.parametrize(
    "key", ["../x", "/x", ".", "", "a\0b", "\n", "x" * 5000, "e\u0301", "__metadata", "\U0001f600"]
)
def test_parse_header_odd_key_is_a_key_as_any_other(key: str) -> None:
    specs = [TensorSpec(key, "F32", (1,), 0, 4)]
    assert list(parse_header(format_header(FileLayout(specs), {})[8:], 4, "p")[0].specs) == [key]


@pytest.mark.parametrize(
    ("data", "file_bytes"),
    [
        *((bytes(size), size) for size in range(8)),
        *((length.to_bytes(8, "little"), 100) for length in (93, 2**31, 2**63, 2**64 - 1)),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), 1 << 40),
    ],
)
def test_parse_length_beyond_the_file_or_the_limit_is_a_corrupt_checkpoint(data: bytes, file_bytes: int) -> None:
    with pytest.raises(CorruptCheckpointError):
        parse_length(data, file_bytes, "p")


def test_parse_length_at_its_limits_is_taken() -> None:
    assert parse_length((92).to_bytes(8, "little"), 100, "p") == 92
    assert parse_length(MAX_HEADER_BYTES.to_bytes(8, "little"), 1 << 40, "p") == MAX_HEADER_BYTES


GOOD = json.dumps({"a": entry()})
BIG = 1 << 62
TEXTS = {  # headers that are not the JSON of the format
    "empty": b"",
    "spaces": b" " * 64,
    "zeros": bytes(64),
    "no_utf8": b'{"\xff":{}}',
    "bom": b"\xef\xbb\xbf" + GOOD.encode(),
    "utf16": GOOD.encode("utf-16"),
    "utf16_without_bom": GOOD.encode("utf-16-le"),
    "lone_surrogate": GOOD.replace('"a"', r'"\ud800"').encode(),
    "raw_surrogate": GOOD.replace('"a"', '"\ud800"').encode("utf-8", "surrogatepass"),
    "raw_nul": GOOD.replace('"a"', '"a\0"').encode(),
    "nul_after": GOOD.encode() + bytes(8),
    "trailing_text": GOOD.encode() + b"{}",
    "deep_list": b'{"a":' + b"[" * 100_000,
    "deep_object": b'{"a":' * 100_000,
    "deep_and_closed": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep_metadata": b'{"__metadata__":' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
    "list": b"[]",
    "number": b"1",
    "doubled_key": b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}",
    "doubled_metadata": b'{"__metadata__":{"a":"b"},"__metadata__":{"a":"b"}}',
    "doubled_metadata_key": b'{"__metadata__":{"a":"b","a":"c"}}',
    "doubled_field": GOOD.replace('"dtype"', '"dtype":"I32","dtype"').encode(),
    **{f"shape_{text[:9]}": GOOD.replace("[1]", f"[{text}]").encode() for text in ("NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 5000, "01", "1.0", "1e0", "true", "null", '"1"', "[1]", "-1")},
    **{f"offset_{text[:9]}": GOOD.replace("[0, 4]", f"[{text}, 4]").encode() for text in ("NaN", "-Infinity", "-1e999", "0.0", "-0.0", "false", "null", '"0"', "-1", "1" + "0" * 5000)},
}  # fmt: skip
ENTRIES: dict[str, Any] = {  # and entries that are not; 4 bytes of data follow
    "no_object": {"a": [1]},
    "null": {"a": None},
    "empty_object": {"a": {}},
    "dtype_missing": {"a": {"shape": [1], "data_offsets": [0, 4]}},
    "shape_missing": {"a": {"dtype": "F32", "data_offsets": [0, 4]}},
    "offsets_missing": {"a": {"dtype": "F32", "shape": [1]}},
    "extra_field": {"a": entry(more=1)},
    "metadata_list": {"__metadata__": [], "a": entry()},
    "metadata_number": {"__metadata__": {"a": 1}, "a": entry()},
    "metadata_null": {"__metadata__": None, "a": entry()},
    "metadata_is_a_tensor": {"__metadata__": entry()},
    "dtype_number": {"a": entry(1)},
    "dtype_list": {"a": entry(["F32"])},
    "dtype_unknown": {"a": entry("F33")},
    "dtype_lower_case": {"a": entry("f32")},
    "shape_object": {"a": entry(shape={})},
    "shape_text": {"a": entry(shape="1")},
    "offsets_one": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}},
    "offsets_three": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}},
    "offsets_reversed": {"a": entry(start=4, end=0)},
    "offsets_beyond": {"a": entry(shape=[2], end=8)},
    "offsets_far_beyond": {"a": entry(start=2**64, end=2**64 + 4)},
    "offsets_wrap": {"a": entry(start=2**64 - 4, end=2**64)},
    "offsets_gap_before": {"a": entry("I8", [3], 1, 4)},
    "offsets_gap_after": {"a": entry("I8", [3], 0, 3)},
    "offsets_gap_between": {"a": entry("I8", [1], 0, 1), "b": entry("I8", [2], 2, 4)},
    "offsets_overlap": {"a": entry("I8", [3], 0, 3), "b": entry("I8", [2], 2, 4)},
    "offsets_same": {"a": entry(), "b": entry()},
    "offsets_empty_inside": {"a": entry(), "b": entry(shape=[0], start=2, end=2)},
    "size_other": {"a": entry(shape=[2])},
    "size_terabytes": {"a": entry(shape=[2**40], end=2**42)},
    "size_overflow": {"a": entry(shape=[BIG, BIG])},
    "size_overflow_to_4": {"a": entry(shape=[2**32 + 1, 2**32])},
    "size_overflow_to_0": {"a": entry(shape=[2**32, 2**32], end=0), "b": entry()},
    "size_half_a_byte": {"a": entry("F4", [7])},
    "rank_1000": {"a": entry(shape=[1] * 1000)},
    "rank_65": {"a": entry(shape=[1] * 65)},
    "no_dimension_torch_has": {"e": entry(shape=[0, 2**63], end=0), "a": entry()},
    "no_strides_torch_has": {"e": entry(shape=[0, BIG, BIG], end=0), "a": entry()},
    "no_size_torch_has": {"e": entry(shape=[BIG, BIG, 0], end=0), "a": entry()},
}  # fmt: skip
HOSTILE = {
    **{name: header_file(text, bytes(4)) for name, text in TEXTS.items()},
    **{name: header_file(header, bytes(4)) for name, header in ENTRIES.items()},
    "nothing_at_all": b"",
    "length_only": header_file("", length=0),
    "length_zero": header_file(GOOD, bytes(4), length=0),
    "length_one": header_file(GOOD, bytes(4), length=1),
    "length_short": header_file(GOOD, bytes(4), length=len(GOOD) - 1),
    "length_into_the_data": header_file(GOOD, bytes(4), length=len(GOOD) + 4),
    "length_beyond_the_file": header_file(GOOD, bytes(4), length=len(GOOD) + 5),
    **{f"length_{length:#x}": header_file(GOOD, bytes(4), length) for length in (10**8 + 1, 2**31, 2**63, 2**64 - 1)},
    "trailing_byte": header_file(GOOD, bytes(5)),
    "missing_byte": header_file(GOOD, bytes(3)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_parse_header_hostile_file_is_refused_and_soon(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(HOSTILE[kind])
    start = time.process_time()
    with pytest.raises((CorruptCheckpointError, UnsupportedCheckpointError)) as caught:
        read_all(str(tmp_path / "file"))
    assert time.process_time() - start < 2
    assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "shape", "end"),
    [
        *(("F32", shape, 0) for shape in ([0, 2**63], [2**63, 0], [2**32, 2**32], [], [1])),
        *(("F32", [2**32 + 1, 2**32], 2**34), ("F32", [2], 4), ("F32", [0], 4), ("F4", [1], 0), ("F4", [3], 2)),
        *(("F33", [1], 4), ("F33", [0], 0), ("F33", [4], 4)),
    ],
)
def test_parse_header_sizes_that_do_not_fit_are_refused_in_the_form_writers_use_too(
    dtype: str, shape: list[int], end: int
) -> None:
    text = json.dumps({"a": entry(dtype, shape, 0, end)}, separators=(",", ":"))
    assert text.startswith('{"a":{"dtype":')
    with pytest.raises((CorruptCheckpointError, UnsupportedCheckpointError)):
        parse_header(text.encode(), end, "p")


def test_parse_header_many_empty_tensors_are_read_soon() -> None:
    text = json.dumps({f"k{number}": entry(shape=[0], end=0) for number in range(20_000)})
    start = time.process_time()
    assert len(parse_header(text.encode(), 0, "p")[0].specs) == 20_000
    assert time.process_time() - start < 5


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_parse_header_each_dtype_takes_its_own_size_and_no_other(dtype: str) -> None:
    nbytes = DTYPE_BITS[dtype]  # of eight items
    for end in (nbytes - 1, nbytes, nbytes + 1):
        text = json.dumps({"a": entry(dtype, [2, 4], 0, end)}).encode()
        if end == nbytes:
            assert parse_header(text, end, "p")[0].specs["a"].nbytes == end
        else:
            with pytest.raises(TorchSaverError):
                parse_header(text, end, "p")


@pytest.mark.parametrize(
    ("value", "outcome"), [([], True), ([0, 5], True), ([-1], False), ([True], False), ([1.0], False), ((1,), False), ("1", False)]
)  # fmt: skip
def test_is_sizes_only_for_a_list_of_natural_numbers(value: Any, outcome: bool) -> None:
    assert is_sizes(value) is outcome


def test_parse_header_more_members_than_are_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsaver.formats.safetensors_header.MAX_MEMBERS", 3)
    header = {"__metadata__": {"x": "y"}, "a": entry()}
    assert list(parse_header(json.dumps(header).encode(), 4, "p")[0].specs) == ["a"]
    for separators in (None, (",", ":")):  # the compact form is the one that writers use
        text = json.dumps({**header, "b": entry(start=4, end=8)}, separators=separators)
        with pytest.raises(CorruptCheckpointError, match="too many members"):
            parse_header(text.encode(), 8, "p")


def test_parse_header_entry_of_the_most_dimensions_on_lines_of_their_own_is_read() -> None:
    text = json.dumps({"a": entry(shape=[0, *[2**58], *[1] * 62], end=0)}, indent=40)
    assert parse_header(text.encode(), 0, "p")[0].specs["a"].shape[1] == 2**58


def test_parse_header_wrong_entry_is_refused_before_the_rest_is_parsed() -> None:
    text = b'{"a":{"dtype":5},' + b'"b":' * 1_000_000  # the rest is no JSON at all
    with pytest.raises(CorruptCheckpointError, match="'a' is not an object of dtype, shape and data_offsets"):
        parse_header(text, 0, "p")


ENTRY = '"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'


@pytest.mark.parametrize(
    "text",
    [
        *(
            "}",
            "",
            " }",
            '{"__metadata__":{"a":"b"},}',
            '{"__metadata__":{},}',
            "{,}",
            '{"__metadata__":{}',
            '{"__metadata__":{}x}',
        ),
        *(f"{{{ENTRY}}}\u00a0", f"{{{ENTRY}}}\v"),
        *(f'{{"__metadata__":{{}}{ENTRY}}}', f"{{,{ENTRY}}}", f"{{{ENTRY},}}", f"{{{ENTRY}{ENTRY}}}", f"{{{ENTRY}"),
    ],
)
def test_parse_header_comma_too_many_or_missing_is_no_json(text: str) -> None:
    with pytest.raises(CorruptCheckpointError, match="not JSON"):
        parse_header(text.encode(), 0, "p")


@pytest.mark.parametrize("between", ["", "}", "},", ",}", ",x", ",,", "x,", "0", ",{", '"', ',"":'])
def test_parse_header_anything_but_a_comma_between_entries_is_no_json(between: str) -> None:
    another = ENTRY.replace("a", "b", 1)
    for text in (
        f"{{{ENTRY}{between}{another}}}",
        f'{{"__metadata__":{{}},{ENTRY},{ENTRY[:2]}b{ENTRY[2:]}{between}{another}}}',
    ):
        with pytest.raises(CorruptCheckpointError, match="not JSON"):
            parse_header(text.encode(), 0, "p")


@pytest.mark.parametrize("again", ["a", "__metadata__"])
def test_parse_header_key_that_stands_twice_or_is_the_metadata_s_is_refused_in_the_compact_form(again: str) -> None:
    for later in ("", f",{ENTRY.replace('a', 'c', 1).replace('F32', 'U9')}"):  # what is wrong first counts
        text = f"{{{ENTRY},{ENTRY.replace('a', again, 1)}{later}}}"
        with pytest.raises(CorruptCheckpointError):
            parse_header(text.encode(), 0, "p")


def test_parse_header_known_layout_is_returned_for_just_that_header() -> None:
    layout = FileLayout(SPECS)
    for metadata in ({}, {"m": "x"}):
        text = format_header(layout, metadata)[8:]
        assert parse_header(text, 9, "p", [FileLayout([]), layout])[0] is layout
        with pytest.raises(CorruptCheckpointError, match="10 follow"):
            parse_header(text, 10, "p", [layout])


def test_parse_header_known_layout_is_not_taken_for_one_with_more_to_it() -> None:
    layout = FileLayout(SPECS)
    more = FileLayout([*SPECS, TensorSpec("e", "F32", (0,), 9, 9)])
    assert list(parse_header(format_header(more, {})[8:], 9, "p", [layout])[0].specs) == ["b", "a", "e"]
    with pytest.raises(CorruptCheckpointError, match="not JSON"):
        parse_header(b'{"__metadata__":{},}', 0, "p", [FileLayout([])])
