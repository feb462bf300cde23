"""Look into a checkpoint without its model: keys, shapes, one value, some rows, in Python and on the command line."""

import os
import subprocess
import sys
import tempfile

import torch
from torch import nn

import torchsaver as ts

torch.manual_seed(0)
os.chdir(tempfile.mkdtemp())
model = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 2))
ts.Saver(model).save("run/model.ckpt", global_step=7, metadata={"val_loss": 0.25, "data": "digits-v2"})

# torchsaver: a reader knows keys, shapes, dtypes, step and metadata from the header alone
with ts.load_checkpoint("run") as reader:
    for key, shape in reader.get_variable_to_shape_map().items():
        print(key, shape, reader.get_variable_to_dtype_map()[key])
    print("step", reader.global_step, "metadata", reader.metadata)
    rows = reader.get_slice("0.weight")[10:12]  # torchsaver: only these two rows are read
    assert torch.equal(rows, model[0].weight[10:12])

# torchsaver: one value, by its key
assert torch.equal(ts.load_variable("run", "1.bias"), model[1].bias)

# torchsaver: the same on the command line
subprocess.run([sys.executable, "-m", "torchsaver", "inspect", "run", "--key", "1.bias", "--values"], check=True)
