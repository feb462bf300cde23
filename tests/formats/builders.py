"""What the tests of the formats build their files and tensors with; nothing here depends on how the code does it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchsaver.formats.checksum import crc32c
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.formats.safetensors_writer import FilePlan
from torchsaver.formats.tensor_bytes import TORCH_DTYPES
from torchsaver.stored_tensor import stored_tensor

ALL_DTYPES = {**TORCH_DTYPES, "C128": torch.complex128}

# Applied to a dense base of shape [2, 3, 4, 4], or to the indices of its elements.
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dense": lambda base: base,
    "scalar": lambda base: base[1, 2, 3, 0],
    "empty": lambda base: base[:, 3:],
    "transposed": lambda base: base.transpose(0, 3),
    "stepped": lambda base: base[:, ::2, 1:, ::3],
    "channels_last": lambda base: base.reshape(2, 4, 4, 3).permute(0, 3, 1, 2),
    "row": lambda base: base[1, :, 2],
    "single": lambda base: base[1:, 2, 1, 1],  # contiguous, and its stride is not 1
}
EXPANDED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {  # to be read from only
    "expanded": lambda base: base[:, :1].expand(2, 5, 4, 4),
    "expanded_scalar": lambda base: base[0, 0, 0, 1].expand(3, 2),
    "window": lambda base: base.as_strided((5, 4), (1, 2)),
}


class Sink:
    """A file in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def reserve(self, nbytes: int) -> None:
        self.data += bytes(nbytes)

    def write(self, position: int, pieces: Sequence[bytes | memoryview]) -> None:
        data = b"".join(pieces)
        self.data[position : position + len(data)] = data


def base_bytes(dtype: torch.dtype, seed: int = 0) -> bytes:
    """Return random bytes for a base of 96 elements; BOOL has no bytes but 0 and 1."""
    size = 96 * torch.empty((), dtype=dtype).element_size()
    numbers = torch.randint(0, 256, (size,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return bytes((numbers & 1 if dtype == torch.bool else numbers).tolist())


def base_tensor(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    """Return the base that has these bytes."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(2, 3, 4, 4)


def elements(view: Callable[[torch.Tensor], torch.Tensor]) -> list[int]:
    """Return which elements of the base the view shows, in row-major order."""
    return [int(index) for index in view(torch.arange(96).reshape(2, 3, 4, 4)).flatten().tolist()]


def raw(tensor: torch.Tensor) -> bytes:
    """Return a tensor's values in row-major order, as torch itself makes them."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return bytes(plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy())


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Return whether two tensors are equal bit for bit."""
    return (found.dtype, found.shape, raw(found)) == (wanted.dtype, wanted.shape, raw(wanted))


def file_bytes(tensors: dict[str, torch.Tensor], manifest: Manifest | None = None) -> bytes:
    """Return the bytes of the file we write."""
    sink = Sink()
    FilePlan(tensors).write(sink, tensors, manifest or Manifest())
    return bytes(sink.data)


def read_all(path: str) -> tuple[dict[str, torch.Tensor], Manifest]:
    """Open, verify and read everything there is in a file."""
    with SafetensorsFile(path) as file:
        file.verify(list(file.specs.values()))
        return {key: stored_tensor(file, spec).read() for key, spec in file.specs.items()}, file.manifest


def header_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a file with this header: text or bytes as they are, anything else as JSON."""
    text = header if isinstance(header, (bytes, str)) else json.dumps(header)
    encoded = text if isinstance(text, bytes) else text.encode()
    return (len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data


def signed(fields: dict[str, Any], content: Any) -> str:
    """Return a manifest's text with a header checksum that is right, whatever the fields are."""
    covered = canonical([fields, content]).encode("utf-8", "surrogatepass")
    return canonical({**fields, "header_crc32c": f"{crc32c(covered):08x}"})


def canonical(value: Any) -> str:
    """Return JSON text with sorted keys and no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
