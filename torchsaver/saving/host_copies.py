"""Copies of values in host memory, so that training can go on while they are written; the memory is used again."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from torchsaver.formats.memory import memory_at
from torchsaver.formats.parallel import cores, share
from torchsaver.formats.staging import copy_values

_ALIGNMENT = 64  # bytes: a cache line, and more than any item
# A copy of a small tensor by torch takes ten times as long as its bytes do. Of a large one, torch has all its threads
# wait for each other at the end of each tensor, which takes long where a processor has other work: ours wait once.
_LARGE_BYTES = 1 << 20
_HUGE_BYTES = 16 << 20  # eight huge pages: what the last one wastes is little
_PIECE_BYTES = 8 << 20  # what a thread copies at a time
_MOST_THREADS = 8  # fewer saturate the memory of most machines


class HostCopies:
    """The last values that were taken, and the memory they are in; pinned where they come from a CUDA device.

    It is made anew when other tensors, shapes or dtypes come, and freed by `free`.

    Attributes:
        generation: Another number whenever the memory is another.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._copies: dict[str, torch.Tensor] = {}
        self._kinds: Sequence[Any] = _kinds({})
        self._ways: _Ways | None = None
        self._places: Any = None

    def take(self, tensors: Mapping[str, torch.Tensor], places: Any = None) -> dict[str, torch.Tensor]:
        """Return dense CPU copies of the tensors, by key, which are good until the next `take`.

        When it returns, all values have been copied, also those of other devices: as they are once all is done that the
        current stream of their device has been given.

        Args:
            tensors: By key, none of which is kept.
            places: Their footprint: while it and the keys are the same, the way to copy them is.
        """
        ways = self._ways
        if ways is None or places is None or places != self._places or ways.keys != list(tensors):
            self._make_ready(tensors)
            ways, self._places = _Ways(tensors, self._copies), places
            self._ways = ways
        devices = set()
        for key in ways.others:
            goes_on = tensors[key].is_cuda
            copy_values(self._copies[key], tensors[key].detach(), goes_on)
            if goes_on:
                devices.add(tensors[key].device)
        for target, source in ways.small:
            target[:] = source
        _copy_pieces(ways.pieces)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return self._copies

    def _make_ready(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Have memory for copies of these tensors."""
        self._ways = self._places = None
        kinds = _kinds(tensors)
        if kinds != self._kinds:
            self.free()
            self._copies = _allocated(tensors)
            self._kinds = kinds

    def free(self) -> None:
        """Give the memory back."""
        self._copies, self._kinds, self._ways, self._places = {}, _kinds({}), None, None
        self.generation += 1

    def __reduce__(self) -> tuple[type[HostCopies], tuple[()]]:
        return HostCopies, ()  # a copied or pickled saver has other tensors


class _Ways:
    """How values are copied, by addresses: it keeps no tensor alive.

    Attributes:
        keys: Of all tensors.
        small: Memory of a copy, and of a tensor.
        pieces: (target, source, bytes), of large tensors.
        others: Keys of tensors that are not dense, or on another device.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], copies: Mapping[str, torch.Tensor]) -> None:
        self.keys = list(tensors)
        self.small: list[tuple[memoryview, memoryview]] = []
        self.pieces: list[tuple[int, int, int]] = []
        self.others: list[str] = []
        for key, source in zip(self.keys, _dense_addresses(list(tensors.values())), strict=True):
            target, nbytes = copies[key].data_ptr(), copies[key].nbytes
            if source is None:
                self.others.append(key)
            elif nbytes >= _LARGE_BYTES:
                self.pieces += _cut(target, source, nbytes)
            elif nbytes:
                self.small.append((memory_at(target, nbytes), memory_at(source, nbytes)))


_shape, _dtype, _is_cuda, _is_cpu = (
    getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "is_cuda", "is_cpu")
)


def _kinds(tensors: Mapping[str, torch.Tensor]) -> Sequence[Any]:
    """Return what memory for copies depends on."""
    some = tensors.values()
    return list(tensors), list(map(_shape, some)), list(map(_dtype, some)), list(map(_is_cuda, some))


def _dense_addresses(tensors: Sequence[torch.Tensor]) -> list[int | None]:
    """Return where each tensor's values are, one after the other in row-major order; None: they are not."""
    is_dense = map(torch.Tensor.is_contiguous, tensors)
    is_lazy = map(torch.Tensor.is_conj, tensors), map(torch.Tensor.is_neg, tensors)
    facts = zip(map(torch.Tensor.data_ptr, tensors), map(_is_cpu, tensors), is_dense, *is_lazy, strict=True)
    return [address if cpu and dense and not conj and not neg else None for address, cpu, dense, conj, neg in facts]


def _allocated(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return dense CPU tensors like these: one after the other in few blocks of memory, in the order of their keys."""
    copies = {}
    for is_pinned in (False, True):
        some = [(key, tensors[key]) for key in sorted(tensors) if tensors[key].is_cuda is is_pinned]
        sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for _, tensor in some]
        if some:
            with torch.inference_mode(False):  # else no later save outside of it could fill them
                block = _block(sum(sizes), is_pinned)
                starts = itertools.accumulate(sizes, initial=0)
                for (key, tensor), start in zip(some, starts, strict=False):
                    copies[key] = block[start : start + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
    return copies


def _block(nbytes: int, is_pinned: bool) -> torch.Tensor:
    """Return new memory: in huge pages, where it is large and the system has them, so that most faults are saved."""
    if is_pinned or nbytes < _HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=is_pinned)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # private: a forked child has its own
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _cut(target: int, source: int, nbytes: int) -> list[tuple[int, int, int]]:
    """Return the copies (target, source, bytes) that are one copy."""
    starts = range(0, nbytes, _PIECE_BYTES)
    return [(target + start, source + start, min(_PIECE_BYTES, nbytes - start)) for start in starts]


def _copy_pieces(pieces: Sequence[tuple[int, int, int]]) -> None:
    def copy(numbers: Iterable[int]) -> None:
        for number in numbers:
            ctypes.memmove(*pieces[number])  # other threads run meanwhile

    share(len(pieces), min(cores(), _MOST_THREADS), copy)
