"""Files as an enemy would make them: valid ones, then damaged where it hurts, with the checksums right again."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from typing import Any

from faults.fuzz.choices import Choices, pick
from formats.builders import signed

from torchsaver.formats.checksum import crc32c

BITS = {"F32": 32, "U8": 8, "F64": 64, "BOOL": 8, "I64": 64, "BF16": 16, "C64": 64, "F4": 4, "F8_E4M3": 8, "F8_E8M0": 8}
KEYS = ("a", "b", "w/kernel", "", "\u00e9", "a\0b", "\U0001f600", "x" * 300, "../x", "format", "A", "__metadata__")
FILES = (
    "m-1.safetensors",
    "m-2.safetensors",
    "m-00001-of-00002.safetensors",
    "checkpoint",
    "../x",
    "/dev/zero",
    "a\\b",
)
NAMES = ("m-1", "m-2", "m", "../m-1", "/etc/passwd", "m*", "checkpoint", "\u00e9", "")
Pairs = list[tuple[str, Any]]


class Raw(str):
    """JSON text that stands in a document as it is."""


class Members(list[tuple[str, Any]]):
    """An object's members in order, of which two may have one key."""


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 4, 8, 1.0, 1.5, -0.0, 1e300, 2**31, 2**53, 2**62, 2**63, 2**64 - 1, 2**64),
    *("", "x", "../x", "\0", "\ud800", "\U0001f600", "F33", "F4", "C64", "00000000", "0x1", "+1", " 1_0"),
    *([], {}, [[]], [0], [0, 0], [1, 2], [-1], [4, 0], [True], [1.5], [1] * 70, [0, 2**62], [2**32, 2**32]),
    *({"a": 1}, {"a": "a"}, {"dict": {}}, {"tensor": "a"}, [None], {"": {}}),
    *map(Raw, ("NaN", "-Infinity", "1e999", "9" * 400, "9" * 5000, '"\\ud800"', "-0", "01", "[" * 300 + "]" * 300)),
    *map(Raw, ('{"a":1,"a":2}', '"\\u0000"', "", '"', "1e-400", '{"a":' * 400 + "1" + "}" * 400)),
)


def to_text(value: Any) -> str:
    """Return JSON text, in which Raw and Members have their say."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Members):
        return "{" + ",".join([f"{to_text(key)}:{to_text(item)}" for key, item in value]) + "}"
    if isinstance(value, dict):
        return to_text(Members(value.items()))
    if isinstance(value, list):
        return "[" + ",".join([to_text(item) for item in value]) + "]"
    if type(value) is int and abs(value) < 1 << 64:
        return str(value)
    return _QUOTED(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """Return a JSON string: as it is where UTF-8 holds it, and escaped for a lone surrogate."""
    surrogate = not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
    return json.dumps(text, ensure_ascii=surrogate)


_QUOTED = functools.lru_cache(maxsize=4096)(_quoted)  # a fuzzer writes the same few a million times


def to_bytes(value: Any, choices: Choices) -> bytes:
    """Return JSON text in UTF-8, sometimes with a few of its bytes changed."""
    return blemish(to_text(value).encode("utf-8", "surrogatepass"), choices)


def blemish(data: bytes, choices: Choices) -> bytes:
    """Return the data, one time in sixteen with up to three stretches replaced."""
    if choices.below(16) != 15:
        return data
    for _ in range(1 + choices.below(3)):
        start = choices.below(len(data) + 1)
        data = data[:start] + choices.data(8) + data[start + choices.below(9) :]
    return data


def damage(members: Members, choices: Choices) -> Members:
    """Return members with up to three of them changed, doubled, dropped, renamed or added."""
    members = Members(members)
    for _ in range(pick(choices, (0, 1, 1, 2, 3))):
        if not members:
            return members
        position = choices.below(len(members))
        key, value = members[position]
        kind = choices.below(10)  # half of them go deeper
        if kind == 0:
            members[position] = key, pick(choices, ODD)
        elif kind == 1:
            members.append((key, value))
        elif kind == 2:
            del members[position]
        elif kind == 3:
            members[position] = pick(choices, KEYS), value
        elif kind == 4:
            members.append((pick(choices, KEYS), pick(choices, ODD)))
        elif isinstance(value, dict):
            members[position] = key, damage(Members(value.items()), choices)
        elif isinstance(value, list) and value:
            at = choices.below(len(value))
            members[position] = key, [*value[:at], _other(value[at], choices), *value[at + 1 :]]
    return members


def _other(value: Any, choices: Choices) -> Any:
    """Return a value that takes this one's place: near it for a number, or odd."""
    if type(value) is int and choices.below(2):
        return value + pick(choices, (1, -1, 4, -4))
    return pick(choices, ODD)


