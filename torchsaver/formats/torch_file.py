"""Files of torch.save, .pt, .pth, .bin: only tensors and plain values are read (weights_only), never any pickle.

Since torch 1.6 a file is a zip archive: a pickle, and beside it a record of bytes for each storage. Torch compares none
of its checksums; `verify_torch_file` does. Before, it was pickles and bytes one after the other, without any.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.regular_file import RegularFile

ENDINGS = (".pt", ".pth", ".bin")
_ZIP = b"PK\x03\x04"
_MAGICS = (_ZIP, b"\x80\x02\x8a\x0a")  # the second is what torch wrote before 1.6
_SINGLE = "tensor"  # the path of a tensor that is all there is
MOST_DEPTH = 100
_MOST_VALUES = 1_000_000  # a few bytes of a pickle can stand for a list of lists of lists without end
_WINDOW_BYTES = 1 << 20
_REFUSED = re.compile(r"GLOBAL (\S+)")
_REMEDY = "where you trust it, torch.load it with weights_only=False, and torch.save() its state_dict() alone"


class TorchFile(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: (path, tensor): the keys and numbers that lead there, joined by dots. Two may come to the same path.
        others: Paths of all else; one for a whole dict or list that holds no tensor.
        content: All of it, as it hangs together.
    """

    tensors: list[tuple[str, torch.Tensor]]
    others: list[str]
    content: Any


def is_torch_file(path: str) -> bool:
    """Return whether a file is one of torch.save: by its name, or its first bytes.

    Raises:
        CorruptCheckpointError: It is no regular file.
        OSError: As the system gave it.
    """
    return _first_bytes(path) in _MAGICS or path.endswith(ENDINGS)


def _first_bytes(path: str) -> bytes:
    file = RegularFile(path)
    try:
        return bytes(file.read(0, min(4, file.nbytes)))
    finally:
        file.close()


def read_torch_file(path: str) -> TorchFile:
    """Return the tensors of a file of torch.save, and the paths of all else.

    Tensors of a zip archive are mapped, not read: their bytes come from the file as they are used, in memory that the
    system may take back, and are compared by `verify_torch_file` only. Those of the older format, or of a compressed
    archive, are in memory, all of them.

    Args:
        path: The file: a state dict, a dict, list or tuple with such ones in it, or a single tensor.

    Raises:
        UnsupportedCheckpointError: It holds objects of other classes, which only running its code could make.
        CorruptCheckpointError: It is damaged, or none.
        OSError: As the system gave it.
    """
    is_mapped = _first_bytes(path) == _ZIP and _check_archive(path)
    walk = _Walk(path)
    content = _load(path, is_mapped=is_mapped)
    others = walk.through("", content)
    return TorchFile(walk.tensors, others, content)


def verify_torch_file(path: str) -> None:
    """Read all values of a file, and compare the checksums; one without any is not looked at.

    Raises:
        CorruptCheckpointError: It is damaged.
        OSError: As the system gave it.
    """
    if _first_bytes(path) == _ZIP:
        with _archive(path) as archive:
            _compare(path, archive, [info for info in archive.infolist() if _is_storage(info)])


def _load(path: str, *, is_mapped: bool) -> Any:
    try:
        with warnings.catch_warnings(), _plain_classes_allowed():
            warnings.simplefilter("ignore")  # of what torch itself would do otherwise
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except torch.serialization.pickle.UnpicklingError as error:  # type: ignore[attr-defined]
        raise UnsupportedCheckpointError(path, f"{_refusal(str(error))}; {_REMEDY}") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of damaged bytes torch raises whatever they lead to
        first = str(error).partition("\n")[0] or type(error).__name__
        raise CorruptCheckpointError(path, 0, f"torch cannot read it: {first}") from error


def _plain_classes_allowed() -> AbstractContextManager[Any]:
    """Return what has torch read argparse.Namespace, which many programs save their arguments as: it runs no code."""
    if not hasattr(torch.serialization, "safe_globals"):  # before torch 2.5
        return contextlib.nullcontext()
    return torch.serialization.safe_globals([argparse.Namespace])


def _refusal(message: str) -> str:
    """Return what torch has refused to make, as far as its message tells."""
    refused = _REFUSED.search(message)
    if refused is not None:
        return f"it holds {refused[1]}, and only tensors and plain values are safe to read"
    lines = message.rpartition("WeightsUnpickler error:")[2].split("\n")
    return f"torch does not read such a pickle safely ({next(filter(None, map(str.strip, lines)), 'no reason given')})"


def _check_archive(path: str) -> bool:
    """Return whether an archive's storages lie in it as they are, after comparing the checksums of all else.

    Raises:
        UnsupportedCheckpointError: It is an archive of something else.
        CorruptCheckpointError: It is damaged.
    """
    with _archive(path) as archive:
        infos = archive.infolist()
        names = {info.filename.partition("/")[2] for info in infos}
        if "constants.pkl" in names:
            raise UnsupportedCheckpointError(path, "it is a TorchScript program; torch.save() its state_dict() alone")
        if "data.pkl" not in names:
            raise UnsupportedCheckpointError(path, "it is a zip archive, and none that torch.save() writes")
        _compare(path, archive, [info for info in infos if not _is_storage(info)])
    return all(info.compress_type == zipfile.ZIP_STORED for info in infos)


def _archive(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # zipfile raises other things than BadZipFile too
        raise CorruptCheckpointError(path, 0, f"it is no zip archive, as torch.save writes: {error}") from error


def _is_storage(info: zipfile.ZipInfo) -> bool:
    return "/data/" in info.filename


def _compare(path: str, archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> None:
    for info in infos:
        if info.CRC == 0:  # torch.serialization.set_crc32_options(False); or it is that, once in four billion times
            continue
        try:
            if info.header_offset < 0:  # zipfile would look there, which is an error of the system's
                raise zipfile.BadZipFile("it begins before the file")  # noqa: TRY301
            with archive.open(info) as record:
                while record.read(_WINDOW_BYTES):
                    pass
        except OSError:
            raise
        except Exception as error:
            raise CorruptCheckpointError(path, info.header_offset, f"{info.filename!r}: {error}") from error


class _Walk:
    """Goes through what a file holds, in its order.

    Attributes:
        tensors: (path, tensor) of those met.
    """

    def __init__(self, path: str) -> None:
        self.tensors: list[tuple[str, torch.Tensor]] = []
        self._path = path
        self._values = 0

    def through(self, name: str, value: Any, within: tuple[int, ...] = ()) -> list[str]:
        """Note the tensors in a value, and return the paths of all else; `within` are the values around it."""
        self._values += 1
        if self._values > _MOST_VALUES:
            raise UnsupportedCheckpointError(self._path, f"it holds more than {_MOST_VALUES:,} values")
        if isinstance(value, torch.Tensor):
            self.tensors.append((name if within else _SINGLE, value.detach()))
            return []
        if id(value) in within or len(within) == MOST_DEPTH:
            return [name]
        before, around = len(self.tensors), (*within, id(value))
        others = []
        for key, child in children(value):
            others += self.through(f"{name}.{key}" if name else key, child, around)
        return others if len(self.tensors) > before else [name]


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (its part of a path, what it is) for all that a dict, list or tuple holds; nothing of another value."""
    if isinstance(value, Mapping):
        yield from ((str(key), child) for key, child in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(number), child) for number, child in enumerate(value))
