"""Writing a safetensors file as a stream from tensor memory.

The header goes into its place last, when the checksums are known: a file that was cut short never parses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from torchsaver.formats import safetensors_header as header
from torchsaver.formats.checksum import crc32c
from torchsaver.formats.chunks import CHUNK_BYTES, FEW_PIECES, Chunk, cut_into_chunks, joined_by_owner
from torchsaver.formats.file_layout import lay_out
from torchsaver.formats.json_text import why_too_large
from torchsaver.formats.manifest import MANIFEST_KEY, Manifest, format_manifest
from torchsaver.formats.parallel import alongside
from torchsaver.formats.tensor_bytes import is_dense, row_major_bytes, stored_spec

_STRINGS = {"format": "pt"}  # other readers want it
_MANY_CHUNKS = 8  # fewer are not worth a thread


class Sink(Protocol):
    """A new file that takes bytes at any position."""

    def reserve(self, nbytes: int) -> None:
        """Expect so many bytes."""

    def write(self, position: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Write pieces one after the other from `position` on."""


class FilePlan:
    """How tensors become a file: worked out once, and good for as long as they stay where and what they are.

    Args:
        tensors: By key. None of them is kept: `write` gets them again.

    Attributes:
        layout: Where each tensor is in the file.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.layout = lay_out((key, *stored_spec(tensor)) for key, tensor in tensors.items())
        specs = self.layout.specs.values()
        self._streamed = [spec for spec in specs if not is_dense(tensors[spec.key])]
        streamed = {spec.key for spec in self._streamed}
        self._dense = [spec.key for spec in specs if spec.key not in streamed]
        self._chunks = cut_into_chunks(
            (spec.start, spec.end, tensors[spec.key].data_ptr()) for spec in specs if spec.key not in streamed
        )
        # A dict has their order, and finds one at once.
        self._large = dict.fromkeys(n for n, chunk in enumerate(self._chunks) if len(chunk.sizes) <= FEW_PIECES)
        # Then taking the checksums first is quicker than a header without them, to know its length.
        self._is_quick = not self._streamed and len(self._large) < _MANY_CHUNKS

    def write(self, out: Sink, tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> int:
        """Write the file and return its header checksum.

        Args:
            out: An empty file.
            tensors: As planned, and perhaps more; memory above them stays within one window of WINDOW_BYTES.
            manifest: Its `crc32c` is filled in here.

        Raises:
            ValueError: The header would be over a limit of its reader; nothing has been written.
        """
        if self._is_quick:
            checksums = self._by_key(map(_checksums, self._chunks))
            head, header_crc32c = self._head(replace(manifest, crc32c=checksums))
            out.reserve(len(head) + self.layout.nbytes)
            for chunk in self._chunks:
                out.write(len(head) + chunk.start, chunk.memory)
        else:
            blank, _ = self._head(replace(manifest, crc32c=dict.fromkeys(self.layout.specs, 0)))
            out.reserve(len(blank) + self.layout.nbytes)
            checksums = self._by_key(self._write_dense(out, len(blank)))
            for spec in self._streamed:
                checksums[spec.key] = _stream(out, len(blank) + spec.start, tensors[spec.key])
            head, header_crc32c = self._head(replace(manifest, crc32c=checksums), is_within_limits=True)
            assert len(head) == len(blank), "checksums have a fixed width"
        out.write(0, [head])
        return header_crc32c

    def _head(self, manifest: Manifest, *, is_within_limits: bool = False) -> tuple[bytes, int]:
        text, header_crc32c = format_manifest(manifest, self.layout.content)
        head = header.format_header(self.layout, {**_STRINGS, MANIFEST_KEY: text})
        if is_within_limits:
            return head, header_crc32c
        reason = header.why_not_readable(head, len(self.layout.specs) + len(_STRINGS) + 2) or why_too_large(text)
        if reason is not None:
            raise ValueError(f"the header could not be read back: {reason}; save fewer keys or less metadata")
        return head, header_crc32c

    def _write_dense(self, out: Sink, base: int) -> list[list[int]]:
        """Write what is written from the tensors' own memory, and return the CRC-32C of each chunk's pieces."""
        found: list[list[int]] = [[]] * len(self._chunks)

        def checksum_large() -> Iterator[None]:
            for number in self._large:
                found[number] = _checksums(self._chunks[number])
                yield

        with alongside(checksum_large()):
            for number, chunk in enumerate(self._chunks):
                out.write(base + chunk.start, chunk.memory)
                if number not in self._large:
                    found[number] = _checksums(chunk)
        return found

    def _by_key(self, found: Iterable[list[int]]) -> dict[str, int]:
        joined = joined_by_owner(self._chunks, found, len(self._dense))
        return dict(zip(self._dense, joined, strict=True))


def _checksums(chunk: Chunk) -> list[int]:
    return list(map(crc32c, chunk.memory))


def _stream(out: Sink, position: int, tensor: torch.Tensor) -> int:
    """Write the tensor's values in row-major order through a window, and return their CRC-32C."""
    checksum = 0
    for piece in row_major_bytes(tensor):
        for start in range(0, len(piece), CHUNK_BYTES):
            chunk = piece[start : start + CHUNK_BYTES]
            checksum = crc32c(chunk, checksum)
            out.write(position, [chunk])
            position += len(chunk)
    return checksum


def plan_files(tensors: Mapping[str, torch.Tensor], max_shard_bytes: int | None) -> list[FilePlan]:
    """Return plans for files of at most `max_shard_bytes`, in sorted key order, or for one file of any size.

    A larger tensor is in a file of its own.
    """
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = max_shard_bytes
    for key in sorted(tensors):
        if room is not None and max_shard_bytes is not None:
            if tensors[key].nbytes > room and shards[-1]:
                shards.append({})
                room = max_shard_bytes
            room -= tensors[key].nbytes
        shards[-1][key] = tensors[key]
    return [FilePlan(shard) for shard in shards]
