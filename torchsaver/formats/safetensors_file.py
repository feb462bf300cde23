"""Safetensors files: written as a stream from tensor memory, read by position; the header's rules are next door.

The header goes into its place last, when the checksums are known: a file that was cut short never parses.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Protocol

import torch

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats import safetensors_header as header
from torchsaver.formats.checksum import crc32c, crc32c_hex
from torchsaver.formats.json_text import why_too_large
from torchsaver.formats.manifest import (
    MANIFEST_KEY,
    Manifest,
    described,
    format_manifest,
    is_unnamed,
    parse_manifest,
)
from torchsaver.formats.regular_file import open_regular
from torchsaver.formats.tensor_bytes import WINDOW_BYTES, row_major_bytes, stored_spec

_STRINGS = {"format": "pt"}  # other readers want it
_CHUNK_BYTES = 4 << 20  # checksummed and written while it is still in the processor's cache


class Sink(Protocol):
    """A new file that takes bytes: at the position it has reached, or at its start."""

    def skip(self, nbytes: int) -> None:
        """Go on `nbytes` further."""

    def write(self, data: memoryview) -> None:
        """Write `data` at the position reached."""

    def write_start(self, data: bytes) -> None:
        """Write `data` at the start of the file."""


def write_safetensors(out: Sink, tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> int:
    """Stream tensors and manifest into `out` and return the header checksum.

    Args:
        out: An empty file.
        tensors: By key; memory above them stays within one window of WINDOW_BYTES.
        manifest: Its `crc32c` is filled in here, while the bytes stream by.

    Raises:
        ValueError: The header would be over a limit of its reader; nothing has been written.
    """
    specs = header.layout((key, *stored_spec(tensor)) for key, tensor in tensors.items())
    content = described(specs)
    blank, _ = format_manifest(replace(manifest, crc32c=dict.fromkeys(tensors, 0)), content)
    blank_head = _head(specs, blank)
    reason = header.why_not_readable(blank_head, len(specs) + len(_STRINGS) + 2) or why_too_large(blank)
    if reason is not None:
        raise ValueError(f"the header could not be read back: {reason}; save fewer keys or less metadata")
    out.skip(head_bytes := len(blank_head))
    checksums = {spec.key: _write_tensor(out, tensors[spec.key]) for spec in specs}
    text, header_crc32c = format_manifest(replace(manifest, crc32c=checksums), content)
    head = _head(specs, text)
    assert len(head) == head_bytes, "checksums have a fixed width"
    out.write_start(head)
    return header_crc32c


def _head(specs: list[header.TensorSpec], manifest_text: str) -> bytes:
    return header.format_header(specs, {**_STRINGS, MANIFEST_KEY: manifest_text})


def _write_tensor(out: Sink, tensor: torch.Tensor) -> int:
    """Write the tensor's values in row-major order and return their CRC-32C."""
    checksum = 0
    for piece in row_major_bytes(tensor):
        for start in range(0, len(piece), _CHUNK_BYTES):
            chunk = piece[start : start + _CHUNK_BYTES]
            checksum = crc32c(chunk, checksum)
            out.write(chunk)
    return checksum


class SafetensorsFile:
    """An open safetensors file of ours or anyone's: its header is checked, its data is read by position.

    Owns a file descriptor until `close`, or its own end, and keeps no mapping, so that the file can be replaced or
    removed meanwhile. One thread at a time may change it; reads share nothing but the descriptor.

    Raises:
        CorruptCheckpointError: Not a file, not of the format, or its header checksum differs.
        UnsupportedCheckpointError: A dtype or format version this version does not know.
        OSError: As the system gave it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd, nbytes = open_regular(path)
        self._close = weakref.finalize(self, os.close, self._fd)
        try:
            self._read_header(nbytes)
        except BaseException:
            self.close()
            raise

    def _read_header(self, file_bytes: int) -> None:
        length_data = self._read_bytes(0, min(header.LENGTH_BYTES, file_bytes))
        length = header.parse_length(length_data, file_bytes, self.path)
        self._data_start = header.LENGTH_BYTES + length
        head = self._read_bytes(header.LENGTH_BYTES, length)
        self.specs, strings = header.parse_header(head, file_bytes - self._data_start, self.path)
        del head  # up to MAX_HEADER_BYTES, and the manifest takes memory of its own
        self.header_crc32c: int | None = None
        if MANIFEST_KEY in strings:
            text, content = strings.pop(MANIFEST_KEY), described(self.specs.values())
            self.manifest, self.header_crc32c = parse_manifest(text, content, self.specs, self.path)
        elif any(is_unnamed(text) for text in strings.values()):
            raise CorruptCheckpointError(self.path, header.LENGTH_BYTES, "the manifest has lost its name")
        else:
            # safetensors.torch.save_model notes the names it drops for tied tensors as {dropped: kept}.
            aliases = {name: kept for name, kept in strings.items() if name not in self.specs and kept in self.specs}
            aliases.pop("format", None)  # "pt", even beside a tensor of that name
            self.manifest = Manifest(aliases=aliases)

    def read_into(self, spec: header.TensorSpec, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` on.

        Raises:
            CorruptCheckpointError: The file ends before.
        """
        self._read_at(self._data_start + spec.start + offset, buffer)

    def verify(self, spec: header.TensorSpec) -> None:
        """Read the tensor's bytes and compare their checksum; without one stored there is nothing to compare.

        Raises:
            CorruptCheckpointError: The checksums differ.
        """
        if spec.key in self.manifest.crc32c:
            self.compare(spec, self.checksum(spec))

    def compare(self, spec: header.TensorSpec, found: int) -> None:
        """Compare `found`, the CRC-32C of the tensor's bytes, with the stored one, if there is one.

        Raises:
            CorruptCheckpointError: They differ.
        """
        stored = self.manifest.crc32c.get(spec.key, found)
        if stored != found:
            reason = f"{spec.key!r} has the checksum {crc32c_hex(found)}, and {crc32c_hex(stored)} is stored"
            raise CorruptCheckpointError(self.path, self._data_start + spec.start, reason)

    def checksum(self, spec: header.TensorSpec) -> int:
        """Return the CRC-32C of the tensor's bytes as they are on the disk now."""
        window = memoryview(bytearray(min(spec.nbytes, WINDOW_BYTES)))
        checksum = 0
        for start in range(0, spec.nbytes, WINDOW_BYTES):
            piece = window[: spec.nbytes - start]
            self.read_into(spec, start, piece)
            checksum = crc32c(piece, checksum)
        return checksum

    def _read_bytes(self, position: int, nbytes: int) -> bytearray:
        data = bytearray(nbytes)
        self._read_at(position, memoryview(data))
        return data

    def _read_at(self, position: int, buffer: memoryview) -> None:
        if not self._close.alive:
            raise ValueError(f"{self.path!r} is closed; read inside the reader's with block")
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], position + done)
            except OSError as error:
                error.filename = self.path  # the system call only knows a number
                raise
            if count == 0:
                raise CorruptCheckpointError(
                    self.path, position + done, f"the file ends {len(buffer) - done} bytes early"
                )
            done += count

    def fileno(self) -> int:
        """Return the descriptor, which stays the file's."""
        return self._fd

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
