"""A model of Keras goes to torch and back: its weights bit for bit, and what TensorFlow computes with torch's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from interop.ours import to_record, to_value
from interop.peer import TensorFlow
from torch import nn

import torchsaver as ts
from torchsaver import transfer
from torchsaver.variables.mapping.name_rules import Rules

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
RULES: Rules = {re.compile(r"gru_cell/"): ""}


class Convnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, (3, 2))
        self.bn = nn.BatchNorm2d(5, eps=1e-3)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.bn(self.conv(inputs.permute(0, 3, 1, 2))).relu()
        outputs: torch.Tensor = self.head(features.mean((2, 3)))
        return outputs


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.gru(inputs)[0][:, -1])
        return outputs


KINDS: dict[str, type[nn.Module]] = {"convnet": Convnet, "recurrent": Recurrent}


@pytest.fixture(scope="module", params=KINDS)
def trained(tensorflow: TensorFlow, tmp_path_factory: pytest.TempPathFactory, request: Any) -> dict[str, Any]:
    """Return a trained model of Keras: its checkpoints, by names and by objects, its weights, inputs and outputs."""
    place = tmp_path_factory.mktemp(request.param)
    prefixes = {"by_name": str(place / "names"), "by_objects": str(place / "objects")}
    return {"kind": request.param, **prefixes, **tensorflow("train_model", kind=request.param, **prefixes)}


def _module(trained: dict[str, Any], source: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return a torch module that was restored from one of the checkpoints, and how its names are mapped."""
    module = KINDS[trained["kind"]]()
    assignment_map = {"net/": transfer.from_tf(module, RULES)}
    plan = transfer.plan_transfer(trained[source], assignment_map)
    assert plan.is_complete, str(plan)
    ts.init_from_checkpoint(trained[source], assignment_map)
    return module.eval(), assignment_map


def _outputs(module: nn.Module, trained: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        outputs: torch.Tensor = module(to_value(trained["inputs"]))
    return outputs


@pytest.mark.parametrize("source", ["by_name", "by_objects"])
def test_torch_computes_what_keras_does(trained: dict[str, Any], source: str) -> None:
    module, _ = _module(trained, source)
    torch.testing.assert_close(_outputs(module, trained), to_value(trained["outputs"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["saver", "full names"])
def test_weights_return_bit_for_bit_by_name(
    tensorflow: TensorFlow, tmp_path: Path, trained: dict[str, Any], way: str
) -> None:
    _, assignment_map = _module(trained, "by_name")
    prefix = ts.save_tf_checkpoint(tmp_path / "back", transfer.map_names(trained["by_name"], assignment_map))
    computed = tensorflow("compute_model", kind=trained["kind"], prefix=prefix, way=way, inputs=trained["inputs"])
    assert computed["weights"] == trained["weights"]
    assert computed["outputs"] == trained["outputs"]


@pytest.mark.parametrize("way", ["saver", "full names", "objects"])
def test_tensorflow_computes_with_weights_that_torch_has_trained_on(
    tensorflow: TensorFlow, tmp_path: Path, trained: dict[str, Any], way: str
) -> None:
    source = "by_objects" if way == "objects" else "by_name"
    module, assignment_map = _module(trained, source)
    before = _outputs(module, trained)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        module(to_value(trained["inputs"])).square().sum().backward()
        optimizer.step()
    mapped: dict[str, Any] = dict(transfer.map_names(trained[source], assignment_map))
    if way == "objects":  # the graph, and the optimizer's values, are those that were there
        with ts.load_checkpoint(trained[source]) as reader:
            mapped.update({key: reader.get_tensor(key) for key in reader.keys() if key not in mapped})
        assert GRAPH in mapped
    prefix = ts.save_tf_checkpoint(tmp_path / "back", mapped)
    computed = tensorflow("compute_model", kind=trained["kind"], prefix=prefix, way=way, inputs=trained["inputs"])
    wanted = _outputs(module, trained)
    assert (wanted - before).abs().max() > 0.01
    torch.testing.assert_close(to_value(computed["outputs"]), wanted, rtol=1e-5, atol=1e-5)
    if way == "objects":
        with ts.load_checkpoint(trained[source]) as reader:
            kept = [reader.get_tensor(f"optimizer/_variables/{n}") for n in range(len(computed["optimizer"]))]
        assert computed["optimizer"] == [to_record(value) for value in kept]
