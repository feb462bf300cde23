"""Models migrated from TensorFlow compute what it did: the weights come by name and layout, and go back bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pytest
import torch
from corpus import CORPUS
from forward_models import Bert, FusedBert, KerasNet, KerasNetRowByRow, ResNet, linear, two_layers, unfilled
from torch import nn

import torchsaver as ts
from torchsaver import transfer
from torchsaver.formats.tensor_bytes import byte_view
from torchsaver.transfer import dense, flatten, from_tf

KERAS = ("keras2_adam_object", "keras2_legacy_adam_object", "keras2_save_weights", "keras3_adam_object")
EMA = "/ExponentialMovingAverage"


@dataclass(frozen=True)
class Migration:
    """How a model is filled from a recorded checkpoint.

    Attributes:
        case: The folder of the corpus.
        model: Makes the model.
        names: The assignment map that a user writes for it.
        recorded: {name of an output: name it is recorded by}, where that is another.
    """

    case: str
    model: Callable[[], nn.Module]
    names: Callable[[Any], Any] = from_tf
    recorded: dict[str, str] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return corpus.prefix(self.case)


def _resnet(model: ResNet) -> Any:
    rules = {
        "logits/": "head.",
        re.compile(r"block1/unit_1"): "units.0",  # TensorFlow counts from 1
        re.compile(r"block2/unit_1"): "units.1",
        re.compile(r"block3/unit_1"): "units.2",
        re.compile(r"^conv1"): "stem",
        re.compile(r"conv1"): "first",
        re.compile(r"conv2"): "second",
        re.compile(r"_bn/"): ".norm.",
        re.compile(r"/kernel"): ".conv.kernel",
    }
    return {"resnet/": from_tf(model, rules)}


def _slim(model: ResNet) -> Any:
    rules = {
        "logits/": "head.",
        re.compile(r"block1/unit_1/bottleneck_v1"): "units.0",
        re.compile(r"block2/unit_1/bottleneck_v1"): "units.1",
        re.compile(r"block3/unit_1/bottleneck_v1"): "units.2",
        re.compile(r"^conv1"): "stem",
        re.compile(r"conv1"): "first",
        re.compile(r"conv2"): "second",
        re.compile(r"/BatchNorm/"): ".norm.",
        re.compile(r"/weights"): ".conv.weights",
    }
    return {"resnet_v1_tiny/": from_tf(model, rules)}


def _bert(model: Bert) -> Any:
    rules = {re.compile(r"layer_(\d+)"): r"layer.\1", "cls/predictions/output_bias": "cls.predictions.decoder.bias"}
    return from_tf(model, rules)


def _fused_bert(model: FusedBert) -> Any:
    rules = {
        "bert/embeddings/": "embed.",
        "bert/pooler/dense/": "pool.",
        "cls/predictions/transform/dense/": "transform.0.",
        "cls/predictions/transform/LayerNorm/": "transform.2.",
        "cls/predictions/output_bias": "logits_bias",
        re.compile(r"bert/encoder/layer_(\d+)"): r"layers.\1",
        re.compile(r"attention/output/dense"): "self_attn.out_proj",
        re.compile(r"attention/output/LayerNorm"): "norm1",
        re.compile(r"intermediate/dense"): "linear1",
        re.compile(r"output/dense"): "linear2",
        re.compile(r"output/LayerNorm"): "norm2",
    }
    names: dict[str, Any] = {"/": from_tf(model, rules)}
    for number, layer in enumerate(model.layers):
        weights, biases = layer.self_attn.in_proj_weight.chunk(3), layer.self_attn.in_proj_bias.chunk(3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            scope = f"bert/encoder/layer_{number}/attention/self/{name}"
            names |= {f"{scope}/kernel": dense(weight), f"{scope}/bias": bias}
    return names


def _flattened(model: KerasNet) -> Any:
    return {"/": from_tf(model), "hid/kernel": dense.then(flatten(5, 5, 6))(model.hid.weight)}


def _by_path(model: KerasNetRowByRow) -> Any:
    layers = (model.conv_a, model.bn_a, model.conv_b, model.bn_b, model.hid, model.out)
    return {f"model/layer_with_weights-{number}/": from_tf(layer) for number, layer in enumerate(layers)}


def _averages(model: nn.Module) -> Any:
    rules = {"dense_1/": "0.", "dense_2/": "2."}
    averaged = {re.compile(rf"(?<!{EMA})$"): None, re.compile(f"{EMA}$"): "", **rules}
    return from_tf(model, averaged)


MIGRATIONS = {
    "resnet": Migration("resnet_like", lambda: ResNet(eps=1e-3), _resnet),
    "slim": Migration("slim_resnet_v1fmt", lambda: ResNet(eps=1e-5), _slim),
    "bert": Migration("bert_like", Bert, _bert),
    "bert of torch's own layers": Migration("bert_like", FusedBert, _fused_bert),
    **{case: Migration(case, KerasNet, _flattened) for case in (*KERAS, "savedmodel_keras2")},
    "keras flattening row by row": Migration("keras3_adam_object", KerasNetRowByRow),
    "keras by paths": Migration("keras2_adam_object", KerasNetRowByRow, _by_path),
    "savedmodel of tf1": Migration("savedmodel_tf1", linear, lambda model: {"lin/": from_tf(model[0])}),
    "tf1": Migration("tf1_adam_ema", two_layers, lambda model: from_tf(model, {"dense_1/": "0.", "dense_2/": "2."})),
    "tf1 averages": Migration("tf1_adam_ema", two_layers, _averages, {"": "ema"}),
}
every_migration = pytest.mark.parametrize("migration", MIGRATIONS.values(), ids=MIGRATIONS)


def recorded(case: str, name: str = "") -> torch.Tensor:
    """Return an output that TensorFlow computed."""
    return torch.from_numpy(np.load(CORPUS / case / f"forward_output{'_' * bool(name)}{name}.npy"))


def largest_differences(migration: Migration, model: nn.Module) -> dict[str, float]:
    """Return how far a model's outputs are from TensorFlow's, by their recorded names; NaN is far."""
    with torch.no_grad():
        outputs = model(torch.from_numpy(np.load(CORPUS / migration.case / "forward_input.npy")))
    differences = {}
    for name, output in outputs.items():
        wanted = recorded(migration.case, migration.recorded.get(name, name))
        assert output.shape == wanted.shape
        differences[migration.recorded.get(name, name)] = (output - wanted).abs().max().item()
    return differences


def require_same_outputs(migration: Migration, model: nn.Module) -> None:
    differences = largest_differences(migration, model)
    assert differences
    assert all(difference <= 1e-5 for difference in differences.values()), differences


def test_every_recorded_output_is_compared() -> None:
    compared = {
        (migration.case, name)
        for migration in MIGRATIONS.values()
        for name in largest_differences(migration, migration.model())
    }
    outputs = CORPUS.glob("*/forward_output*.npy")
    assert compared == {
        (path.parent.name, path.stem.removeprefix("forward_output").removeprefix("_")) for path in outputs
    }


@every_migration
def test_model_restored_through_from_tf_computes_what_tensorflow_did(migration: Migration) -> None:
    model = unfilled(migration.model())
    report = ts.init_from_checkpoint(migration.prefix, migration.names(model))
    assert not report.missing
    require_same_outputs(migration, model)


@every_migration
def test_model_restored_by_a_saver_of_the_mapped_names_computes_what_tensorflow_did(migration: Migration) -> None:
    model = unfilled(migration.model())
    ts.Saver(transfer.map_names(migration.prefix, migration.names(model))).restore(migration.prefix)
    require_same_outputs(migration, model)


@every_migration
def test_plan_is_complete_and_changes_nothing(migration: Migration) -> None:
    model = unfilled(migration.model())
    plan = transfer.plan_transfer(migration.prefix, migration.names(model))
    assert plan.is_complete, str(plan)
    assert len(plan.rows) == len(plan.links) == len(transfer.map_names(migration.prefix, migration.names(model)))
    assert all(parameter.isnan().all() for parameter in model.parameters())


def _bits(save_path: str, keys: list[str]) -> dict[str, tuple[Any, ...]]:
    with ts.load_checkpoint(save_path) as reader:
        values = {key: reader.get_tensor(key) for key in keys}
    return {key: (value.dtype, value.shape, bytes(byte_view(value))) for key, value in values.items()}


@every_migration
def test_model_saved_under_tensorflows_keys_has_the_very_bits_it_was_restored_from(
    migration: Migration, tmp_path: Path
) -> None:
    model, other = migration.model(), unfilled(migration.model())
    names = transfer.map_names(migration.prefix, migration.names(model))
    ts.Saver(names).restore(migration.prefix)
    saved = ts.Saver(names).save(str(tmp_path / "again.ckpt"))
    assert [key for key, _ in ts.list_variables(saved)] == sorted(names)
    assert _bits(saved, list(names)) == _bits(migration.prefix, list(names))
    ts.Saver(transfer.map_names(migration.prefix, migration.names(other))).restore(saved)
    require_same_outputs(migration, other)


@every_migration
def test_model_saved_as_a_tensorflow_checkpoint_has_the_very_bits_it_was_restored_from(
    migration: Migration, tmp_path: Path
) -> None:
    model = unfilled(migration.model())
    names = transfer.map_names(migration.prefix, migration.names(model))
    ts.Saver(names).restore(migration.prefix)
    saved = ts.save_tf_checkpoint(str(tmp_path / "again.ckpt"), names)
    assert _bits(saved, list(names)) == _bits(migration.prefix, list(names))


@every_migration
def test_migrated_model_is_an_ordinary_checkpoint_of_pytorch(migration: Migration, tmp_path: Path) -> None:
    model, other = migration.model(), unfilled(migration.model())
    ts.init_from_checkpoint(migration.prefix, migration.names(model))
    ts.Saver(other).restore(ts.Saver(model).save(str(tmp_path / "model.ckpt")))
    require_same_outputs(migration, other)
