"""The index of a sharded checkpoint: ours and Hugging Face's are read, and no name leads out of the directory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from formats.builders import signed

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.manifest import FORMAT_VERSION, Manifest
from torchsaver.formats.shard_index import format_index, parse_index

SHARDS = {"m-00001-of-00002.safetensors": 0x11, "m-00002-of-00002.safetensors": 0xFFFFFFFF}
WEIGHT_MAP = dict(zip(["b.weight", "\u00e9"], SHARDS, strict=True))
OURS = Manifest(global_step=3, time=1.5, aliases={"c": "\u00e9"}, metadata={"a": [1]}, shards=SHARDS)

# As written by huggingface_hub.save_torch_state_dict, and by old versions of transformers without any metadata.
HUGGING_FACE = """{
  "metadata": {
    "total_parameters": 6,
    "total_size": 24
  },
  "weight_map": {
    "lm_head.weight": "model-00002-of-00002.safetensors",
    "model.embed_tokens.weight": "model-00001-of-00002.safetensors"
  }
}
"""


def index(**changes: Any) -> bytes:
    """Return our index with some of its fields changed."""
    return json.dumps({**json.loads(format_index(WEIGHT_MAP, 24, OURS)), **changes}).encode()


def test_parse_index_of_format_index_gives_map_and_manifest_back() -> None:
    assert parse_index(format_index(WEIGHT_MAP, 24, OURS), "p") == (WEIGHT_MAP, OURS)


def test_format_index_same_content_gives_same_bytes_in_the_hugging_face_layout() -> None:
    data = format_index(WEIGHT_MAP, 24, OURS)
    assert data == format_index(dict(reversed(WEIGHT_MAP.items())), 24, OURS)
    assert data.endswith(b"\n")
    found = json.loads(data)
    assert found["weight_map"] == WEIGHT_MAP
    assert found["metadata"]["total_size"] == 24


@pytest.mark.parametrize("text", [HUGGING_FACE, json.dumps({"weight_map": json.loads(HUGGING_FACE)["weight_map"]})])
def test_parse_index_hugging_face_layout_gives_its_map_and_an_empty_manifest(text: str) -> None:
    assert parse_index(text.encode(), "p") == (json.loads(HUGGING_FACE)["weight_map"], Manifest())


HOSTILE_NAMES = [
    "../x",
    "/abs",
    "a/b",
    "",
    ".",
    "..",
    "a\0b",
    "./a",
    "a/",
    1,
    None,
    True,
    [],
    {},
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("theirs", [True, False])
def test_parse_index_name_that_is_no_plain_file_name_is_refused(name: Any, theirs: bool) -> None:
    data = json.dumps({"weight_map": {"k": name}}).encode() if theirs else index(weight_map={"k": name})
    with pytest.raises(CorruptCheckpointError, match="a shard is a file beside its index"):
        parse_index(data, "p")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{}", b"[]", b"null", b"\xff", b"\xef\xbb\xbf{}", b'{"weight_map": [], "metadata": {}}', b"[" * 100_000),
        *(b'{"weight_map": {}, "metadata": []}', b'{"weight_map": {"a": "b", "a": "c"}}', b'{"weight_map": NaN}'),
        *(HUGGING_FACE.encode("utf-16"), HUGGING_FACE.encode()[:-3], HUGGING_FACE.encode() + b"}"),
        index(weight_map=dict(reversed(list(zip(WEIGHT_MAP, reversed(SHARDS), strict=True))))),
        index(weight_map={**WEIGHT_MAP, "new": next(iter(SHARDS))}),
        *(index(metadata={"torchsaver": value, "total_size": 24}) for value in (1, None, {}, [], "", "{}", "x", "\ud800")),
    ],
)  # fmt: skip
def test_parse_index_damaged_is_a_corrupt_checkpoint(data: bytes) -> None:
    with pytest.raises(CorruptCheckpointError):
        parse_index(data, "p")


@pytest.mark.parametrize("size", ["25", "-24", "24.0", '"24"', "null", "1e999", "9" * 400])
def test_parse_index_total_size_that_was_changed_is_a_corrupt_checkpoint(size: str) -> None:
    text = json.loads(format_index(WEIGHT_MAP, 24, OURS))["metadata"]["torchsaver"]
    data = f'{{"metadata": {{"torchsaver": {json.dumps(text)}, "total_size": {size}}}, "weight_map": {json.dumps(WEIGHT_MAP)}}}'
    with pytest.raises(CorruptCheckpointError):
        parse_index(data.encode(), "p")


def test_parse_index_each_bit_flipped_is_an_error_or_changes_nothing() -> None:
    good, wrong = format_index(WEIGHT_MAP, 24, OURS), []
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        try:
            if parse_index(bytes(data), "p") != (WEIGHT_MAP, OURS):
                wrong.append((bit // 8, bytes(data[bit // 8 - 10 : bit // 8 + 10])))
        except (CorruptCheckpointError, UnsupportedCheckpointError):
            pass
    assert wrong == []


@pytest.mark.parametrize("shards", [[*SHARDS, "other"], list(SHARDS)[:1], []])
def test_parse_index_shards_that_are_not_those_of_the_map_are_refused(shards: list[str]) -> None:
    fields = {"format_version": 1, "shards": dict.fromkeys(shards, "00000001")}
    text = signed(fields, {"weight_map": WEIGHT_MAP, "total_size": 24})
    with pytest.raises(CorruptCheckpointError):
        parse_index(index(metadata={"torchsaver": text, "total_size": 24}), "p")


def test_parse_index_newer_format_version_is_unsupported() -> None:
    text = json.dumps({"format_version": FORMAT_VERSION + 1})
    with pytest.raises(UnsupportedCheckpointError, match="newer"):
        parse_index(index(metadata={"torchsaver": text}), "p")


@pytest.mark.parametrize(("limit", "value"), [("MAX_TEXT_BYTES", 300), ("MAX_JSON_BYTES", 3000)])
def test_format_index_refuses_what_parse_index_would(limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = format_index(WEIGHT_MAP, 24, OURS)
    monkeypatch.setattr(f"torchsaver.formats.json_text.{limit}", value)
    with pytest.raises(CorruptCheckpointError):
        parse_index(data, "p")
    with pytest.raises(ValueError, match="less metadata"):
        format_index(WEIGHT_MAP, 24, OURS)


def test_parse_index_shard_name_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(CorruptCheckpointError, match="by name"):
        parse_index(b'{"weight_map":{"a":"\\ud800"}}', "p")
