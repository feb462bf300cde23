"""describe_checkpoint: a checkpoint without its values."""

from pathlib import Path

import pytest
import torch

import torchsaver as ts
from torchsaver.inspection.description import describe_checkpoint
from torchsaver.open_checkpoint import open_checkpoint


def test_description_holds_aliases_and_objects(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ts.load_checkpoint(ts.Saver({"m": model, "o": optimizer}).save(tmp_path / "m", 3)) as reader:
        described = describe_checkpoint(reader)
    assert described.aliases == {"m.b.weight": "m.a.weight"}
    assert (described.objects, described.global_step, described.elements, described.nbytes) == (("o",), 3, 8, 32)


def test_description_of_one_key_has_only_that_and_its_other_names(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    prefix = ts.Saver(model).save(tmp_path / "m")
    with open_checkpoint(prefix) as checkpoint:
        by_alias = describe_checkpoint(checkpoint, "b.weight")
        assert ([tensor.key for tensor in by_alias.tensors], by_alias.aliases) == (
            ["a.weight"],
            {"b.weight": "a.weight"},
        )
        assert describe_checkpoint(checkpoint, "a.bias").aliases == {}
        with pytest.raises(ts.CheckpointKeyError, match=r"'a\.bias'"):
            describe_checkpoint(checkpoint, "a.bais")


def test_description_is_the_same_with_and_without_torch(tmp_path: Path) -> None:
    prefix = ts.Saver({"z": torch.ones(2, dtype=torch.complex128), "h": torch.ones(())}).save(tmp_path / "m", 1)
    with open_checkpoint(prefix) as checkpoint, ts.load_checkpoint(prefix) as reader:
        assert describe_checkpoint(checkpoint) == describe_checkpoint(reader)
