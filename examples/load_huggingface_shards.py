"""Restore from a checkpoint in the Hugging Face layout: shards and an index that another program wrote."""

import json
import os
import tempfile

import torch
from safetensors.torch import save_file
from torch import nn

import torchsaver as ts

torch.manual_seed(0)
directory = tempfile.mkdtemp()
source = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

# as a hub's model repository holds it: two shards, and an index that says which key is in which
shards = {
    "model-00001-of-00002.safetensors": ["0.weight", "0.bias"],
    "model-00002-of-00002.safetensors": ["2.weight", "2.bias"],
}
for name, keys in shards.items():
    save_file({key: source.state_dict()[key] for key in keys}, os.path.join(directory, name), metadata={"format": "pt"})
weight_map = {key: name for name, keys in shards.items() for key in keys}
with open(os.path.join(directory, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
    json.dump({"metadata": {"total_size": 232}, "weight_map": weight_map}, file)

# torchsaver: the prefix stands for the index and its shards; values go straight into the model's own memory
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
report = ts.Saver(model).restore(os.path.join(directory, "model"))
print("restored", ", ".join(report.restored))
assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())

# torchsaver: and it is written in the same layout with max_shard_bytes
ts.Saver(model, max_shard_bytes=150).save(os.path.join(directory, "mine"))
print(*sorted(name for name in os.listdir(directory) if name.startswith("mine")), sep="\n")
