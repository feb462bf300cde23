"""Copies of what is not its own bytes in host memory: a tensor's values through two buffers, slab by slab.

A slab is a sub-tensor; slabs follow each other in row-major order. While one buffer is written to disk, or filled from
it, the other is on its way from or to the tensor: for a CUDA device both are pinned, and copies go on by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

WINDOW_BYTES = 16 << 20  # the most that is held in copies at once, above the model

_SAME_SIZE_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def staged_values(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield dense CPU tensors of the tensor's values; each is good until the next one is asked for."""
    buffers = _Buffers(tensor)
    before: torch.Tensor | None = None
    for slab in _slabs(tensor, buffers.nbytes):
        buffer = buffers.take(slab)
        copy_values(buffer, slab, buffers.is_pinned)
        if before is not None:
            yield before
        buffers.wait()
        before = buffer
    if before is not None:
        yield before


def staged_targets(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield dense CPU tensors that take the tensor's values; each goes to its place when the next one is asked for."""
    buffers = _Buffers(tensor)
    for slab in _slabs(tensor, buffers.nbytes):
        buffer = buffers.take(slab)
        yield buffer
        buffers.wait()  # the copy before this one has left its buffer, which is the next to be taken
        copy_values(slab, buffer, buffers.is_pinned)
    buffers.wait()


class _Buffers:
    """Two buffers, taken in turn."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.nbytes = max(WINDOW_BYTES // 2, tensor.element_size())
        self.is_pinned = tensor.device.type == "cuda"
        self._device = tensor.device
        size = min(tensor.nbytes, self.nbytes)
        count = 1 if tensor.nbytes <= size else 2
        self._memory = [
            torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=self.is_pinned) for _ in range(count)
        ]

    def take(self, slab: torch.Tensor) -> torch.Tensor:
        """Return the next buffer, as a dense tensor like `slab`."""
        self._memory.reverse()
        return self._memory[0][: slab.nbytes].view(slab.dtype).reshape(slab.shape)

    def wait(self) -> None:
        """Wait for the copies that go on by themselves."""
        if self.is_pinned:
            torch.cuda.current_stream(self._device).synchronize()


def _slabs(tensor: torch.Tensor, most_bytes: int) -> Iterator[torch.Tensor]:
    """Yield sub-tensors of at most so many bytes that follow each other in row-major order."""
    if tensor.nbytes <= most_bytes or tensor.dim() == 0:
        if tensor.numel():
            yield tensor
        return
    rows = most_bytes // (tensor.nbytes // tensor.shape[0])
    if rows == 0:
        for row in tensor:
            yield from _slabs(row, most_bytes)
        return
    for start in range(0, tensor.shape[0], rows):
        yield tensor[start : start + rows]


def copy_values(target: torch.Tensor, source: torch.Tensor, goes_on: bool) -> None:
    """Copy values, bit for bit; a pending conjugation or negation is carried out."""
    if source.is_complex() or source.is_neg() or target.is_neg():
        target.copy_(source, non_blocking=goes_on)
    else:
        _bits(target).copy_(_bits(source), non_blocking=goes_on)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor seen as integers of its item size, so that copies move bits and exist for every dtype."""
    return tensor.view(_SAME_SIZE_INTEGERS[tensor.element_size()])
