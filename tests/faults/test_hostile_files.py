"""Files an enemy made: each is refused by a documented error, or gives the right values, in little memory and time.

Every claim opens a file through the public API in a process of its own, which is measured; nothing outside of the
checkpoint's directory is opened on the way.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from faults.fuzz.bounded import Bounded
from formats.builders import header_file, signed

from torchsaver.formats.checksum import crc32c

MOST_MB = 200  # over the interpreter with torch
MOST_CPU_SECS = 5
MACHINE_FACTOR = 3  # a busy machine counts waiting for memory and its other thread as ours

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")


@pytest.fixture(scope="module")
def bounded() -> Iterator[Bounded]:
    with Bounded() as process:
        yield process


Content: TypeAlias = "bytes | Callable[[], bytes]"  # what is large is made when it is needed


@dataclass
class Case:
    """A directory's files, and the values wanted; None: a documented error."""

    name: str
    files: Mapping[str, Content]
    wanted: Any = None
    links: dict[str, str] = field(default_factory=dict)


A = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
ONE = b"\0\0\x80?"
VALUES = {"a": [[1], [1.0]]}
VALID = header_file({"a": A}, ONE)


def entry(**changed: Any) -> dict[str, Any]:
    return {"a": {**A, **changed}}


def single(name: str, file: Content, wanted: Any = None) -> Case:
    return Case(name, {"m.safetensors": file}, wanted)


def _joined(member: bytes, count: int) -> bytes:
    """Return the members and the end of an object, each with its number in it."""
    return b",".join(member % number for number in range(count)) + b"}"


def _headers() -> Iterator[Case]:
    text = json.dumps({"a": A}).encode()
    for length in (0, 1, len(text) - 1, len(text) + 1, 10**6, 40_000_001, 100_000_001, 2**63, 2**64 - 1):
        yield single(f"header length {length}", header_file(text, ONE, length))
    texts = {
        "not UTF-8": text.replace(b'"a"', b'"\xff\xfe"'),
        "overlong UTF-8": text.replace(b'"a"', b'"\xc0\xaf"'),
        "BOM": b"\xef\xbb\xbf" + text,
        "UTF-16": text.decode().encode("utf-16"),
        "lone surrogate in a key": text.replace(b'"a"', b'"\\ud800"'),
        "lone surrogate in metadata": b'{"__metadata__":{"x":"\\ud800"},' + text[1:],
        "NUL after the object": text + b"\0" * 8,
        "two objects": text + text,
        "a key twice": b'{"a":' + json.dumps(A).encode() + b"," + text[1:],
        "a field of a tensor twice": text.replace(b'"dtype"', b'"shape":[1],"dtype"'),
        "metadata twice": b'{"__metadata__":{"x":"y"},"__metadata__":{"x":"y"},' + text[1:],
        "a metadata key twice": b'{"__metadata__":{"x":"y","x":"z"},' + text[1:],
        **{number: text.replace(b"[1]", b"[" + number.encode() + b"]") for number in ("NaN", "Infinity", "1e999")},
        "10^5000": text.replace(b"[1]", b"[1" + b"0" * 5000 + b"]"),
        "10^4000": text.replace(b"[1]", b"[1" + b"0" * 4000 + b"]"),
        "lists nested 100 000 deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "a list": b"[]",
        "a number": b"1",
        "null": b"null",
    }
    for name, damaged in texts.items():
        yield single(f"header: {name}", header_file(damaged, ONE))
    large: dict[str, Callable[[], bytes]] = {
        "objects nested a million deep": lambda: b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000,
        "40 MB of empty lists": lambda: b'{"a":[' + b"[]," * 13_000_000 + b"[]]}",
        "40 MB of empty objects": lambda: b'{"a":{' + b'"a":{},' * 5_700_000 + b'"b":1}}',
        "40 MB of ones": lambda: b'{"a":{"dtype":"F32","shape":[' + b"1," * 19_900_000 + b'1],"data_offsets":[0,4]}}',
        "40 MB of spaces and no object": lambda: b" " * 40_000_000,
        "100 MB of metadata": lambda: b'{"__metadata__":{"a":"' + b"x" * 99_999_000 + b'"}}',
        "40 MB of metadata strings": lambda: b'{"__metadata__":{' + b'"":"",' * 6_600_000 + b'"a":""}}',
        "150 000 empty tensors": lambda: (
            b"{" + _joined(b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}', 150_000)
        ),
        "119 000 wrong tensors, each of a shape of its own": lambda: (
            b"{"
            + b",".join(
                b'"%x":{"dtype":"U8","shape":[%d%b],"data_offsets":[0,1]}' % (number, 300 + number, b",257" * 63)
                for number in range(119_000)
            )
            + b"}"
        ),
    }
    for name, make in large.items():
        yield single(f"header: {name}", lambda make=make: header_file(make(), ONE))  # type: ignore[misc]
    yield single("NUL in a key is a key", header_file(text.replace(b'"a"', b'"a\\u0000"'), ONE), {"a\0": VALUES["a"]})
    yield single("a key of a megabyte", header_file({"k" * 10**6: A}, ONE), {"k" * 10**6: VALUES["a"]})


