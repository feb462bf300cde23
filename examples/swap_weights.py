"""Train on raw weights, evaluate their average: a dict restores the averages into the raw parameters."""

import os
import tempfile

import torch

import torchsaver as ts

torch.manual_seed(0)
directory = tempfile.mkdtemp()
weight = torch.nn.Parameter(torch.zeros(3))
average = torch.zeros(3)

for _ in range(5):
    with torch.no_grad():
        weight.add_(torch.ones(3))
        average.lerp_(weight, 0.5)

# torchsaver: both go into the file, each under its own key
prefix = ts.Saver({"weight": weight, "weight/average": average}).save(
    os.path.join(directory, "ema.ckpt"), global_step=5
)

# torchsaver: evaluate on the averages: the raw parameter takes the value stored as "weight/average"
ts.Saver({"weight/average": weight}).restore(prefix)
print("evaluating on", weight.tolist())
assert torch.equal(weight.detach(), average)

# torchsaver: go on training on the raw weights
ts.Saver({"weight": weight}).restore(prefix)
print("training on  ", weight.tolist())
assert weight.tolist() == [5.0, 5.0, 5.0]
