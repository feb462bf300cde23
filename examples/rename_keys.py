"""Load weights saved under other names: a renaming is just another dict."""

import os
import tempfile

import torch
from torch import nn

import torchsaver as ts

torch.manual_seed(0)
directory = tempfile.mkdtemp()

# torchsaver: an old model, saved with TensorFlow-style keys
old = nn.Linear(4, 2)
prefix = ts.Saver({"dense/kernel": old.weight, "dense/bias": old.bias}).save(os.path.join(directory, "old.ckpt"))

# torchsaver: the new model calls the layer "head"; the dict says which stored key each parameter gets
new = nn.ModuleDict({"body": nn.Linear(8, 4), "head": nn.Linear(4, 2)})
renamed = {"dense/kernel": new["head"].weight, "dense/bias": new["head"].bias}
print(ts.Saver(renamed).restore(prefix).restored)
assert torch.equal(new["head"].weight, old.weight)

# torchsaver: asking for a key that is not there changes nothing, and the error names what is like it
try:
    ts.Saver({"dense/kernels": new["head"].weight}).restore(prefix)
except ts.MismatchError as error:
    print(type(error).__name__, error.missing, "nearest:", error.nearest["dense/kernels"][0])

# torchsaver: or skip what is missing, and be told
report = ts.Saver(new).restore(prefix, strict=False)
print("missing:", len(report.missing), "unused:", report.unused)
assert report.restored == ()
