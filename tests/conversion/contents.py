"""What a checkpoint holds, as the tests of conversions compare it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torchsaver as ts
from torchsaver.conversion.plan import Format
from torchsaver.formats.tensor_bytes import byte_view

FORMATS: tuple[Format, ...] = ("safetensors", "tf")


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, list[int], bytes]:
    """Return all that a tensor is."""
    return tensor.dtype, list(tensor.shape), bytes(byte_view(tensor.contiguous()))


def contents(save_path: str | Path) -> dict[str, Any]:
    """Return every value of a checkpoint, under each of its names."""
    with ts.load_checkpoint(save_path) as reader:
        values = {key: reader.get_tensor(key) for key in [*reader.keys(), *reader.aliases]}
    return {key: value.tolist() if isinstance(value, np.ndarray) else bits(value) for key, value in values.items()}


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))
