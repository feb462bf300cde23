"""TensorFlow's ResNet into PyTorch: kernels, moving statistics and SAME padding, and TensorFlow's own outputs."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import max_pool2d, pad

import torchsaver as ts
from torchsaver import transfer

CASE = Path(__file__).parent.parent / "tests" / "data" / "corpus" / "resnet_like"


def _same(x: torch.Tensor, size: int, stride: int, value: float = 0.0) -> torch.Tensor:
    """Pad as TensorFlow's SAME does: what does not come out even goes to the end."""
    height, width = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:])
    return pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


class _Convs(nn.Module):
    def add(self, name: str, inputs: int, outputs: int, size: int, stride: int) -> None:
        self.add_module(name, nn.Conv2d(inputs, outputs, size, stride, bias=False))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.1))

    def conv(self, name: str, x: torch.Tensor) -> torch.Tensor:
        conv = self.get_submodule(name)
        return self.get_submodule(f"{name}_bn")(conv(_same(x, conv.kernel_size[0], conv.stride[0])))


class _Unit(_Convs):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.add("conv1", inputs, outputs, 3, stride)
        self.add("conv2", outputs, outputs, 3, 1)
        if stride > 1:
            self.add("shortcut", inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.conv("shortcut", x) if hasattr(self, "shortcut") else x
        return (self.conv("conv2", self.conv("conv1", x).relu()) + shortcut).relu()


class _ResNet(_Convs):
    def __init__(self) -> None:
        super().__init__()
        self.add("conv1", 3, 8, 5, 2)
        for number, (inputs, outputs) in enumerate([(8, 8), (8, 12), (12, 16)], 1):
            self.add_module(f"block{number}", nn.ModuleDict({"unit_1": _Unit(inputs, outputs, 1 + (number > 1))}))
        self.logits = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = max_pool2d(_same(self.conv("conv1", x).relu(), 3, 2, -torch.inf), 3, 2)
