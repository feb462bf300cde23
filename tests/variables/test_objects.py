"""State trees go through JSON and back with exact types, and a refused state leaves every object as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from variables.states import Holder, described, round_trip

import torchsaver as ts
from torchsaver.errors import VarListError
from torchsaver.formats.manifest import Manifest
from torchsaver.storage.checkpoint_files import write_checkpoint
from torchsaver.variables.objects import ObjectRefusedError, gather, loaded
from torchsaver.variables.optimizers.named_optimizer import NamedOptimizer
from torchsaver.variables.var_list import Slots


def test_gather_tells_every_tensor_that_cannot_be_stored_and_every_key_that_stands_twice() -> None:
    key = "opt.inside"
    tensors = {key: torch.zeros(1), "meta": torch.zeros(1, device="meta")}
    slots = Slots(tensors, {}, {"opt": Holder({"inside": torch.zeros(1)})})
    with pytest.raises(VarListError) as raised:
        gather(slots)
    assert [problem.split()[0] for problem in raised.value.problems] == [f"'{key}'", "'meta'"]


# ---- hostile trees


@pytest.mark.parametrize(
    "tree", [{"dict": 3}, {"complex": []}, {"pickle": "x"}, {"tensor": "not there"}, {"tensor": 3}]
)
def test_restore_of_a_hostile_tree_is_an_error_of_ours_and_changes_nothing(tmp_path: Path, tree: Any) -> None:
    prefix = str(tmp_path / "m")
    write_checkpoint(prefix, {"w": torch.ones(1)}, Manifest(objects={"o": [tree]}))
    holder, w = Holder("old"), torch.zeros(1)
    with pytest.raises(ts.TorchSaverError):
        ts.Saver({"o": holder, "w": w}).restore(prefix)
    assert (holder.state, w.item()) == ("old", 0.0)


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


def _train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(torch.linspace(-1, 1, 6).reshape(2, 3)).square().sum()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3),
    "named": lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stepped", [True, False])
def test_optimizer_through_a_checkpoint_goes_on_as_the_one_that_was_saved(
    tmp_path: Path, name: str, stepped: bool
) -> None:
    model, twin = _model(), _model()
    optimizer, other = (OPTIMIZERS[name](m.parameters()) for m in (model, twin))
    _train(model, optimizer)
    prefix = ts.Saver({"model": model, "opt": optimizer}).save(tmp_path / "m")
    if stepped:
        _train(twin, other, 3)
    ts.Saver({"model": twin, "opt": other}).restore(prefix)
    assert described(other.state_dict()) == described(optimizer.state_dict())
    _train(model, optimizer)
    _train(twin, other)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_optimizer_saved_before_its_first_step_clears_a_stepped_one(tmp_path: Path) -> None:
    model = _model()
    fresh, stepped = (torch.optim.Adam(model.parameters()) for _ in range(2))
    prefix = ts.Saver({"opt": fresh}, names_from=model).save(tmp_path / "m")
    _train(model, stepped)
    ts.Saver({"opt": stepped}, names_from=model).restore(prefix)
    assert stepped.state_dict()["state"] == {}


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=20),
    "multi_step": lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 5]),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, cycle_momentum=False),
    "plateau": lr_scheduler.ReduceLROnPlateau,
    "chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.StepLR(o, 2), lr_scheduler.ExponentialLR(o, 0.9)]),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_state_through_json_goes_on_as_the_one_that_was_saved(name: str) -> None:
    model = _model()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5) for _ in range(2)]
    scheduler, other = (SCHEDULERS[name](optimizer) for optimizer in optimizers)
    arguments = (1.0,) if name == "plateau" else ()
    for optimizer in optimizers:
        optimizer.step()
    for _ in range(3):
        scheduler.step(*arguments)
    optimizers[1].load_state_dict(round_trip(optimizers[0].state_dict()))
    other.load_state_dict(round_trip(scheduler.state_dict()))
    for each in (scheduler, other):
        each.step(*arguments)
    assert other.get_last_lr() == scheduler.get_last_lr()
    assert not math.isnan(other.get_last_lr()[0])


# ---- all or nothing


class Picky(Holder):
    """Refuses some states, half done."""

    def __init__(self, state: Any, accepts: tuple[Any, ...], kind: type[BaseException] = ValueError) -> None:
        super().__init__(state)
        self.accepts, self.kind = accepts, kind

    def load_state_dict(self, state: Any) -> None:
        if state not in self.accepts:
            self.state = "half"
            raise self.kind("no")
        super().load_state_dict(state)


@pytest.mark.parametrize("refuses_its_own_state", [False, True])
def test_loaded_with_one_that_refuses_gives_all_others_their_old_states_again(refuses_its_own_state: bool) -> None:
    model = _model()
    optimizer = torch.optim.Adam(model.parameters())
    _train(model, optimizer)
    before = described(optimizer.state_dict())
    other = torch.optim.Adam(model.parameters(), lr=5.0)
    named = NamedOptimizer(optimizer, [name for name, _ in model.named_parameters()])
    first, picky, last = Holder(["old"]), Picky("old", () if refuses_its_own_state else ("old",)), Holder("old")
    objects = {"first": first, "opt": named, "picky": picky, "last": last}
    states = {"first": ["new"], "opt": other.state_dict(), "picky": "new", "last": "new"}
    with pytest.raises(ObjectRefusedError) as raised, loaded(objects, states):
        pytest.fail("the block runs when all is loaded")
    assert raised.value.targets == (("picky", "load_state_dict() raised ValueError: no"),)
    assert (first.state, last.state) == (["old"], "old")
    assert described(optimizer.state_dict()) == before
    if not refuses_its_own_state:
        assert picky.state == "old"


def test_loaded_interrupted_rolls_back_and_lets_the_interruption_through() -> None:
    first, picky = Holder("old"), Picky("old", ("old",), KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt), loaded({"a": first, "b": picky}, {"a": "new", "b": "new"}):
        pytest.fail("the block runs when all is loaded")
    assert (first.state, picky.state) == ("old", "old")


def test_loaded_of_an_object_that_changes_its_state_in_place_rolls_back_to_a_copy() -> None:
    class InPlace(Holder):
        def load_state_dict(self, state: Any) -> None:
            self.state["t"].copy_(state["t"])
            self.state["n"][:] = state["n"]

    held = InPlace({"t": torch.zeros(2), "n": [1]})
    states = {"a": {"t": torch.ones(2), "n": [2]}, "b": "new"}
    with pytest.raises(ObjectRefusedError), loaded({"a": held, "b": Picky("old", ("old",))}, states):
        pytest.fail("the block runs when all is loaded")
    assert (held.state["t"].tolist(), held.state["n"]) == ([0.0, 0.0], [1])


def test_restore_with_an_object_that_refuses_is_a_mismatch_and_changes_nothing(tmp_path: Path) -> None:
    w = torch.ones(1)
    prefix = ts.Saver({"w": w, "a": Holder("new"), "b": Holder("new")}).save(tmp_path / "m")
    w.zero_()
    first, picky = Holder("old"), Picky("old", ("old",))
    with pytest.raises(ts.MismatchError, match=r"b: load_state_dict\(\) raised ValueError: no") as raised:
        ts.Saver({"w": w, "a": first, "b": picky}).restore(prefix)
    assert isinstance(raised.value.__cause__, ValueError)
    assert (w.item(), first.state, picky.state) == (0.0, "old", "old")


class Drawing(Holder):
    """Draws numbers whenever it gives or takes its state, as a loader does that starts its workers."""

    def state_dict(self) -> Any:
        torch.rand(1)
        return super().state_dict()

    def load_state_dict(self, state: Any) -> None:
        np.random.rand()
        torch.rand(3)
        super().load_state_dict(state)


@pytest.mark.parametrize("keys", ["rd", "dr"])
def test_generators_end_as_saved_whatever_numbers_other_objects_draw(keys: str, tmp_path: Path) -> None:
    values = {"r": ts.RNGState(), "d": Drawing(1)}
    saver = ts.Saver({key: values[key] for key in keys})
    prefix = saver.save(tmp_path / "m")
    wanted = torch.rand(4).tolist(), np.random.rand()
    saver.restore(prefix)
    assert (torch.rand(4).tolist(), np.random.rand()) == wanted


@pytest.mark.parametrize("keys", ["drp", "rdp", "pdr"])
def test_restore_that_fails_leaves_the_generators_alone_whatever_numbers_other_objects_draw(
    keys: str, tmp_path: Path
) -> None:
    values = {"r": ts.RNGState(), "d": Drawing(1), "p": Picky("new", ("old",))}
    saver = ts.Saver({key: values[key] for key in keys})
    prefix = saver.save(tmp_path / "m")
    values["p"].state = "old"
    torch.rand(7)
    before = described(ts.RNGState().state_dict())
    with pytest.raises(ts.MismatchError):
        saver.restore(prefix)
    assert described(ts.RNGState().state_dict()) == before


def test_object_whose_state_hangs_in_a_graph_is_restored_and_taken_back(tmp_path: Path) -> None:
    average = Holder({"loss": torch.ones(1, requires_grad=True) * 2})
    saver = ts.Saver({"average": average})
    prefix = saver.save(tmp_path / "m")
    average.state = {"loss": torch.ones(1, requires_grad=True) * 3}
    with pytest.raises(ObjectRefusedError), loaded(*({"a": average, "p": Picky(1, ())}, {"a": 0, "p": 0})):
        pytest.fail("the block runs when all is loaded")
    assert average.state["loss"].item() == 3
    saver.restore(prefix)
    assert average.state["loss"].item() == 2


def test_scheduler_taken_back_has_nothing_left_of_another_ones_state() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = lr_scheduler.StepLR(optimizer, 3)
    before = described(scheduler.state_dict())
    states = {"s": lr_scheduler.CosineAnnealingLR(optimizer, 7).state_dict(), "p": "new"}
    with pytest.raises(ObjectRefusedError), loaded({"s": scheduler, "p": Picky("old", ("old",))}, states):
        pytest.fail("the block runs when all is loaded")
    assert described(scheduler.state_dict()) == before


def test_error_in_the_block_takes_the_objects_back() -> None:
    held = Holder("old")
    with pytest.raises(OSError, match="new is in place"), loaded({"a": held}, {"a": "new"}):
        raise OSError(f"disk, and {held.state} is in place")
    assert held.state == "old"


def test_optimizer_is_taken_back_to_the_very_state_it_had() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = torch.optim.NAdam([parameter], lr=torch.tensor(0.1))
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    rate, values = optimizer.param_groups[0]["lr"], dict(optimizer.state[parameter])
    states = {"o": copy.deepcopy(optimizer.state_dict()), "p": "new"}
    objects = {"o": NamedOptimizer(optimizer, ["w"]), "p": Picky("old", ("old",))}
    with pytest.raises(ObjectRefusedError), loaded(objects, states):
        pytest.fail("the block runs when all is loaded")
    assert optimizer.param_groups[0]["lr"] is rate
    assert all(optimizer.state[parameter][name] is value for name, value in values.items())


def test_every_problem_of_every_object_is_told_at_once() -> None:
    held = {"one": Holder({"a": object(), "b": [np.str_("x"), np.zeros(2, object)]}), "two": Holder({"c": "\ud800"})}
    with pytest.raises(ts.VarListTypeError) as raised:
        ts.Saver(held)
    assert [line.split()[0] for line in raised.value.problems] == ["'one.a'", "'one.b.0'", "'one.b.1'", "'two.c'"]


def test_gather_of_unchanged_tensors_checks_none_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots({"w": torch.ones(2)})
    _, _, places = gather(slots)
    monkeypatch.setattr("torchsaver.variables.objects.why_not_storable", lambda _: "is checked again")
    assert gather(slots, places)[2] is places
