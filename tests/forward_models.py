"""The models of the corpus' forward cases as ordinary PyTorch modules, which know nothing of TensorFlow's names.

Each takes the recorded input as it is and returns the recorded outputs by name ("" for forward_output.npy).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

Outputs = dict[str, torch.Tensor]


def pad_same(x: torch.Tensor, size: int, stride: int, value: float = 0.0) -> torch.Tensor:
    """Pad as TensorFlow's SAME does: to ceil(n / stride) outputs, the larger half at the end."""
    height, width = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[-2:])
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(pad_same(x, self.kernel_size[0], self.stride[0]))


# ---- a residual net: resnet_like, slim_resnet_v1fmt


class ConvNorm(nn.Sequential):
    """A convolution without bias, normalized."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, eps: float) -> None:
        super().__init__()
        self.conv = SameConv2d(inputs, outputs, size, stride, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=eps)


class Unit(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution where the stride is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int, eps: float) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride, eps)
        self.second = ConvNorm(outputs, outputs, 3, 1, eps)
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, eps) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 8, 5, 2, eps)
        self.units = nn.Sequential(Unit(8, 8, 1, eps), Unit(8, 12, 2, eps), Unit(12, 16, 2, eps))
        self.head = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> Outputs:
        x = F.relu(self.stem(images.permute(0, 3, 1, 2)))
        x = self.units(F.max_pool2d(pad_same(x, 3, 2, value=-torch.inf), 3, 2))
        return {"": self.head(x.mean((2, 3))), "r31": x.permute(0, 2, 3, 1)}


# ---- BERT under Hugging Face's names, its decoder tied to the table of words


def _dense_norm(inputs: int, outputs: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(inputs, outputs), "LayerNorm": nn.LayerNorm(outputs, eps=1e-12)})


class BertEmbeddings(nn.Module):
    def __init__(self, words: int, positions: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(words, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, tokens: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        positions = self.position_embeddings(torch.arange(tokens.shape[1]))
        return self.LayerNorm(self.word_embeddings(tokens) + positions + self.token_type_embeddings(types))


class BertLayer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        projections = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": projections, "output": _dense_norm(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _dense_norm(inner, width)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        projections = self.attention["self"].values()
        query, key, value = (each(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in projections)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
        x = self.attention["output"].LayerNorm(x + self.attention["output"].dense(seen))
        return self.output.LayerNorm(x + self.output.dense(F.gelu(self.intermediate.dense(x))))


class Bert(nn.Module):
    def __init__(self, words: int = 61, positions: int = 32, width: int = 32, inner: int = 64, heads: int = 4) -> None:
        super().__init__()
        embeddings = BertEmbeddings(words, positions, width)
        layers = nn.ModuleList(BertLayer(width, inner, heads) for _ in range(2))
        pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})
        encoder = nn.ModuleDict({"layer": layers})
        self.bert = nn.ModuleDict({"embeddings": embeddings, "encoder": encoder, "pooler": pooler})
        predictions = nn.ModuleDict({"transform": _dense_norm(width, width), "decoder": nn.Linear(width, words)})
        predictions.decoder.weight = embeddings.word_embeddings.weight
        self.cls = nn.ModuleDict({"predictions": predictions})

    def forward(self, inputs: torch.Tensor) -> Outputs:
        tokens, mask, types = inputs
        x = self.bert.embeddings(tokens, types)
        for layer in self.bert.encoder.layer:
            x = layer(x, (1.0 - mask[:, None, None].float()) * -10000.0)
        head = self.cls.predictions
        logits = head.decoder(head.transform.LayerNorm(F.gelu(head.transform.dense(x))))
        return {"": x, "pooled": torch.tanh(self.bert.pooler.dense(x[:, 0])), "mlm": logits}


class FusedBert(nn.Module):
    """The same of torch's own TransformerEncoderLayer, which has query, key and value in one weight."""

    def __init__(self, words: int = 61, positions: int = 32, width: int = 32, inner: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.embed = BertEmbeddings(words, positions, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, inner, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
            )
            for _ in range(2)
        )
        self.pool = nn.Linear(width, width)
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12))
        self.logits_bias = nn.Parameter(torch.zeros(words))

    def forward(self, inputs: torch.Tensor) -> Outputs:
        tokens, mask, types = inputs
        x = self.embed(tokens, types)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=mask == 0)
        logits = F.linear(self.transform(x), self.embed.word_embeddings.weight, self.logits_bias)
        return {"": x, "pooled": torch.tanh(self.pool(x[:, 0])), "mlm": logits}


# ---- a small convolutional net: the five of Keras


class KerasNet(nn.Module):
    """The images are flattened channel by channel, as torch does: other columns of `hid` than TensorFlow has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_a = SameConv2d(3, 4, 3, stride=2)
        self.bn_a = nn.BatchNorm2d(4, eps=1e-3)
        self.conv_b = nn.Conv2d(4, 6, 3, bias=False)
        self.bn_b = nn.BatchNorm2d(6, eps=1e-5)
        self.hid = nn.Linear(6 * 5 * 5, 7)
        self.out = nn.Linear(7, 3)

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    def forward(self, images: torch.Tensor) -> Outputs:
        x = F.relu(self.bn_a(self.conv_a(images.permute(0, 3, 1, 2))))
        x = self.flatten(F.relu(self.bn_b(self.conv_b(x))))
        return {"": self.out(torch.tanh(self.hid(x)))}


class KerasNetRowByRow(KerasNet):
    """The images are flattened as TensorFlow does."""

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


# ---- few layers


class Layers(nn.Sequential):
    """Modules one after the other."""

    def forward(self, x: torch.Tensor) -> Outputs:
        return {"": super().forward(x)}


def linear() -> Layers:
    return Layers(nn.Linear(3, 2))


def two_layers() -> Layers:
    return Layers(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def unfilled(model: nn.Module) -> nn.Module:
    """Return the model in evaluation mode, all it has to get from a checkpoint set to NaN."""
    tensors: Sequence[torch.Tensor] = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.data.fill_(torch.nan)
    return model.eval()
