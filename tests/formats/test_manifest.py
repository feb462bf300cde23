"""The manifest comes back as it was, and each change of what it covers is noticed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from formats.builders import file_bytes, read_all, signed
from hypothesis import given
from hypothesis import strategies as st

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.checksum import crc32cs_hex
from torchsaver.formats.file_layout import lay_out
from torchsaver.formats.json_text import canonical_json, require_json
from torchsaver.formats.manifest import FORMAT_VERSION, Manifest, format_manifest, parse_manifest

LAYOUT = lay_out([("w", "F32", (2, 3)), ("z", "F64", (2,)), ("\u00e9", "I8", ())])
CONTENT = LAYOUT.content
KEYS = LAYOUT.specs.keys()
FULL = Manifest(
    global_step=7,
    time=1700000000.25,
    crc32c={"w": 1, "z": 0xFFFFFFFF, "\u00e9": 0},
    aliases={"tied": "w"},
    complex128=frozenset({"z"}),
    objects={"optimizer": {"state": [{"lr": 0.1}, None]}},
    versions={"torch": "2.4.0"},
    metadata={"note": "\u00e9\U0001f600", "list": [1, -0.5, True, None]},
    metrics={"val/\u00e9": 0.1, "inf": math.inf, "-inf": -math.inf, "small": 5e-324, "big": -1.7976931348623157e308},
)
PLAIN = {"format_version": 1, "crc32c": "00000000" * len(KEYS)}


def parse(text: str, content: bytes = CONTENT) -> Manifest:
    return parse_manifest(text, content, KEYS, "p")[0]


@pytest.mark.parametrize(
    "manifest", [FULL, Manifest(crc32c=FULL.crc32c), Manifest(0, 0.0, FULL.crc32c), Manifest(-1, 3, FULL.crc32c, metadata={})]
)  # fmt: skip
def test_parse_manifest_of_format_manifest_gives_it_back(manifest: Manifest) -> None:
    text, checksum = format_manifest(manifest, CONTENT)
    assert parse_manifest(text, CONTENT, KEYS, "p") == (manifest, checksum)


@given(checksums=st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), st.integers(0, 0xFFFFFFFF)))
def test_format_manifest_checksums_of_any_keys_are_in_their_order_and_come_back(checksums: dict[str, int]) -> None:
    aliases = {"crc32c": '"crc32c":"', "format_version": '1,"header_crc32c":"00000000"'}
    text, _ = format_manifest(Manifest(crc32c=checksums, aliases=aliases), CONTENT)
    assert text == canonical_json(json.loads(text))
    assert json.loads(text).get("crc32c", "") == crc32cs_hex([checksums[key] for key in sorted(checksums)])
    assert parse_manifest(text, CONTENT, checksums.keys(), "p")[0].crc32c == checksums


def test_parse_manifest_checksums_each_under_its_key_as_they_were_written_at_first_are_read() -> None:
    first = {**PLAIN, "crc32c": {"z": "0000000a", "w": "fffffffF", "\u00e9": "00000000"}}
    assert parse(signed(first, json.loads(CONTENT))).crc32c == {"z": 10, "w": 0xFFFFFFFF, "\u00e9": 0}


def test_format_manifest_other_checksums_take_the_same_length() -> None:
    lengths = {len(format_manifest(Manifest(crc32c={"w": crc}), CONTENT)[0]) for crc in (0, 1, 0xABCDEF, 0xFFFFFFFF)}
    assert len(lengths) == 1


def test_format_manifest_same_content_in_another_order_gives_the_same_text() -> None:
    turned = Manifest(**{**vars(FULL), "crc32c": dict(reversed(FULL.crc32c.items()))})
    assert format_manifest(turned, CONTENT) == format_manifest(FULL, CONTENT)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "step": lambda m: m.update(global_step=8),
    "step_to_float": lambda m: m.update(global_step=7.0),
    "step_gone": lambda m: m.pop("global_step"),
    "time": lambda m: m.update(time=1700000000.5),
    "version": lambda m: m.update(format_version=0),
    "versions": lambda m: m["versions"].update(torch="0"),
    "checksum": lambda m: m.update(crc32c="00000002" + m["crc32c"][8:]),
    "checksum_gone": lambda m: m.update(crc32c=m["crc32c"][8:]),
    "checksums_gone": lambda m: m.pop("crc32c"),
    "alias": lambda m: m["aliases"].update(tied="z"),
    "complex128": lambda m: m.update(complex128=[]),
    "object": lambda m: m["objects"]["optimizer"]["state"][0].update(lr=0.2),
    "metadata": lambda m: m["metadata"].update(note="e"),
    "metric": lambda m: m["metrics"].update(small=0.0),
    "metric_gone": lambda m: m.pop("metrics"),
    "new_field": lambda m: m.update(new=1),
    "own_checksum": lambda m: m.update(header_crc32c="00000000"),
    "own_checksum_in_capitals": lambda m: m.update(header_crc32c=m["header_crc32c"].upper() + " "),
    "own_checksum_gone": lambda m: m.pop("header_crc32c"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_parse_manifest_field_changed_is_a_corrupt_checkpoint(change: str) -> None:
    fields = json.loads(format_manifest(FULL, CONTENT)[0])
    CHANGES[change](fields)
    with pytest.raises(CorruptCheckpointError, match="checksum"):
        parse(json.dumps(fields))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"w":["F32",[2,3]]', '"w":["I32",[2,3]]'),
        ('"w":["F32",[2,3]]', '"w":["F32",[3,2]]'),
        ('"w":["F32",[2,3]]', '"w":["F32",[6]]'),
        ('"w":["F32",[2,3]]', '"v":["F32",[2,3]]'),
        ('"w":["F32",[2,3]],', ""),
        ('"w":', '"new":["F32",[0]],"w":'),
    ],
)
def test_parse_manifest_key_dtype_or_shape_changed_is_a_corrupt_checkpoint(old: str, new: str) -> None:
    text = format_manifest(FULL, CONTENT)[0]
    content = CONTENT.decode().replace(old, new).encode()
    assert content != CONTENT
    with pytest.raises(CorruptCheckpointError, match="header checksum"):
        parse(text, content)


WRONG_FIELDS: list[dict[str, Any]] = [
    *({"global_step": value} for value in ("7", 7.0, True, [], {})),
    *({"time": value} for value in ("1", True, [], {})),
    *({"crc32c": value} for value in ([], 1, None, "", "x" * 24, "0" * 16, "0" * 25, "0" * 32, " " * 24, ["00000000"] * 3)),
    *({"crc32c": dict.fromkeys(KEYS, value)} for value in (1, None, "xyz", "0000000", "000000000", "0000 000", " " * 8)),
    *({"crc32c": dict.fromkeys(keys, "00000000")} for keys in ([], ["w"], [*KEYS, "other"])),
    {"crc32c": {"w": "0" * 7, "z": "0" * 9, "\u00e9": "0" * 8}},
    *({"metrics": value} for value in ([], "x", 3, *({"loss": v} for v in ("0.5", "NaN", "", None, True, [], {}, 10**400)))),
    *({"aliases": value} for value in ([], "x", {"tied": 1}, {"tied": None})),
    *({"complex128": value} for value in ({}, "z", [1], [None], [[]])),
    *({"objects": value} for value in ([], "x", 1)),
    *({"versions": value} for value in ([], "x", {"torch": 2})),
    *({"shards": value} for value in ([], {"a": 1}, {"a": "-"})),
    *({"format_version": value} for value in ("1", 1.0, True, None, 0, -1, [1])),
]  # fmt: skip


@pytest.mark.parametrize("fields", WRONG_FIELDS, ids=lambda fields: str(fields)[:60])
def test_parse_manifest_signed_field_of_a_wrong_type_is_a_corrupt_checkpoint(fields: dict[str, Any]) -> None:
    assert parse(signed(PLAIN, json.loads(CONTENT))).crc32c == dict.fromkeys(KEYS, 0)
    with pytest.raises(CorruptCheckpointError):
        parse(signed({**PLAIN, **fields}, json.loads(CONTENT)))


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "[]", "1", "null", "{", "{}x", '{"a":1,"a":1}', '{"time":NaN}', '{"time":-Infinity}', "\ud800", "\ufeff{}"),
        *('{"time":1e999}', '{"metadata":[-1e999]}', '{"time":1' + "0" * 5000 + "}", '{"format_version":1e999}'),
    ],
    ids=lambda text: ascii(text[:30]),
)  # fmt: skip
def test_parse_manifest_text_that_is_no_json_object_is_a_corrupt_checkpoint(text: str) -> None:
    with pytest.raises(CorruptCheckpointError):
        parse(text)


def test_parse_manifest_nested_to_any_depth_is_a_corrupt_checkpoint() -> None:
    for depth in range(500, 1100):
        with pytest.raises(CorruptCheckpointError):
            parse('{"metadata":' + "[" * depth + "]" * depth + "}")


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 10**30])
def test_parse_manifest_newer_format_version_is_unsupported_whatever_else_it_says(version: int) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=f"format version {version} is newer.*upgrade"):
        parse(json.dumps({"format_version": version, "crc32c": 5}))


def test_manifest_for_shard_keeps_what_belongs_to_its_tensors_only() -> None:
    shard = FULL.for_shard(["w"])
    assert (shard.complex128, shard.aliases, shard.objects, shard.metadata) == (frozenset(), {}, {}, None)
    assert (shard.global_step, shard.time) == (FULL.global_step, FULL.time)
    assert FULL.for_shard(["z"]).complex128 == {"z"}


def test_manifest_file_rewritten_by_safetensors_stays_valid(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(3, 2).T, "z": torch.randn(2, dtype=torch.complex128), "e": torch.zeros(0)}
    path, again = str(tmp_path / "a"), str(tmp_path / "b")
    Path(path).write_bytes(file_bytes(tensors, Manifest(3, complex128=frozenset("z"), metadata={"a": "\u00e9"})))
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(safetensors.torch.load_file(path), again, metadata)
    found, manifest = read_all(again)
    assert manifest == read_all(path)[1]
    assert {key: tensor.tolist() for key, tensor in found.items()} == {k: t.tolist() for k, t in tensors.items()}


def test_canonical_json_depends_on_the_value_alone() -> None:
    assert canonical_json({"b": 1, "a": [1.5, "\u00e9", None]}) == canonical_json({"a": [1.5, "\u00e9", None], "b": 1})
    assert canonical_json({"b": 1, "a": [1.5, "\u00e9", None]}) == '{"a":[1.5,"\u00e9",null],"b":1}'


@pytest.mark.parametrize(
    "value", [None, True, 0, -1, 10**30, 1.5, 1e308, "", "\u00e9\0\u2028\U0001f600", [], {}, [[1], {"": None}], {"a": {"b": [0.1]}}]
)  # fmt: skip
def test_require_json_value_that_comes_back_as_it_is_is_taken(value: Any) -> None:
    require_json(value)
    assert parse(format_manifest(Manifest(crc32c=FULL.crc32c, metadata=value), CONTENT)[0]).metadata == value


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
NO_JSON = [
    *(float("nan"), [float("inf")], {"a": -float("inf")}, (), (1, 2), {"a": (1,)}, {1: "a"}, {None: 1}, {True: 1}, {"a": 1, 2: 3}),
    *({1}, b"a", 1j, object(), torch.zeros(()), torch.float32, "\ud800", {"\udfff": 1}, [["\ud83d", "\ude00"]], 10**5000),
]  # fmt: skip


@pytest.mark.parametrize("value", [*NO_JSON, CYCLE, nested(100_000)], ids=lambda value: type(value).__name__)
def test_require_json_value_that_would_change_or_fail_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="use dict"):
        require_json(value)


def test_require_json_value_taken_at_any_depth_can_be_written_and_read() -> None:
    taken = []
    for depth in range(500, 1100):
        try:
            require_json(nested(depth))
        except ValueError:
            continue
        taken.append(depth)
        text, _ = format_manifest(Manifest(crc32c=FULL.crc32c, metadata=nested(depth)), CONTENT)
        parse(text)
    assert taken != list(range(500, 1100))


def test_metrics_of_nan_come_back_as_nan_and_whole_numbers_as_floats() -> None:
    given = Manifest(crc32c=FULL.crc32c, metrics={"loss": math.nan, "epoch": 3})
    found = parse(format_manifest(given, CONTENT)[0]).metrics
    assert math.isnan(found["loss"])
    assert (found["epoch"], type(found["epoch"])) == (3.0, float)
    assert '"metrics":{"epoch":3,"loss":"nan"}' in format_manifest(given, CONTENT)[0]


def test_manifest_without_metrics_has_no_such_field() -> None:
    assert '"metrics"' not in format_manifest(Manifest(crc32c=FULL.crc32c), CONTENT)[0]
    assert parse(format_manifest(Manifest(crc32c=FULL.crc32c), CONTENT)[0]).metrics == {}


def test_manifest_of_a_shard_has_no_metrics_and_the_step() -> None:
    shard = FULL.for_shard(["z"])
    assert (shard.metrics, shard.global_step, shard.complex128) == ({}, 7, {"z"})


def test_parse_manifest_of_an_index_needs_checksums_of_shards_only() -> None:
    manifest = Manifest(shards={"m-1.safetensors": 5})
    text, checksum = format_manifest(manifest, b"{}")
    assert parse_manifest(text, b"{}", set(), "p") == (manifest, checksum)


@pytest.mark.parametrize("checksums", [None, 5, ["x"], "zz", "00000000", {"a": 1}, {"a": "00000000"}])
def test_parse_manifest_of_an_index_with_checksums_of_tensors_is_a_corrupt_checkpoint(checksums: object) -> None:
    fields = {"format_version": 1, "shards": {"m-1.safetensors": "00000005"}, "crc32c": checksums}
    with pytest.raises(CorruptCheckpointError, match=r"crc32c|checksums"):
        parse_manifest(signed(fields, {}), b"{}", set(), "p")


def test_parse_manifest_of_a_data_file_needs_checksums_of_tensors_whatever_shards_it_names() -> None:
    fields = {"format_version": 1, "shards": {"x": "00000000"}}
    with pytest.raises(CorruptCheckpointError, match="crc32c is 0 characters"):
        parse(signed(fields, json.loads(CONTENT)))
    both = {**PLAIN, **fields}
    assert parse(signed(both, json.loads(CONTENT))).crc32c == dict.fromkeys(KEYS, 0)


def test_parse_manifest_checksums_go_by_code_point_and_not_by_utf_16() -> None:
    keys = {"\U0001f600": 1, "\uffff": 2}
    text, _ = format_manifest(Manifest(crc32c=keys), CONTENT)
    assert '"crc32c":"0000000200000001"' in text