def _entries(choices: Choices) -> tuple[dict[str, Any], bytes]:
    """Return the entries of up to four tensors and their data."""
    entries, data = {}, b""
    for number in range(choices.below(5)):
        dtype = pick(choices, list(BITS))
        shape = [choices.below(4) for _ in range(choices.below(4))]
        bits = BITS[dtype]
        for size in shape:
            bits *= size
        payload = choices.data(16).ljust(bits // 8, b"\1")[: bits // 8]
        key = pick(choices, KEYS[:-1]) + (str(number) if choices.below(2) else "")
        if key not in entries:
            entries[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(payload)]}
            data += payload
    return entries, data


def manifest_fields(choices: Choices, checksums: dict[str, str]) -> dict[str, Any]:
    """Return the fields of a manifest that fits, each of the optional ones or not."""
    keys = list(checksums) or ["a"]
    commit = {"sequence": 1 + choices.below(9), "place": "00000000", "state_file": "checkpoint", "replaces": None}
    optional = {
        "global_step": choices.below(9),
        "time": 1.5,
        "aliases": {"other": pick(choices, keys)},
        "complex128": [pick(choices, keys)],
        "objects": {"o": {"dict": {"w": {"tensor": pick(choices, keys)}}}},
        "metadata": pick(choices, ODD[:30]),
        "versions": {"torch": "2", "torchsaver": "0"},
        "shards": {"x": "00000000"},
        "commit": {**commit, "kept": [pick(choices, NAMES)], "expired": [pick(choices, NAMES)]},
    }
    chosen = {name: value for name, value in optional.items() if choices.below(3)}
    one_text = "".join(checksums[key] for key in sorted(checksums))
    return {"format_version": 1, "crc32c": pick(choices, [one_text, checksums]), **chosen}


def signed_text(fields: Members, content: Any) -> str:
    """Return a manifest's text with the checksum that its reader will find."""
    text = to_text(fields)
    try:
        return signed(json.loads(text), content)
    except (ValueError, RecursionError):  # not JSON, which its reader must find out as well
        return text


def manifest_document(choices: Choices) -> bytes:
    """Return a manifest's text for one tensor "a"; its content is MANIFEST_CONTENT."""
    fields = damage(Members(manifest_fields(choices, {"a": "00000000"}).items()), choices)
    return blemish(signed_text(fields, MANIFEST_CONTENT).encode("utf-8", "surrogatepass"), choices)


MANIFEST_CONTENT = {"a": ["F32", [1]]}


def safetensors_document(choices: Choices) -> bytes:
    """Return a safetensors file: of ours or not, valid or damaged, its length and checksums mostly right."""
    entries, data = _entries(choices)
    header = damage(Members(entries.items()), choices)
    strings = {"format": "pt"} if choices.below(2) else {"a": "b", "other": "a"}
    if choices.below(2):
        offsets = {key: entry["data_offsets"] for key, entry in entries.items()}
        checksums = {key: f"{crc32c(data[start:end]):08x}" for key, (start, end) in offsets.items()}
        fields = damage(Members(manifest_fields(choices, checksums).items()), choices)
        strings["torchsaver" if choices.below(8) != 7 else "Torchsaver"] = signed_text(fields, _described(header))
    if strings:
        header.insert(0, ("__metadata__", damage(Members(strings.items()), choices)))
    text = to_bytes(header, choices)
    text += b" " * (-len(text) % 8)
    length = (len(text), len(text) + 1, len(text) - 1, len(text) + len(data), 0, 2**63, 2**64 - 1)
    stated = pick(choices, (*length[:1] * 60, *length[1:]))
    return max(stated, 0).to_bytes(8, "little") + text + data + (choices.data(3) if choices.below(16) == 15 else b"")


def _described(header: Members) -> Any:
    """Return what the header checksum covers of the tensors, as the reader will see them."""
    described = {}
    for key, entry in header:
        members = dict(entry) if isinstance(entry, (dict, Members)) else {}
        described[key] = [members.get("dtype"), members.get("shape")]
    try:
        return json.loads(to_text(described))
    except (ValueError, RecursionError):
        return None


