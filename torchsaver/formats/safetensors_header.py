"""The safetensors header: bytes to specs and back. Pure: it opens nothing and allocates nothing it was told to.

    file   := length header data          length: 8 bytes, little-endian; header: that many bytes of JSON
    header := {"__metadata__": {str: str}?, KEY: {"dtype": D, "shape": [..], "data_offsets": [start, end)}, ...}

Offsets count from the end of the header. Tensors cover the data without holes or overlaps. Every rule is checked before
a size from the file is used, because the header is not to be trusted. Source: formats/README.md, "safetensors".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, NoReturn

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.file_layout import DTYPE_BITS, MAX_RANK, FileLayout, TensorSpec, bytes_of
from torchsaver.formats.json_text import (
    MAX_TEXT_BYTES,
    JsonCursor,
    canonical_json,
    decode_json,
    is_unicode,
    quoted,
    why_too_long,
)

LENGTH_BYTES = 8
MAX_HEADER_BYTES = MAX_TEXT_BYTES  # safetensors' own reader takes 100 MB, and a gigabyte of memory for them
MAX_MEMBERS = 120_000  # tensors and metadata strings: with all that a manifest says of them, 200 MB and 5 s
_MAX_ENTRY_CHARACTERS = 16_384  # 64 sizes of 20 digits, each on a line of its own, take a fifth
METADATA_KEY = "__metadata__"
_SIZE = "(?:0|[1-9][0-9]{0,18})"
_SHAPE = rf"(?:{_SIZE}(?:,{_SIZE}){{0,{MAX_RANK - 1}}})?"
# An entry with its comma as our writer, safetensors' own and most others write it: many times faster than JSON.
_USUAL_ENTRY = re.compile(
    r'("([^"\\\x00-\x1f]*)":\{"dtype":"([A-Z0-9_]+)",'
    rf'"shape":\[({_SHAPE})\],"data_offsets":\[({_SIZE}),({_SIZE})\]\}}(?:,(?=")|(?=\}})))'
)
_FOREIGN = {
    b"PK\x03\x04": "a zip archive, as torch.save writes",
    b"model_ch": "a state file: pass its directory",
    b"version ": "a pointer of git-lfs in the place of the file, which `git lfs pull` fetches",
}
DATA_ALIGNMENT = 64  # a cache line: the format asks for 8 only


def format_header(layout: FileLayout, metadata: Mapping[str, str]) -> bytes:
    """Return length and header, padded with spaces so that the data starts at a multiple of DATA_ALIGNMENT."""
    parts = [f"{quoted(METADATA_KEY)}:{canonical_json(dict(metadata))}"] if metadata else []
    text = f"{{{','.join([*parts, layout.members] if layout.specs else parts)}}}".encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % DATA_ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def why_not_readable(head: bytes, members: int) -> str | None:
    """Return why `parse_header` would refuse a header of ours; its members are tensors, metadata, and its strings."""
    if len(head) > MAX_HEADER_BYTES:
        return f"it takes {len(head)} bytes, and {MAX_HEADER_BYTES} are the limit"
    if members > MAX_MEMBERS:
        return f"it has {members} tensors and strings, and {MAX_MEMBERS} are the limit"
    return why_too_long(head[LENGTH_BYTES:])


def parse_length(data: bytes | bytearray, file_bytes: int, path: str) -> int:
    """Return the header's length in bytes, checked against the file's size.

    Raises:
        CorruptCheckpointError: The file is too short, or the length is beyond the file or the format's limit.
    """
    if len(data) < LENGTH_BYTES:
        raise CorruptCheckpointError(path, len(data), f"{file_bytes} bytes are too few for a safetensors file")
    for magic, what in _FOREIGN.items():
        if data.startswith(magic):
            raise CorruptCheckpointError(path, 0, f"it is {what}, no safetensors file")
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise CorruptCheckpointError(
            path, 0, f"header length {length} is over {MAX_HEADER_BYTES}; not a safetensors file?"
        )
    if length > file_bytes - LENGTH_BYTES:
        raise CorruptCheckpointError(path, 0, f"header length {length}, but the file ends after {file_bytes} bytes")
    return length


def parse_header(
    data: bytes | bytearray, data_bytes: int, path: str, known: Iterable[FileLayout] = ()
) -> tuple[FileLayout, dict[str, str]]:
    """Return the layout, its specs in the order of the file, and the `__metadata__` strings.

    Args:
        data: The header's bytes, without the length.
        data_bytes: How many bytes follow the header in the file.
        path: Named in errors.
        known: Layouts the file may have again; then that very one is returned, and nothing of it is parsed anew.

    Raises:
        CorruptCheckpointError: Not the JSON of the format, or offsets that do not fit shapes, dtypes or the file.
        UnsupportedCheckpointError: A dtype this version does not know.
    """
    text = decode_json(data, path, LENGTH_BYTES)
    cursor = JsonCursor(text, MAX_MEMBERS)
    try:
        metadata = _leading_metadata(cursor, path)
        position = cursor.position
        for layout in known:
            end = position + len(layout.members)
            is_this = layout.nbytes == data_bytes and text.startswith(layout.members, position)
            if is_this and _ends_well(text, position, end, layout.specs):
                return layout, metadata
        specs = _usual_specs(text, position, MAX_MEMBERS - len(metadata) - 1, path)
        if specs is None:
            specs, metadata = _parse_members(JsonCursor(text, MAX_MEMBERS), path)
    except CorruptCheckpointError:  # a ValueError, and says already what is wrong
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(path, LENGTH_BYTES, f"header: not JSON of the format: {error}") from error
    position = 0
    for spec in specs:
        if spec.start != position:
            _fail(path, f"{spec.key!r} starts at {spec.start} of the data, and the one before it ends at {position}")
        position = spec.end
    if position != data_bytes:
        _fail(path, f"the tensors take {position} bytes, and {data_bytes} follow the header")
    return FileLayout(specs), metadata


def _leading_metadata(cursor: JsonCursor, path: str) -> dict[str, str]:
    """Return the metadata where it comes first, as it usually does, and leave the cursor before the first tensor."""
    if not cursor.skip(f'{{"{METADATA_KEY}":'):
        cursor.skip("{")
        return {}
    metadata = cursor.read_strings()
    _require_unicode(metadata, path)
    cursor.skip(",")
    return metadata


def _require_unicode(metadata: Mapping[str, str], path: str) -> None:
    if not all(map(is_unicode, (*metadata, *metadata.values()))):
        _fail(path, "a text holds a lone surrogate")


def _usual_specs(text: str, position: int, most: int, path: str) -> list[TensorSpec] | None:
    """Return the specs by where they start, or None when the text is not, to the letter, what writers usually write."""
    specs: dict[str, TensorSpec] = {}
    shapes: dict[str, tuple[int, ...]] = {}  # tens of thousands of tensors have a few
    first = position
    for entry, key, dtype, shape, start_text, end_text in map(re.Match.groups, _USUAL_ENTRY.finditer(text, position)):
        is_next = text.startswith(entry, position)
        if not is_next or key in specs or key == METADATA_KEY or len(specs) == most:
            return None
        position += len(entry)
        if (sizes := shapes.get(shape)) is None:
            sizes = shapes[shape] = tuple(map(int, shape.split(","))) if shape else ()
        start, end = int(start_text), int(end_text)
        spec = specs[key] = TensorSpec(key, dtype, sizes, start, end)
        # One that takes just its bytes, and some, is within all limits: there are tens of thousands.
        if start == end or 8 * (end - start) != math.prod(sizes, start=DTYPE_BITS.get(dtype, 0)):
            _checked(spec, path)
    return _by_start(specs) if _ends_well(text, first, position, specs) else None


def _ends_well(text: str, start: int, end: int, specs: Mapping[str, TensorSpec]) -> bool:
    """Return whether the entries of a header, from `start` to `end`, have a comma before them and nothing after."""
    is_first = start == len("{")
    has_comma = start > len("{") and text[start - 1] == ","
    return text[end:].rstrip(" ") == "}" and (is_first or (start > 0 and has_comma == bool(specs)))


def _parse_members(cursor: JsonCursor, path: str) -> tuple[list[TensorSpec], dict[str, str]]:
    """Return the specs by where they start, and the metadata.

    One entry at a time is parsed and checked, so that what is wrong is refused before the rest takes any memory.
    """
    specs: dict[str, TensorSpec] = {}
    metadata: dict[str, str] | None = None
    for key in cursor.members():
        if key in specs or (key == METADATA_KEY and metadata is not None):
            _fail(path, f"key {key!r} stands twice")
        if key == METADATA_KEY:
            metadata = cursor.read_strings()
        else:
            specs[key] = _parse_spec(key, cursor.read_flat_object(_MAX_ENTRY_CHARACTERS), path)
    cursor.end()
    if not all(map(is_unicode, specs)):
        _fail(path, "a key holds a lone surrogate")
    _require_unicode(metadata or {}, path)
    return _by_start(specs), metadata or {}


def _by_start(specs: Mapping[str, TensorSpec]) -> list[TensorSpec]:
    return sorted(specs.values(), key=attrgetter("start", "end"))


def _parse_spec(key: str, entry: Any, path: str) -> TensorSpec:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _fail(path, f"{key!r} is not an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not is_sizes(shape) or not is_sizes(offsets) or len(offsets) != 2:
        _fail(path, f"{key!r} has a dtype, shape or data_offsets of the wrong type, or a negative size")
    return _checked(TensorSpec(key, dtype, tuple(shape), *offsets), path)


def _checked(spec: TensorSpec, path: str) -> TensorSpec:
    """Return the spec if its dtype, shape and offsets go together."""
    key, dtype, shape, start, end = spec
    if dtype not in DTYPE_BITS:
        raise UnsupportedCheckpointError(path, f"{key!r} has the dtype {dtype!r}; a newer torchsaver may know it")
    if len(shape) > MAX_RANK:
        raise UnsupportedCheckpointError(path, f"{key!r} has {len(shape)} dimensions; tensors have {MAX_RANK} at most")
    wanted = bytes_of(dtype, shape)
    if wanted is None or end - start != wanted:
        _fail(path, f"{key!r} has {end - start} bytes, which {dtype} {list(shape)} does not take")
    return spec


def is_sizes(value: Any) -> bool:
    """Return whether `value` is a list of integers that are not negative (bool is not an integer here)."""
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _fail(path: str, reason: str) -> NoReturn:
    raise CorruptCheckpointError(path, LENGTH_BYTES, f"header: {reason}")
