"""A training state of torch.save becomes a checkpoint of ours, from which a Saver restores all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conversion.contents import contents
from torch import nn

import torchsaver as ts
from torchsaver.conversion.convert import convert_checkpoint
from torchsaver.variables.mapping.rules_file import parse_rules


def net(names: tuple[str, ...] = ("a", "b", "c")) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for name in names})


def trained(path: Path, *, named: bool = False, **more: Any) -> tuple[nn.Module, Any, Any]:
    """Train a model a little, and save it as everybody does."""
    model = net()
    optimizer = torch.optim.AdamW(model.named_parameters() if named else model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    optimizer.step()
    scheduler.step()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save({**states, **more}, path)
    return model, optimizer, scheduler


def first_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, list[Any]]:
    return {name: optimizer.state[parameter]["exp_avg"].tolist() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("max_shard_bytes", [None, 200])
def test_converted_training_state_is_restored_by_a_saver_whose_modules_stand_otherwise(
    max_shard_bytes: int | None, tmp_path: Path
) -> None:
    model, optimizer, scheduler = trained(tmp_path / "ckpt.pt", epoch=3, loss=0.5)
    done = convert_checkpoint(tmp_path / "ckpt.pt", tmp_path / "dst", max_shard_bytes=max_shard_bytes)
    assert done.left_out == {}
    other = net(("c", "a", "b"))
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.5)
    other_scheduler = torch.optim.lr_scheduler.StepLR(other_optimizer, 5)
    saver = ts.Saver({"model": other, "optimizer": other_optimizer, "scheduler": other_scheduler})
    report = saver.restore(tmp_path / "dst")
    assert (report.unused, report.metadata) == ((), {"epoch": 3, "loss": 0.5})
    assert first_moments(model, optimizer) == first_moments(other, other_optimizer)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert scheduler.state_dict() == other_scheduler.state_dict()
    assert ts.verify_checkpoint(tmp_path / "dst").verdict == "valid"


@pytest.mark.parametrize("named", [False, True])
def test_converted_trees_are_those_that_a_saver_writes(*, named: bool, tmp_path: Path) -> None:
    model, optimizer, scheduler = trained(tmp_path / "ckpt.pt", named=named)
    convert_checkpoint(tmp_path / "ckpt.pt", tmp_path / "dst")
    prefix = ts.Saver({"model": model, "optimizer": optimizer, "scheduler": scheduler}).save(tmp_path / "own")
    assert contents(tmp_path / "dst") == contents(str(prefix))
    with ts.load_checkpoint(tmp_path / "dst") as reader, ts.load_checkpoint(str(prefix)) as own:
        assert reader.object_trees == own.object_trees
        assert reader.aliases == own.aliases


def test_state_of_lbfgs_is_written_as_a_saver_does(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(lambda: torch.tensor(1.0))  # type: ignore[no-untyped-call, unused-ignore]
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "m.pt")
    convert_checkpoint(tmp_path / "m.pt", tmp_path / "dst")
    prefix = ts.Saver({"model": model, "optimizer": optimizer}).save(tmp_path / "own")
    with ts.load_checkpoint(tmp_path / "dst") as reader, ts.load_checkpoint(str(prefix)) as own:
        assert reader.object_trees == own.object_trees


def test_optimizer_whose_parameters_cannot_be_told_is_left_out_with_the_reason(tmp_path: Path) -> None:
    model = nn.ModuleDict({name: nn.Linear(3, 3) for name in "abc"})
    optimizer = torch.optim.SGD(model["b"].parameters(), momentum=0.9)
    for parameter in model["b"].parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "m.pt")
    done = convert_checkpoint(tmp_path / "m.pt", tmp_path / "dst")
    assert done.left_out.keys() == {"optimizer"}
    assert "its 2 parameters have no names, and there is no single way" in done.left_out["optimizer"]
    assert "Adam(model.named_parameters())" in done.left_out["optimizer"]
    assert all(row.key.startswith("model.") for row in done.rows)
    assert len(done.rows) == 6


def test_model_by_its_usual_key_is_taken_before_an_average_of_it(tmp_path: Path) -> None:
    model, optimizer, _ = trained(tmp_path / "one.pt")
    state = torch.load(tmp_path / "one.pt", weights_only=True)
    torch.save({"ema": state["model"], **state}, tmp_path / "m.pt")
    convert_checkpoint(tmp_path / "m.pt", tmp_path / "dst")
    other = net()
    other_optimizer = torch.optim.AdamW(other.parameters())
    ts.Saver({"model": other, "optimizer": other_optimizer}).restore(tmp_path / "dst")
    assert first_moments(model, optimizer) == first_moments(other, other_optimizer)
    twins = {"one": state["model"], "two": {key: each.clone() for key, each in state["model"].items()}}
    torch.save({**twins, "optimizer": state["optimizer"]}, tmp_path / "twins.pt")
    left_out = convert_checkpoint(tmp_path / "twins.pt", tmp_path / "twins").left_out
    assert "may be those of 'one', 'two'" in left_out["optimizer"]


def test_dry_run_names_the_parameters_and_writes_nothing(tmp_path: Path) -> None:
    trained(tmp_path / "ckpt.pt")
    done = convert_checkpoint(tmp_path / "ckpt.pt", tmp_path / "dst", dry_run=True)
    keys = [row.key for row in done.rows]
    assert "optimizer.model.a.0.weight.exp_avg" in keys
    assert not any(key.startswith("optimizer.state") for key in keys)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


def test_rules_and_the_other_format_take_tensors_by_their_paths(tmp_path: Path) -> None:
    trained(tmp_path / "ckpt.pt", epoch=1)
    rules = parse_rules('[[rename]]\nscope = "model."\nto = ""')
    done = convert_checkpoint(tmp_path / "ckpt.pt", tmp_path / "dst", rules=rules)
    assert {"a.0.weight", "optimizer.state.0.exp_avg"} <= {row.key for row in done.rows}
    assert done.left_out == {"optimizer.param_groups": "no tensor", "scheduler": "no tensor"}
    done = convert_checkpoint(tmp_path / "ckpt.pt", tmp_path / "tf", to="tf")
    assert done.left_out == {"optimizer.param_groups": "no tensor", "scheduler": "no tensor", "epoch": "no tensor"}


def test_state_that_has_no_place_in_a_checkpoint_is_left_out_with_the_reason(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "odd": {1: torch.ones(1), "1": torch.ones(1), "n": 1}}, tmp_path / "m.pt")
    done = convert_checkpoint(tmp_path / "m.pt", tmp_path / "dst")
    assert done.left_out["odd"].startswith("'odd.1' is the key of two tensors inside one object")
    assert [row.key for row in done.rows] == ["w"]
