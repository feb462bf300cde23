"""The safetensors header: bytes to specs and back. Pure: it opens nothing and allocates nothing it was told to.

    file   := length header data          length: 8 bytes, little-endian; header: that many bytes of JSON
    header := {"__metadata__": {str: str}?, KEY: {"dtype": D, "shape": [..], "data_offsets": [start, end)}, ...}

Offsets count from the end of the header. Tensors cover the data without holes or overlaps. Every rule is checked before
a size from the file is used, because the header is not to be trusted. Source: formats/README.md, "safetensors".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.json_text import MAX_TEXT_BYTES, JsonCursor, decode_json, is_unicode, why_too_long

LENGTH_BYTES = 8
MAX_HEADER_BYTES = MAX_TEXT_BYTES  # safetensors' own reader takes 100 MB, and a gigabyte of memory for them
MAX_MEMBERS = 120_000  # tensors and metadata strings: with all that a manifest says of them, 200 MB and 5 s
_MAX_ENTRY_CHARACTERS = 16_384  # 64 sizes of 20 digits, each on a line of its own, take a fifth
METADATA_KEY = "__metadata__"
_FOREIGN = {b"PK\x03\x04": "a zip archive, as torch.save writes", b"model_ch": "a state file: pass its directory"}
MAX_RANK = 64  # torch's own limit for most operations (TensorIterator)
DATA_ALIGNMENT = 64  # a cache line: the format asks for 8 only

DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F4": 4,
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a header: dtype name, shape and its bytes [start, end) in the file's data."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.end - self.start


def layout(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> list[TensorSpec]:
    """Return specs with offsets for (key, dtype name, shape), in the order of the file.

    Wider dtypes come first and keys are sorted within a width, so that every tensor is aligned to its own items.
    """
    specs, offset = [], 0
    for key, dtype, shape in sorted(tensors, key=lambda tensor: (-DTYPE_BITS[tensor[1]], tensor[0])):
        nbytes = _nbytes(dtype, shape)
        assert nbytes is not None, f"{key}: a tensor in memory has a size in bytes"
        end = offset + nbytes
        specs.append(TensorSpec(key, dtype, tuple(shape), offset, end))
        offset = end
    return specs


def format_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Return length and header, padded with spaces so that the data starts at a multiple of DATA_ALIGNMENT."""
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    for spec in specs:
        header[spec.key] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [spec.start, spec.end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
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


def parse_header(data: bytes | bytearray, data_bytes: int, path: str) -> tuple[dict[str, TensorSpec], dict[str, str]]:
    """Return the specs by key, in the order of the file, and the `__metadata__` strings.

    Args:
        data: The header's bytes, without the length.
        data_bytes: How many bytes follow the header in the file.
        path: Named in errors.

    Raises:
        CorruptCheckpointError: Not the JSON of the format, or offsets that do not fit shapes, dtypes or the file.
        UnsupportedCheckpointError: A dtype this version does not know.
    """
    specs, metadata = _parse_members(decode_json(data, path, LENGTH_BYTES), path)
    position = 0
    for spec in specs:
        if spec.start != position:
            _fail(path, f"{spec.key!r} starts at {spec.start} of the data, and the one before it ends at {position}")
        position = spec.end
    if position != data_bytes:
        _fail(path, f"the tensors take {position} bytes, and {data_bytes} follow the header")
    return {spec.key: spec for spec in specs}, metadata


def _parse_members(text: str, path: str) -> tuple[list[TensorSpec], dict[str, str]]:
    """Return the specs by where they start, and the metadata.

    One entry at a time is parsed and checked, so that what is wrong is refused before the rest takes any memory.
    """
    specs: dict[str, TensorSpec] = {}
    metadata: dict[str, str] | None = None
    cursor = JsonCursor(text, MAX_MEMBERS)
    try:
        for key in cursor.members():
            if key in specs or (key == METADATA_KEY and metadata is not None):
                _fail(path, f"key {key!r} stands twice")
            if key == METADATA_KEY:
                metadata = cursor.read_strings()
            else:
                specs[key] = _parse_spec(key, cursor.read_flat_object(_MAX_ENTRY_CHARACTERS), path)
        cursor.end()
    except CorruptCheckpointError:  # a ValueError, and says already what is wrong
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(path, LENGTH_BYTES, f"header: not JSON of the format: {error}") from error
    if not all(map(is_unicode, (*specs, *(metadata or {}), *(metadata or {}).values()))):
        _fail(path, "a key or text holds a lone surrogate")
    return sorted(specs.values(), key=lambda spec: (spec.start, spec.end)), metadata or {}


def _parse_spec(key: str, entry: Any, path: str) -> TensorSpec:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _fail(path, f"{key!r} is not an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not is_sizes(shape) or not is_sizes(offsets) or len(offsets) != 2:
        _fail(path, f"{key!r} has a dtype, shape or data_offsets of the wrong type, or a negative size")
    if dtype not in DTYPE_BITS:
        raise UnsupportedCheckpointError(path, f"{key!r} has the dtype {dtype!r}; a newer torchsaver may know it")
    if len(shape) > MAX_RANK:
        raise UnsupportedCheckpointError(path, f"{key!r} has {len(shape)} dimensions; tensors have {MAX_RANK} at most")
    start, end = offsets
    wanted = _nbytes(dtype, shape)
    if wanted is None or end - start != wanted:
        _fail(path, f"{key!r} has {end - start} bytes, which {dtype} {shape} does not take")
    return TensorSpec(key, dtype, tuple(shape), start, end)


def is_sizes(value: Any) -> bool:
    """Return whether `value` is a list of integers that are not negative (bool is not an integer here)."""
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _nbytes(dtype: str, shape: Sequence[int]) -> int | None:
    """Return the bytes a tensor takes, None when bytes or elements are beyond 63 bits, or no whole number of bytes."""
    bits = DTYPE_BITS[dtype]
    bound = max(bits, 8)  # torch counts elements too, of which a byte may hold two
    for size in shape:
        bits *= size
        bound *= max(size, 1)  # a zero does not make [0, 2**63] a shape
        if bound >= 1 << 66:
            return None
    return None if bits % 8 else bits // 8


def _fail(path: str, reason: str) -> NoReturn:
    raise CorruptCheckpointError(path, LENGTH_BYTES, f"header: {reason}")
