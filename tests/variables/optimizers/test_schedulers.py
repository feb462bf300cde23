"""A scheduler's lists go with the groups of its optimizer: reordered, split, or with a new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import torchsaver as ts

RATES = {"body": 0.001, "head": 0.1, "new": 0.7}
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.LambdaLR(o, lambda epoch: 0.7**epoch)]
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, [group["lr"] for group in o.param_groups], [group["lr"] * 9 for group in o.param_groups], step_size_up=2
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(
        o, min_lr=[group["lr"] / 3 for group in o.param_groups], patience=0
    ),
}


def made(kind: str, groups: Sequence[str]) -> tuple[dict[str, torch.Tensor], Any, Any]:
    """Return tensors, an optimizer with a group for each, and its scheduler."""
    tensors = {name: torch.ones(2) for name in groups}
    groups_now = [{"params": [tensor], "lr": RATES[name]} for name, tensor in tensors.items()]
    optimizer = torch.optim.SGD(groups_now, lr=1.0, momentum=0.9)
    return tensors, optimizer, SCHEDULERS[kind](optimizer)


def rates(parts: tuple[dict[str, torch.Tensor], Any, Any], steps: int) -> list[dict[str, float]]:
    """Return the learning rate of each tensor after each of some steps."""
    tensors, optimizer, scheduler = parts
    found = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        found.append(dict(zip(tensors, [group["lr"] for group in optimizer.param_groups], strict=True)))
    return found


def saver(parts: tuple[dict[str, torch.Tensor], Any, Any], order: str = "os") -> ts.Saver:
    tensors, optimizer, scheduler = parts
    objects = {"o": optimizer, "s": scheduler}
    return ts.Saver({**tensors, **{key: objects[key] for key in order}})


@pytest.mark.parametrize("order", ["os", "so"])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_reordered_groups_keep_their_learning_rates(kind: str, order: str, tmp_path: Path) -> None:
    saved, live = made(kind, ["body", "head"]), made(kind, ["head", "body"])
    rates(saved, 4)
    saver(live, order).restore(saver(saved).save(tmp_path / "m"))
    assert rates(live, 5) == rates(saved, 5)


def test_group_of_new_parameters_keeps_its_own_and_the_others_theirs(tmp_path: Path) -> None:
    saved, live = made("LambdaLR", ["body", "head"]), made("LambdaLR", ["new", "head", "body"])
    rates(saved, 4)
    tensors, optimizer, scheduler = live
    ts.Saver({"o": optimizer, "s": scheduler, **tensors}).restore(saver(saved).save(tmp_path / "m"), strict=False)
    assert scheduler.base_lrs == [RATES["new"], RATES["head"], RATES["body"]]
    assert [{**each, "new": 0} for each in rates(live, 3)] == [{**each, "new": 0} for each in rates(saved, 3)]


def test_group_that_is_split_gives_its_rate_to_each_part(tmp_path: Path) -> None:
    tensors = {name: torch.ones(2) for name in "ab"}
    one = torch.optim.SGD(list(tensors.values()), lr=0.5)
    two = torch.optim.SGD([{"params": [tensor]} for tensor in tensors.values()], lr=0.5)
    schedulers = [lr_scheduler.ExponentialLR(each, 0.5) for each in (one, two)]
    prefix = ts.Saver({**tensors, "o": one, "s": schedulers[0]}).save(tmp_path / "m")
    ts.Saver({**tensors, "o": two, "s": schedulers[1]}).restore(prefix)
    two.step()
    schedulers[1].step()
    assert [group["lr"] for group in two.param_groups] == [0.25, 0.25]