def _entries() -> Iterator[Case]:
    odd: tuple[Any, ...] = (None, [], "x", 5, True, {})
    for value in odd:
        yield single(f"entry {value}", header_file({"a": value}, ONE))
    for name in A:
        yield single(f"{name} missing", header_file({"a": {k: v for k, v in A.items() if k != name}}, ONE))
    yield single("a field too many", header_file(entry(evil=1), ONE))
    for offsets in (
        *([4, 0], [-4, 0], [0, 5], [1, 5], [0, 2**64], [2**63, 2**63 + 4], [2**64 - 4, 2**64], [0, 4, 8], [0], []),
        *([0.0, 4.0], [False, 4], ["0", "4"], None, 4, [0, 10**300]),
    ):
        yield single(f"offsets {str(offsets)[:40]}", header_file(entry(data_offsets=offsets), ONE))
    for shape in (
        *([2**62, 4], [2**32, 2**32], [2**64], [-1], [-1, -1], [0, 2**63], [0, 2**62, 2**62], [1.0], [1e300], ["1"]),
        *([True], [[1]], None, 1, [1] * 65, [1] * 1000, [1] * 100_000, [2], [0]),
    ):
        yield single(f"shape {str(shape)[:30]} of {len(str(shape))}", header_file(entry(shape=shape), ONE))
    yield single("shape [0, 2^62] without data", header_file(entry(shape=[0, 2**62], data_offsets=[0, 0])), None)
    for dtype in ("F33", "", "f32", "F4", "F64", "BOOL", "\0", None, 5, ["F32"]):
        yield single(f"dtype {dtype!r}", header_file(entry(dtype=dtype), ONE))
    both = {"a": A, "b": {**A, "data_offsets": [0, 4]}}
    yield single("two tensors on the same bytes", header_file(both, ONE))
    yield single("overlapping tensors", header_file({"a": A, "b": {**A, "data_offsets": [2, 6]}}, ONE + b"\0\0"))
    yield single("a gap between tensors", header_file({"a": A, "b": {**A, "data_offsets": [8, 12]}}, ONE * 3))
    yield single("trailing bytes", VALID + b"x")
    many = {f"{i:x}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(50_000)}
    first = {key: [[0], []] for key in sorted(many)[:100]}
    yield single("50 000 empty tensors are read", header_file(many), first)


WRONG_FIELDS: dict[str, tuple[Any, ...]] = {
    "format_version": (None, 0, 2, True, 1.0, "1", 10**400),
    "crc32c": (
        *(None, [], 1, "", "x", "0" * 7, "0" * 8, "0" * 16),
        *({}, {"a": 1}, {"a": "x"}, {"b": "00000000"}, {"a": "00000000"}),
    ),
    "global_step": ("1", 1.0, True, [], {}),
    "time": ("1", True, 1e300, 10**400),
    "aliases": ([], "x", {"b": 1}, {"b": None}),
    "complex128": ("a", {}, [1], ["a"]),
    "objects": ([], "x", 5),
    "shards": ([], {"x": 1}),
    "commit": ([], {}, "x", {"sequence": 1}),
}


def _manifests() -> Iterator[Case]:
    content = {"a": ["F32", [1]]}

    def ours(name: str, manifest: str | Callable[[], str], wanted: Any = None) -> Case:
        def make() -> bytes:
            text = manifest if isinstance(manifest, str) else manifest()
            return header_file({"__metadata__": {"torchsaver": text}, "a": A}, ONE)

        return single(f"manifest: {name}", make, wanted)

    right = {"format_version": 1, "crc32c": f"{crc32c(ONE):08x}"}
    yield ours("that is right", signed(right, content), VALUES)
    yield ours("as it was at first", signed({**right, "crc32c": {"a": right["crc32c"]}}, content), VALUES)
    named = {"__metadata__": {"torchsaver": signed({**right, "shards": {"x": "00000000"}}, content)}, "a": A}
    yield single("manifest: shards named in a data file", header_file(named, ONE), VALUES)
    yield single("manifest: shards named in a data file that is damaged", header_file(named, b"\1" + ONE[1:]))
    yield ours("unsigned", json.dumps(right))
    for field_name, wrong in WRONG_FIELDS.items():
        for value in wrong:
            yield ours(f"{field_name} {value!r}"[:60], signed({**right, field_name: value}, content))
    for name in ("format_version", "crc32c"):
        yield ours(f"{name} missing", signed({k: v for k, v in right.items() if k != name}, content))
    yield ours("not JSON", "x")
    yield ours("a list", "[]")
    yield ours("nested 100 000 deep", "[" * 100_000)
    yield ours("objects nested 300 deep", '{"a":' * 5000 + "1" + "}" * 5000)
    yield ours("10 MB of empty lists", lambda: '{"metadata":[' + "[]," * 3_300_000 + "[]]}")
    yield ours(
        "nested lists as many as are allowed", lambda: '{"metadata":[' + ("[" * 150 + "]" * 150 + ",") * 8000 + "1]}"
    )
    yield single("manifest: 2 million lists in escapes", _lists_in_escapes)
    yield ours("text that one emoji makes 40 MB", lambda: signed({**right, "metadata": _wide()}, content), VALUES)
    yield ours("as many members as are allowed", lambda: signed({**right, "metadata": _many()}, content), VALUES)
    renamed = {"__metadata__": {"Torchsaver": signed(right, content).replace(": ", ":")}, "a": A}
    yield single("manifest under another name", header_file(renamed, ONE))


def _wide() -> str:
    return "x" * 9_900_000 + "\U0001f600"


def _many() -> dict[str, Any]:
    return {f"{number:x}": {} for number in range(250_000)}


def _lists_in_escapes() -> bytes:
    """Return a file whose manifest has its lists as escapes, which nobody can count in the header."""
    lists = '{\\"metadata\\":[' + r"\u005b]," * 2_000_000 + "1]}"
    return header_file(json.dumps({"__metadata__": {"torchsaver": "@"}, "a": A}).replace("@", lists), ONE)


def _index(files: Mapping[str, Content], **members: Any) -> Mapping[str, Content]:
    index = {"metadata": {"total_size": 4}, "weight_map": {"a": "m-00001-of-00001.safetensors"}, **members}
    return {"m-00001-of-00001.safetensors": VALID, "m.safetensors.index.json": json.dumps(index).encode(), **files}


def _indexes() -> Iterator[Case]:
    shard = "m-00001-of-00001.safetensors"
    yield Case("index that is right", _index({}), VALUES)
    for name in (
        "/etc/passwd",
        "../outside.safetensors",
        "./x",
        "x/y",
        "",
        ".",
        "..",
        "C:x",
        "a\0b",
        "\ud800",
        5,
        None,
    ):
        yield Case(f"shard {name!r}", _index({}, weight_map={"a": name}))
    yield Case("shard that is missing", _index({}, weight_map={"a": "m-00002-of-00002.safetensors"}))
    yield Case("shard that is a FIFO", _index({"fifo": b"FIFO"}, weight_map={"a": "fifo"}))
    yield Case("shard that is a device", _index({}, weight_map={"a": "device"}), links={"device": "/dev/zero"})
    yield Case("shard that is a directory", _index({}, weight_map={"a": "folder"}), links={"folder": "."})
    yield Case("shard that is a loop of links", _index({}, weight_map={"a": "loop"}), links={"loop": "loop"})
    yield Case("shard that is the index", _index({}, weight_map={"a": "m.safetensors.index.json"}))
    yield Case("shard without the key", _index({}, weight_map={"b": shard}))
    two = {"a": shard, "b": shard}
    yield Case("two keys for one tensor's bytes", _index({}, weight_map=two))
    other = signed({"format_version": 1, "shards": {shard: "00000001"}}, {"weight_map": {"a": shard}, "total_size": 4})
    yield Case("shard of another save", _index({}, metadata={"total_size": 4, "torchsaver": other}))
    maps: tuple[Any, ...] = (None, [], "x", {"a": None}, {"a": [shard]})
    for value in maps:
        yield Case(f"weight_map {value!r}", _index({}, weight_map=value))
    metadata: tuple[Any, ...] = ([], "x", 5, {"torchsaver": 5}, {"torchsaver": None})
    for value in metadata:
        yield Case(f"index metadata {value!r}", _index({}, metadata=value))
    raw: dict[str, Content] = {
        "900 000 keys": lambda: b'{"weight_map":{' + _joined(b'"%x":"m-00001-of-00001.safetensors"', 900_000) + b"}",
        "40 MB of empty lists": lambda: b'{"weight_map":[' + b"[]," * 13_000_000 + b"[]]}",
        "60 MB": lambda: b'{"weight_map":{"a":"' + b"x" * 60_000_000 + b'"}}',
        "nested 100 000 deep": b'{"weight_map":' + b"[" * 100_000,
        "a key twice": json.dumps({"weight_map": {"a": shard}}).encode().replace(b'"a"', b'"a":"x","a"'),
        "weight_map twice": b'{"weight_map":{},"weight_map":{}}',
        "UTF-16": json.dumps({"weight_map": {"a": shard}}).encode("utf-16"),
        "BOM": b"\xef\xbb\xbf{}",
        "nothing": b"",
        "NULs": bytes(100),
    }
    for name, data in raw.items():
        yield Case(f"index: {name}", _index({"m.safetensors.index.json": data}))


FILE_CASES = [*_headers(), *_entries(), *_manifests(), *_indexes()]


LEADING_OUT = ("../m", ".././m2", "\\056\\056/m2", "\\x2e\\x2e/m2", "\\u002e\\u002e/m2", "/dev/zero", "/etc/passwd")


def _state_cases() -> Iterator[Case]:
    """State files; `wanted` is how many checkpoints are kept and whether there is a newest, None: a documented error."""
    newest = 'model_checkpoint_path: "m"\n'
    entries = 'all_model_checkpoint_paths: "m"\n'

    def state(name: str, text: str | Content, wanted: Any = None) -> Case:
        data = text.encode() if isinstance(text, str) else text
        return Case(name, {"checkpoint": data, "m.safetensors": VALID}, wanted)

    nothing = [0, False]  # as in TF, what does not parse counts as none
    yield state("that is right", newest + entries, [1, True])
    yield state("CRLF", (newest + entries).replace("\n", "\r\n"), [1, True])
    yield state("BOM", b"\xef\xbb\xbf" + newest.encode(), nothing)
    yield state("UTF-16", newest.encode("utf-16"))
    yield state("binary", bytes(range(256)) * 4)
    yield state("NULs", bytes(100), nothing)
    yield state("nothing", b"")
    yield state("an empty path", 'model_checkpoint_path: ""')
    for path in ("/none/m", "x/../m2", "*", "?", "[m]", "m*", "\\000", "m\\n", "checkpoint2", "~", "%s%n"):
        yield state(f"path {path}", f'model_checkpoint_path: "{path}"', [0, False])
    for path in ("http://127.0.0.1:9/m", "simplecache::file:///etc/passwd", "s3://bucket/m"):
        yield state(f"path {path}", f'model_checkpoint_path: "{path}"', [0, False])
    for path in LEADING_OUT:  # TF's files may name any place; only recovery keeps to the directory
        yield state(f"path {path}", f'model_checkpoint_path: "{path}"', [0, True])
    for path in ("\\q", "\\", "\\777", "\\ud800", "\\U00110000", "\\xff", "a\nb"):
        yield state(f"bad escape {path!r}", f'model_checkpoint_path: "{path}"', nothing)
    for step in ("9" * 400, "-5", "\u0663"):
        yield state(f"step {step[:9]}", f'model_checkpoint_path: "m-{step}"', None if len(step) > 300 else [0, False])
    yield state("a path of a megabyte", f'model_checkpoint_path: "{"a" * 10**6}"')
    yield state("200 000 entries", newest + entries * 200_000, [200_000, True])
    yield state("braces 100 000 deep", newest + "evil " + "{ a " * 100_000, nothing)
    yield state("groups 50 000 deep", newest + "a<" * 50_000, nothing)
    yield state("an unknown field", newest + 'evil: "x"', nothing)
    yield state("the newest twice", newest * 2, [0, True])
    for time in ("nan", "inf", "1e999", "-inf"):
        times = f"all_model_checkpoint_timestamps: {time}\nlast_preserved_timestamp: {time}\n"
        yield state(f"timestamps {time}", newest + times, [0, True])
    yield state("timestamps of text", newest + 'last_preserved_timestamp: "x"', nothing)
    start = b'model_checkpoint_path: "'
    large: dict[str, tuple[Callable[[], bytes], Any]] = {
        "a line of 20 MB": (lambda: start + b"a" * 20_000_000 + b'"', None),
        "16 MB of numbers": (lambda: b"all_model_checkpoint_timestamps: [" + b"1," * 8_000_000 + b"1]", nothing),
        "16 MB of backslashes": (lambda: start + b"\\" * 16_000_000, nothing),
        "16 MB of comments": (lambda: newest.encode() + b"#\n" * 8_000_000, nothing),
        "16 MB of text that one emoji makes 64": (
            lambda: start + b"a" * 16_000_000 + "\U0001f600".encode() + b'"',
            nothing,
        ),
    }
    for name, (make, wanted) in large.items():
        yield state(name, make, wanted)
    yield Case("a FIFO", {"checkpoint": b"FIFO"})
    yield Case("a device", {}, links={"checkpoint": "/dev/zero"})
    yield Case("a loop of links", {}, links={"checkpoint": "checkpoint"})
    yield Case("a directory", {}, nothing, links={"checkpoint": "."})


STATE_CASES = list(_state_cases())


def _build(case: Case, directory: Path) -> dict[str, Any]:
    """Make the directory with something worth reading beside it, and return what is there."""
    directory.mkdir()
    (directory.parent / "m.safetensors").write_bytes(VALID)
    (directory.parent / "m2.safetensors").write_bytes(VALID)
    (directory.parent / "outside.safetensors").write_bytes(VALID)
    for name, data in case.files.items():
        if data == b"FIFO":
            os.mkfifo(directory / name)
        else:
            (directory / name).write_bytes(data if isinstance(data, bytes) else data())
    for name, target in case.links.items():
        (directory / name).symlink_to(target)
    return _there(directory.parent)


def _there(root: Path) -> dict[str, Any]:
    paths = [path for path in sorted(root.rglob("*")) if not path.is_dir()]
    return {str(path): (path.lstat().st_ino, path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


def _check_bounds(result: dict[str, Any]) -> None:
    assert not result["outcome"].startswith(("LEAKED", "DIED")), result["outcome"]
    assert result["peak_mb"] < MOST_MB, result
    assert result["cpu_secs"] < MOST_CPU_SECS * MACHINE_FACTOR, result


@pytest.mark.parametrize("case", FILE_CASES, ids=lambda case: case.name)
def test_hostile_checkpoint_gives_a_documented_error_or_its_values(
    case: Case, bounded: Bounded, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    before = _build(case, directory)
    result = bounded.open("file", directory)
    _check_bounds(result)
    assert _there(tmp_path) == before
    assert [path for path in result["outside"] if not path.startswith("/dev/")] == []
    if case.wanted is None:
        assert result["outcome"].startswith("refused"), result
    else:
        assert (result["outcome"], result["values"]) == ("taken", case.wanted)


@pytest.mark.parametrize("case", STATE_CASES, ids=lambda case: case.name)
def test_hostile_state_file_gives_a_documented_error_or_what_it_says(
    case: Case, bounded: Bounded, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    before = _build(case, directory)
    result = bounded.open("state", directory)
    _check_bounds(result)
    assert _there(tmp_path) == before
    assert result["outside"] == []
    if case.wanted is None:
        assert result["outcome"].startswith("refused"), result
    else:
        assert result["outcome"] == "taken", result
        assert [result["values"]["kept"], result["values"]["newest"] is not None] == case.wanted


@pytest.mark.parametrize("path", LEADING_OUT)
def test_recovery_from_a_state_file_that_leads_out_of_the_directory_opens_nothing_there(
    path: str, bounded: Bounded, tmp_path: Path
) -> None:
    state = f'model_checkpoint_path: "{path}"\nall_model_checkpoint_paths: "{path}"\n'
    case = Case(path, {"checkpoint": state.encode()})
    before = _build(case, tmp_path / "run")
    result = bounded.open("recover", tmp_path / "run")
    _check_bounds(result)
    assert _there(tmp_path) == before
    assert result["outside"] == []
    assert result["outcome"].startswith("refused") or result["values"] == {"newest": None}
