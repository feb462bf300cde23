"""What is saved and restored: names, shapes and dtypes, of which every interpreter makes its own values."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Shapes = dict[str, tuple[int, ...]]
Scale = Literal["smoke", "quick", "full"]


@dataclass(frozen=True)
class Workload:
    """Tensors to save.

    Attributes:
        name: As given on the command line.
        title: For tables.
        shapes: Names and shapes.
        dtype: Of all of them.
        has_moments: Each has two more of its shape, and a scalar, as Adam has.
        has_views: Every other matrix is transposed in memory, and two names share one tensor.
    """

    name: str
    title: str
    shapes: Shapes
    dtype: Literal["float32", "bfloat16"] = "float32"
    has_moments: bool = False
    has_views: bool = False


@dataclass(frozen=True)
class Transformer:
    """The sizes of a language model."""

    width: int
    feed_forward: int
    layers: int
    vocabulary: int

    def shapes(self) -> Shapes:
        """Return the shapes of its parameters, nine for each layer and two more."""
        width, feed_forward = self.width, self.feed_forward
        layer: Shapes = {
            **{f"self_attn.{which}_proj.weight": (width, width) for which in "qkvo"},
            "mlp.gate_proj.weight": (feed_forward, width),
            "mlp.up_proj.weight": (feed_forward, width),
            "mlp.down_proj.weight": (width, feed_forward),
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
        }
        layers = {f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}
        return {"model.embed_tokens.weight": (self.vocabulary, width), **layers, "model.norm.weight": (width,)}


@dataclass(frozen=True)
class Sizes:
    """How large the workloads of one scale are."""

    fp32: Transformer
    bf16: Transformer
    adam: Transformer
    strided: Transformer
    small_tensors: int

    def workloads(self) -> list[Workload]:
        """Return all of them, in the order in which they are run."""
        return [
            Workload("fp32", "a language model in fp32", self.fp32.shapes()),
            Workload("bf16", "a language model in bf16", self.bf16.shapes(), dtype="bfloat16"),
            Workload("adam", "a model with the moments of Adam", self.adam.shapes(), has_moments=True),
            Workload("strided", "a model with transposed and tied tensors", self.strided.shapes(), has_views=True),
            Workload("small", f"{self.small_tensors:,} small tensors", small_shapes(self.small_tensors)),
        ]


SIZES: dict[Scale, Sizes] = {
    "full": Sizes(
        fp32=Transformer(960, 2560, 32, 32000),  # 1.54 GB
        bf16=Transformer(960, 2560, 64, 32000),  # 1.48 GB
        adam=Transformer(960, 2560, 2, 32000),  # 0.63 GB with its moments
        strided=Transformer(960, 2560, 8, 32000),  # 0.48 GB
        small_tensors=20_000,
    ),
    "quick": Sizes(
        fp32=Transformer(512, 1408, 8, 8000),  # 120 MB
        bf16=Transformer(512, 1408, 16, 8000),
        adam=Transformer(512, 1408, 2, 8000),
        strided=Transformer(512, 1408, 4, 8000),
        small_tensors=4_000,
    ),
    "smoke": Sizes(
        fp32=Transformer(16, 32, 1, 64),
        bf16=Transformer(16, 32, 1, 64),
        adam=Transformer(16, 32, 1, 64),
        strided=Transformer(16, 32, 1, 64),
        small_tensors=20,
    ),
}


def small_shapes(count: int) -> Shapes:
    """Return the shapes of `count` vectors of 256 to 1024 elements, the same ones each time."""
    sizes = random.Random(0)
    return {f"layers.{i // 100}.block.{i % 100}.weight": (sizes.randint(256, 1024),) for i in range(count)}


def find_workload(name: str, scale: Scale) -> Workload:
    """Return the workload of this name.

    Raises:
        KeyError: There is none.
    """
    return {workload.name: workload for workload in SIZES[scale].workloads()}[name]
