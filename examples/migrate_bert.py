"""TensorFlow's BERT into PyTorch, under Hugging Face's names: two rules, one line, and TensorFlow's own outputs."""

import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import Embedding, LayerNorm, Linear, Module, ModuleDict, ModuleList, functional

import torchsaver as ts
from torchsaver import transfer

CASE = Path(__file__).parent.parent / "tests" / "data" / "corpus" / "bert_like"


def _dense_norm(inputs: int) -> ModuleDict:
    return ModuleDict({"dense": Linear(inputs, 32), "LayerNorm": LayerNorm(32, 1e-12)})


class _Layer(Module):
    def __init__(self) -> None:
        super().__init__()
        heads = ModuleDict({name: Linear(32, 32) for name in ("query", "key", "value")})
        self.attention = ModuleDict({"self": heads, "output": _dense_norm(32)})
        self.intermediate, self.output = ModuleDict({"dense": Linear(32, 64)}), _dense_norm(64)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        heads = [linear(x).unflatten(-1, (4, 8)).transpose(1, 2) for linear in self.attention["self"].values()]
        seen = functional.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self.attention.output.LayerNorm(x + self.attention.output.dense(seen))
        return self.output.LayerNorm(x + self.output.dense(functional.gelu(self.intermediate.dense(x))))


sizes = {"word": 61, "position": 32, "token_type": 2}
embeddings = ModuleDict({f"{name}_embeddings": Embedding(size, 32) for name, size in sizes.items()})
embeddings["LayerNorm"] = LayerNorm(32, 1e-12)
layers, pooler = ModuleList([_Layer(), _Layer()]), ModuleDict({"dense": Linear(32, 32)})
bert = ModuleDict({"embeddings": embeddings, "encoder": ModuleDict({"layer": layers}), "pooler": pooler})
head = ModuleDict({"transform": _dense_norm(32), "decoder": Linear(32, 61)})
head.decoder.weight = embeddings.word_embeddings.weight  # one table for the words that go in and come out
model = ModuleDict({"bert": bert, "cls": ModuleDict({"predictions": head})})

rules = {re.compile(r"layer_(\d+)"): r"layer.\1", "cls/predictions/output_bias": "cls.predictions.decoder.bias"}
plan = transfer.plan_transfer(CASE / "bert_model.ckpt-4", transfer.from_tf(model, rules))  # torchsaver: a dry run
print(*str(plan).splitlines()[:10], sep="\n")
ts.init_from_checkpoint(CASE / "bert_model.ckpt-4", transfer.from_tf(model, rules))  # torchsaver: all, or an error

tokens, mask, types = torch.from_numpy(np.load(CASE / "forward_input.npy"))
x = embeddings.word_embeddings(tokens) + embeddings.position_embeddings.weight[: tokens.shape[1]]
x = embeddings.LayerNorm(x + embeddings.token_type_embeddings(types))
for layer in layers:
    x = layer(x, mask.bool()[:, None, None])
logits = head.decoder(head.transform.LayerNorm(functional.gelu(head.transform.dense(x))))
for name, output in {"": x, "_pooled": pooler.dense(x[:, 0]).tanh(), "_mlm": logits}.items():
    difference = (output - torch.from_numpy(np.load(CASE / f"forward_output{name}.npy"))).abs().max().item()
    print(f"forward_output{name}: largest difference from TensorFlow's {difference:.1e}")
    assert difference < 1e-5
print(ts.Saver(model).save(Path(tempfile.mkdtemp(), "bert.ckpt")))  # torchsaver: from here on, a PyTorch checkpoint
