"""Files of torch.save, .pt, .pth, .bin: only tensors and plain values are read (weights_only), never any pickle."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.regular_file import RegularFile

ENDINGS = (".pt", ".pth", ".bin")
_MAGICS = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")  # a zip archive; what torch wrote before 1.6
_MOST_DEPTH = 100


def is_torch_file(path: str) -> bool:
    """Return whether a file is one of torch.save: by its first bytes.

    Raises:
        CorruptCheckpointError: It is no regular file.
        OSError: As the system gave it.
    """
    file = RegularFile(path)
    try:
        return bytes(file.read(0, min(4, file.nbytes))) in _MAGICS
    finally:
        file.close()


def read_torch_file(path: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors of a file of torch.save by their paths in it, joined by dots, and the paths of all else.

    Tensors of a zip archive are mapped, not read: their bytes come from the file as they are used.

    Args:
        path: The file: a state dict, or a dict, list or tuple with such ones in it.

    Raises:
        UnsupportedCheckpointError: It holds objects of other classes, which only running its code could make.
        CorruptCheckpointError: It is damaged, or none.
        OSError: As the system gave it.
    """
    try:
        content = _load(path)
    except torch.serialization.pickle.UnpicklingError as error:  # type: ignore[attr-defined]
        reason = " ".join(str(error).split(".")[0].split())
        feature = f"it holds more than tensors and plain values, and only these are safe to read: {reason}"
        raise UnsupportedCheckpointError(path, feature) from error
    except (RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError) as error:
        first = str(error).partition("\n")[0]
        raise CorruptCheckpointError(path, 0, f"torch cannot read it: {first}") from error
    tensors: dict[str, torch.Tensor] = {}
    others: list[str] = []
    for name, value in _leaves("", content, _MOST_DEPTH):
        if isinstance(value, torch.Tensor) and name not in tensors:
            tensors[name] = value.detach()
        else:
            others.append(name)
    return tensors, others


def _load(path: str) -> Any:
    with open(path, "rb") as file:
        is_zip = file.read(4) == _MAGICS[0]
    return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=is_zip)


def _leaves(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of everything that is no dict, list or tuple."""
    if depth and isinstance(value, Mapping):
        children = [(str(key), child) for key, child in value.items()]
    elif depth and isinstance(value, (list, tuple)):
        children = [(str(number), child) for number, child in enumerate(value)]
    else:
        yield name, value
        return
    for key, child in children:
        yield from _leaves(f"{name}.{key}" if name else key, child, depth - 1)
