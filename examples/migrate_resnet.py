"""TensorFlow's ResNet into PyTorch, under torchvision's names: five rules, one line, and TensorFlow's own outputs."""

import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import torchsaver as ts
from torchsaver import transfer

CASE = Path(__file__).parent.parent / "tests" / "data" / "corpus" / "resnet_like"


def _same(x: torch.Tensor, size: int, stride: int, value: float = 0.0) -> torch.Tensor:
    height, width = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:])  # as TensorFlow's SAME
    return nn.functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


class _Conv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(_same(x, self.kernel_size[0], self.stride[0]))


def _conv_norm(inputs: int, outputs: int, size: int, stride: int) -> list[nn.Module]:
    return [_Conv(inputs, outputs, size, stride, bias=False), nn.BatchNorm2d(outputs, eps=1e-3)]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_norm(inputs, outputs, 3, stride)
        self.conv2, self.bn2 = _conv_norm(outputs, outputs, 3, 1)
        self.downsample = nn.Sequential(*(_conv_norm(inputs, outputs, 1, stride) if stride > 1 else []))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.downsample(x)).relu()


conv1, bn1 = _conv_norm(3, 8, 5, 2)
layers = {f"layer{n}": nn.Sequential(_Block(*sizes)) for n, sizes in enumerate([(8, 8, 1), (8, 12, 2), (12, 16, 2)], 1)}
model = nn.ModuleDict({"conv1": conv1, "bn1": bn1, **layers, "fc": nn.Linear(16, 10)}).eval()

rules = [(re.compile(r"block(\d)/unit_1"), r"layer\1.0"), (re.compile(r"conv(\d)_bn"), r"bn\1"), ("logits/", "fc.")]
rules += [(re.compile("shortcut_bn"), "downsample.1"), (re.compile("shortcut"), "downsample.0")]
names = {"resnet/": transfer.from_tf(model, rules)}
print(*str(transfer.plan_transfer(CASE / "model.ckpt-6", names)).splitlines()[:10], sep="\n")  # torchsaver: a dry run
ts.init_from_checkpoint(CASE / "model.ckpt-6", names)  # torchsaver: weights and moving statistics: all, or an error

x = torch.from_numpy(np.load(CASE / "forward_input.npy")).permute(0, 3, 1, 2)
x = nn.functional.max_pool2d(_same(bn1(conv1(x)).relu(), 3, 2, -torch.inf), 3, 2)
x = nn.Sequential(*layers.values())(x)
for name, output in {"": model.fc(x.mean((2, 3))), "_r31": x.permute(0, 2, 3, 1)}.items():
    difference = (output - torch.from_numpy(np.load(CASE / f"forward_output{name}.npy"))).abs().max().item()
    print(f"forward_output{name}: largest difference from TensorFlow's {difference:.1e}")
    assert difference < 1e-5
print(ts.Saver(model).save(Path(tempfile.mkdtemp(), "resnet.ckpt")))  # torchsaver: from here on, PyTorch's checkpoint