def index_document(choices: Choices) -> bytes:
    """Return a shard index: of ours or not, valid or damaged, its checksum mostly right."""
    weight_map = {key: pick(choices, FILES) for key in KEYS[: choices.below(4)]}
    members = damage(Members(weight_map.items()), choices)
    total = pick(choices, (8, 0, *ODD))
    metadata = Members([("total_size", total)])
    if choices.below(4):
        shards = dict.fromkeys(weight_map.values(), "00000001")
        fields = damage(Members({**manifest_fields(choices, {}), "shards": shards}.items()), choices)
        metadata.append(("torchsaver", signed_text(fields, _loaded({"weight_map": members, "total_size": total}))))
    index = Members([("metadata", damage(metadata, choices)), ("weight_map", members)])
    return to_bytes(damage(index, choices), choices)


def _loaded(value: Any) -> Any:
    try:
        return json.loads(to_text(value))
    except (ValueError, RecursionError):
        return None


_STATE_FIELDS = (
    "model_checkpoint_path",
    "all_model_checkpoint_paths",
    "all_model_checkpoint_timestamps",
    "last_preserved_timestamp",
    "evil",
)
_SPACES = (" ", "", "\n", "\t", "# x\n", "\r\n", "\f", "\v", "\u00a0", "\0", "\ufeff")
_NUMBERS = (
    "1.5",
    "0",
    "nan",
    "-inf",
    "1e999",
    "1e-999",
    "-",
    "1f",
    "0x1",
    "010",
    "1_0",
    "\u0663",
    "9" * 400,
    "infinity",
)
_ESCAPES = ("\\n", "\\\\", "\\'", '\\"', "\\101", "\\777", "\\x41", "\\u00e9", "\\ud800", "\\U0010ffff", "\\U00110000")
_PIECES = (*_ESCAPES, "\\q", "\\", "\\xe9", "\\303\\251", "/", "..", "*", "\u00e9", "\0", "'", '"', "\n", "x" * 300)


def state_document(choices: Choices) -> bytes:
    """Return a state file by the grammar, in the odd ways it allows and those it does not."""
    fields = "".join(_state_field(choices) for _ in range(choices.below(6)))
    text = f'model_checkpoint_path: "{pick(choices, NAMES)}"\n' + fields
    return blemish(text.encode("utf-8"), choices)


def _state_field(choices: Choices) -> str:
    space = [pick(choices, _SPACES) if choices.below(3) == 2 else " " for _ in range(4)]
    name = pick(choices, _STATE_FIELDS)
    value: Callable[[Choices], str] = _number if choices.below(8) == 7 else _string
    if "time" in name:
        value = _string if choices.below(8) == 7 else _number
    text = value(choices)
    if choices.below(4) == 3:
        text = "[" + pick(choices, (",", ", ", " ")).join(value(choices) for _ in range(choices.below(4))) + "]"
    mark = pick(choices, (":", ":", ":", "", " {", " <"))
    return f"{name}{space[0]}{mark}{space[1]}{text}{space[2]}{pick(choices, ('', ';', ',', '}', ';;'))}{space[3]}\n"


def _number(choices: Choices) -> str:
    return pick(choices, _NUMBERS)


def _string(choices: Choices) -> str:
    literals = []
    for _ in range(1 + choices.below(3) // 2):
        quote = pick(choices, ('"', '"', "'"))
        pieces = "".join(pick(choices, _PIECES) for _ in range(choices.below(4)))
        literals.append(quote + pick(choices, NAMES) + pieces + quote)
    return " ".join(literals)


DIRECTORY_FILES = (
    "m-1.safetensors",
    "m-2.safetensors",
    "m-3.safetensors.index.json",
    "m-3-00001-of-00001.safetensors",
    "m-4",
    "checkpoint",
)


def directory_document(choices: Choices) -> bytes:
    """Return a checkpoint directory as JSON: {name: base64 of the file}."""
    files: dict[str, bytes] = {}
    for name in DIRECTORY_FILES:
        make = state_document if name == "checkpoint" else index_document if "index" in name else safetensors_document
        if choices.below(3) != 2:
            files[name] = make(choices)
    return json.dumps({name: base64.b64encode(data).decode() for name, data in files.items()}).encode()
