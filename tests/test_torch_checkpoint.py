"""A file of torch.save is restored as one of ours: all or nothing, and optimizers by the names of their parameters."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchsaver as ts
from torchsaver.conversion.convert import convert_checkpoint
from torchsaver.reader import load_checkpoint
from torchsaver.torch_checkpoint.order import Entry, only_way
from torchsaver.variables.restore_plan import RestoreReport

NAMES = ("first", "second", "third")


def net(names: tuple[str, ...] = NAMES, seed: int = 0) -> nn.ModuleDict:
    """Return layers of one shape, made in this order, so that nothing but names tells them apart."""
    torch.manual_seed(seed)
    return nn.ModuleDict({name: nn.Linear(3, 3) for name in names})


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Train a step with gradients that depend on names alone."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 1.0 + sum(map(ord, name)) % 97)
    optimizer.step(lambda: torch.tensor(1.0))


def moments(model: nn.Module, optimizer: torch.optim.Optimizer, what: str = "exp_avg") -> dict[str, torch.Tensor]:
    return {
        name: optimizer.state[parameter][what].clone()
        for name, parameter in model.named_parameters()
        if what in optimizer.state[parameter]
    }


def same(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def trained(
    path: Path, model: nn.Module | None = None, make: Callable[[nn.Module], torch.optim.Optimizer] = adam, **more: Any
) -> tuple[nn.Module, torch.optim.Optimizer, str]:
    """Train a model, and save it with its optimizer as everybody does."""
    model = net() if model is None else model
    optimizer = make(model)
    step(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), **more}, path)
    return model, optimizer, str(path)


def restored(values: dict[str, Any], path: str, *, strict: bool = True, **options: Any) -> RestoreReport:
    """Restore as a Saver does."""
    return ts.Saver(values, **options).restore(path, strict=strict)


# ---- all of it


@pytest.mark.parametrize("is_zip", [True, False])
def test_model_optimizer_and_scheduler_come_back_with_plain_values_as_metadata(*, is_zip: bool, tmp_path: Path) -> None:
    model, opt = net(), None
    opt = adam(model)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)
    for _ in range(3):
        step(model, opt)
        sched.step()
    content = {"model": model.state_dict(), "optimizer": opt.state_dict(), "scheduler": sched.state_dict()}
    more = {"epoch": 3, "name": "run", "best": 0.5, "done": False, "none": None, "loss": float("nan"), "history": [1]}
    torch.save({**content, **more}, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=is_zip)
    other = net(seed=1)
    other_opt = adam(other)
    other_sched = torch.optim.lr_scheduler.CosineAnnealingLR(other_opt, 10)
    saver = ts.Saver({"model": other, "optimizer": other_opt, "scheduler": other_sched})
    report = saver.restore(tmp_path / "ckpt.pt")
    assert report.metadata == {"epoch": 3, "name": "run", "best": 0.5, "done": False, "none": None}
    assert report.unused == ("history", "loss")
    assert (report.global_step, report.missing) == (None, ())
    assert {"optimizer", "scheduler", "model.first.weight"} <= set(report.restored)
    for _ in range(2):
        for each, each_opt, each_sched in ((model, opt, sched), (other, other_opt, other_sched)):
            step(each, each_opt)
            each_sched.step()
    assert same(model.state_dict(), other.state_dict())
    assert same(moments(model, opt), moments(other, other_opt))
    assert sched.state_dict() == other_sched.state_dict()


def test_bare_state_dict_goes_into_a_module_in_place(tmp_path: Path) -> None:
    model, other = net(), net(seed=1)
    torch.save(model.state_dict(), tmp_path / "weights.pt")  # an OrderedDict with _metadata
    before = {name: parameter.data_ptr() for name, parameter in other.named_parameters()}
    report = ts.Saver(other).restore(tmp_path / "weights.pt")
    assert same(model.state_dict(), other.state_dict())
    assert report.metadata is None
    assert report.bytes == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert {name: parameter.data_ptr() for name, parameter in other.named_parameters()} == before


def test_values_of_every_layout_and_dtype_are_restored(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    content = {
        "turned": base.t(),
        "conj": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        "double": torch.tensor([1 + 2j], dtype=torch.complex128),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 2),
        "parameter": nn.Parameter(torch.ones(2)),
        "tied": base,
    }
    torch.save(content, tmp_path / "m.pt")
    targets = {key: torch.zeros_like(tensor).resolve_conj().contiguous() for key, tensor in content.items()}
    targets["tied"] = torch.zeros(4, 3).t()
    ts.Saver(targets).restore(tmp_path / "m.pt")
    assert same(targets, {key: tensor.detach() for key, tensor in content.items()})


def test_object_of_any_state_is_restored_by_its_path(tmp_path: Path) -> None:
    class Held:
        state: Any = None

        def state_dict(self) -> Any:
            return self.state

        def load_state_dict(self, state: Any) -> None:
            self.state = state

    states = {
        "average": {"shadow": {"w": torch.ones(2)}, "decay": 0.9},
        "weights": {"w": torch.zeros(2)},
        "schedulers": [{"last_epoch": 3}, {"last_epoch": 4}],
        "state": {"inner": {"n": 1}},
    }
    torch.save(states, tmp_path / "m.pt")
    held = {key: Held() for key in ("average", "weights", "schedulers.1", "state.inner")}
    ts.Saver(held).restore(tmp_path / "m.pt")
    assert held["average"].state["decay"] == 0.9
    assert held["average"].state["shadow"]["w"].tolist() == [1, 1]
    assert held["weights"].state["w"].tolist() == [0, 0]
    assert (held["schedulers.1"].state, held["state.inner"].state) == ({"last_epoch": 4}, {"n": 1})


def test_number_is_no_state_of_a_counter_and_says_so(tmp_path: Path) -> None:
    torch.save({"step": 3, "count": {"value": 4}}, tmp_path / "m.pt")
    with pytest.raises(ts.MismatchError, match="a counter's state is"):
        ts.Saver({"step": ts.Counter()}).restore(tmp_path / "m.pt")
    counter = ts.Counter()
    assert ts.Saver({"count": counter}).restore(tmp_path / "m.pt").metadata == {"step": 3}
    assert int(counter) == 4


def test_state_in_another_one_is_found_by_its_path(tmp_path: Path) -> None:
    model = net()
    optimizer = adam(model)
    step(model, optimizer)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2}
    torch.save({"state": state}, tmp_path / "m.pt")
    other = net(NAMES[::-1], seed=1)
    other_optimizer = adam(other)
    restored({"state.model": other, "state.optimizer": other_optimizer}, str(tmp_path / "m.pt"))
    assert same(moments(model, optimizer), moments(other, other_optimizer))


def test_extra_state_of_a_module_comes_back(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        extra = "none"

        def get_extra_state(self) -> Any:
            return self.extra

        def set_extra_state(self, state: Any) -> None:
            self.extra = state

    model, other = nn.ModuleDict({"a": Extra(1, 1)}), nn.ModuleDict({"a": Extra(1, 1)})
    model["a"].extra = "told"
    for content, values in (({"model": model.state_dict()}, {"model": other}), (model.state_dict(), other)):
        torch.save(content, tmp_path / "m.pt")
        other["a"].extra = "none"
        ts.Saver(values).restore(tmp_path / "m.pt")
        assert other["a"].extra == "told"


# ---- what does not fit, or is damaged


def test_all_that_does_not_fit_is_told_and_nothing_changes(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(4)}, tmp_path / "m.pt")
    targets = {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(4, dtype=torch.int64), "bb": torch.zeros(3)}
    with pytest.raises(ts.MismatchError) as raised:
        ts.Saver(targets).restore(tmp_path / "m.pt")
    error = raised.value
    assert (error.missing, error.shapes, error.dtypes) == (
        ("bb",),
        (("b", [3], [2]),),
        (("c", "float32", "int64"),),
    )
    assert targets["a"].tolist() == [0, 0]


def test_strict_and_reshape_are_as_for_our_own(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": torch.arange(6.0).reshape(2, 3)}, tmp_path / "m.pt")
    targets = {"b": torch.zeros(6), "new": torch.zeros(1)}
    report = ts.Saver(targets, reshape=True).restore(tmp_path / "m.pt", strict=False)
    assert (report.missing, report.unused) == (("new",), ("a",))
    assert targets["b"].tolist() == [0, 1, 2, 3, 4, 5]


def test_damaged_value_is_an_error_before_anything_changes(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a": torch.zeros(4), "b": torch.full((100,), 3.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((10,), 3.0).numpy().tobytes()) + 4] ^= 1
    path.write_bytes(data)
    targets = {"a": torch.ones(4), "b": torch.ones(100)}
    with pytest.raises(ts.CorruptCheckpointError, match="Bad CRC-32"):
        ts.Saver(targets).restore(path)
    assert all(bool((tensor == 1).all()) for tensor in targets.values())
    ts.Saver(targets).restore(path, verify=False)
    assert targets["a"].tolist() == [0] * 4
    with load_checkpoint(path) as reader, pytest.raises(ts.CorruptCheckpointError, match="Bad CRC-32"):
        reader.get_tensor("a")


@pytest.mark.parametrize("is_zip", [True, False])
def test_file_cut_anywhere_is_a_documented_error_and_changes_nothing(*, is_zip: bool, tmp_path: Path) -> None:
    _, _, path = trained(tmp_path / "m.pt")
    if not is_zip:
        torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    whole, cut = Path(path).read_bytes(), tmp_path / "cut.pt"
    other = net(seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    saver = ts.Saver({"model": other, "optimizer": adam(other)})
    for length in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises((ts.CorruptCheckpointError, ts.UnsupportedCheckpointError)):
            saver.restore(cut)
    assert same(before, other.state_dict())


def test_class_in_a_file_is_refused_and_not_made(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "m.pt")
    with pytest.raises(ts.UnsupportedCheckpointError, match=r"holds torch\.nn\.modules\.linear\.Linear"):
        ts.Saver(nn.Linear(1, 1)).restore(tmp_path / "m.pt")


def test_arguments_of_argparse_do_not_keep_the_rest_from_being_read(tmp_path: Path) -> None:
    model, optimizer, path = trained(tmp_path / "m.pt", args=argparse.Namespace(lr=0.1))
    other = net(seed=1)
    other_optimizer = adam(other)
    report = restored({"model": other, "optimizer": other_optimizer}, path)
    assert report.unused == ("args",)
    assert same(moments(model, optimizer), moments(other, other_optimizer))
    assert "argparse.Namespace" in convert_checkpoint(path, tmp_path / "new").left_out["args"]


def test_tensor_under_an_empty_key_is_no_error_of_pythons(tmp_path: Path) -> None:
    torch.save({"": torch.ones(1), "w": torch.ones(1)}, tmp_path / "m.pt")
    w = torch.zeros(1)
    ts.Saver({"w": w}).restore(tmp_path / "m.pt")
    assert w.item() == 1
    with pytest.raises(ts.ConversionError):
        convert_checkpoint(tmp_path / "m.pt", tmp_path / "new")


def test_optimizers_state_that_is_all_there_is_stands_under_optimizer(tmp_path: Path) -> None:
    model, optimizer, _ = trained(tmp_path / "m.pt")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    live = adam(model)
    ts.Saver({"optimizer": live}, names_from=model).restore(tmp_path / "optimizer.pt")
    assert same(moments(model, optimizer), moments(model, live))


def test_schedulers_of_lightning_are_restored_and_converted_one_by_one(tmp_path: Path) -> None:
    model, optimizer, _ = trained(tmp_path / "m.pt")
    states = [torch.optim.lr_scheduler.StepLR(optimizer, each).state_dict() for each in (3, 4)]
    torch.save({"state_dict": model.state_dict(), "lr_schedulers": states}, tmp_path / "m.ckpt")
    convert_checkpoint(tmp_path / "m.ckpt", tmp_path / "new")
    for path in (tmp_path / "m.ckpt", tmp_path / "new"):
        live = torch.optim.lr_scheduler.StepLR(optimizer, 9)
        report = ts.Saver({"state_dict": model, "lr_schedulers.1": live}).restore(path)
        assert (live.step_size, report.unused) == (4, ("lr_schedulers.0",))


@pytest.mark.parametrize(
    "optimizer",
    [
        {"state": {}, "param_groups": [{"params": [[1]]}]},
        {"state": {0: {"exp_avg": 3}}, "param_groups": [{"params": [0, 0, 0]}]},
        {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"params": [0, "x", 2, 3, 4, 5]}]},
        {"state": {}, "param_groups": [{"params": [0, 1], "param_names": ["a", "a"]}]},
        {"state": [], "param_groups": {}},
        {"state": {}, "param_groups": []},
        {"state": {0: {"m": torch.ones(3).to_sparse()}}, "param_groups": [{"params": list(range(6))}]},
        3,
        [torch.ones(1)],
    ],
)
def test_state_that_is_no_optimizers_is_a_documented_error(optimizer: Any, tmp_path: Path) -> None:
    model = net()
    torch.save({"model": model.state_dict(), "optimizer": optimizer}, tmp_path / "m.pt")
    with pytest.raises((ts.MismatchError, ts.UnsupportedCheckpointError, ts.CorruptCheckpointError)):
        restored({"model": model, "optimizer": adam(model)}, str(tmp_path / "m.pt"))
    with contextlib.suppress(ts.ConversionError):
        convert_checkpoint(tmp_path / "m.pt", tmp_path / "new")


# ---- optimizers by name


def test_torch_swaps_moments_of_reordered_modules_and_the_saver_does_not(tmp_path: Path) -> None:
    model, optimizer, path = trained(tmp_path / "ckpt.pt")
    wanted = moments(model, optimizer)
    theirs = net(NAMES[::-1], seed=1)
    their_optimizer = adam(theirs)
    state = torch.load(path, weights_only=True)
    theirs.load_state_dict(state["model"])
    their_optimizer.load_state_dict(state["optimizer"])  # no error, and yet:
    assert torch.equal(moments(theirs, their_optimizer)["first.weight"], wanted["third.weight"])
    assert not same(moments(theirs, their_optimizer), wanted)
    ours = net(NAMES[::-1], seed=1)
    our_optimizer = adam(ours)
    ts.Saver({"model": ours, "optimizer": our_optimizer}).restore(path)
    assert same(moments(ours, our_optimizer), wanted)
    step(model, optimizer)
    step(ours, our_optimizer)
    assert same(model.state_dict(), ours.state_dict())


def test_stored_names_of_parameters_count_before_any_order(tmp_path: Path) -> None:
    def shuffled(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam([*model.named_parameters()][::-1])

    model, optimizer, path = trained(tmp_path / "m.pt", make=shuffled)
    for make in (adam, shuffled):
        other = net(("second", "first", "third"), seed=1)
        other_optimizer = make(other)
        restored({"model": other, "optimizer": other_optimizer}, path)
        assert same(moments(model, optimizer), moments(other, other_optimizer))


class Scaled(nn.Module):
    """A layer with a buffer that looks like its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(3))
        self.weight = nn.Parameter(torch.ones(3))
        self.norm = nn.BatchNorm1d(3)


def scaled(names: tuple[str, ...] = NAMES) -> nn.ModuleDict:
    return nn.ModuleDict({name: Scaled() for name in names})


def test_buffers_that_look_like_parameters_are_told_by_the_live_model(tmp_path: Path) -> None:
    model, optimizer, path = trained(tmp_path / "m.pt", scaled())
    other = scaled(NAMES[::-1])
    other_optimizer = adam(other)
    restored({"model": other, "optimizer": other_optimizer}, path)
    assert same(moments(model, optimizer), moments(other, other_optimizer))


def frozen(model: nn.ModuleDict) -> torch.optim.Optimizer:
    model["second"].requires_grad_(False)
    return torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.01)


def grouped(model: nn.Module) -> torch.optim.Optimizer:
    named = list(model.named_parameters())
    weights = [parameter for name, parameter in named if name.endswith("weight")]
    biases = [parameter for name, parameter in named if not name.endswith("weight")]
    return torch.optim.Adam([{"params": biases, "lr": 0.1}, {"params": weights}])


@pytest.mark.parametrize("make", [frozen, grouped])
def test_frozen_parameters_and_groups_keep_their_moments_through_a_new_order(
    make: Callable[[nn.Module], torch.optim.Optimizer], tmp_path: Path
) -> None:
    model, optimizer, path = trained(tmp_path / "m.pt", make=make)
    other = net(("third", "second", "first"), seed=1)
    other_optimizer = make(other)
    restored({"model": other, "optimizer": other_optimizer}, path)
    assert same(moments(model, optimizer), moments(other, other_optimizer))


def test_parameters_added_or_in_other_groups_since_are_found_by_name(tmp_path: Path) -> None:
    model, optimizer, path = trained(tmp_path / "m.pt")
    other = net(("new", *NAMES[::-1]), seed=1)
    other_optimizer = adam(other)
    report = restored({"model": other, "optimizer": other_optimizer}, path, strict=False)
    assert set(report.missing) >= {"model.new.weight", "optimizer.model.new.weight"}
    assert same(moments(model, optimizer), moments(other, other_optimizer))
    split = net(NAMES[::-1], seed=1)
    split_optimizer = torch.optim.Adam(
        [{"params": split["second"].parameters()}, {"params": split["first"].parameters()}], lr=0.01
    )
    restored({"model": split, "optimizer": split_optimizer}, path)
    wanted = moments(model, optimizer)
    assert same(moments(split, split_optimizer), {key: wanted[key] for key in wanted if not key.startswith("third")})


def test_model_under_no_key_of_the_saver_is_found_by_its_names(tmp_path: Path) -> None:
    model, optimizer, path = trained(tmp_path / "m.pt")
    other = net(NAMES[::-1], seed=1)
    other_optimizer = adam(other)
    restored({"optimizer": other_optimizer}, path, names_from=other)
    assert same(moments(model, optimizer), moments(other, other_optimizer))


def test_wrapped_model_in_the_file_is_seen_through(tmp_path: Path) -> None:
    model = nn.DataParallel(net())
    optimizer = adam(model)
    step(model.module, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "m.pt")
    other = net(NAMES[::-1], seed=1)
    other_optimizer = adam(other)
    restored({"model": other, "optimizer": other_optimizer}, str(tmp_path / "m.pt"))
    assert same(model.module.state_dict(), other.state_dict())
    assert same(moments(model.module, optimizer), moments(other, other_optimizer))


def tied(names: tuple[str, ...]) -> nn.ModuleDict:
    model = net(names)
    model["third"].weight = model["first"].weight
    return model


def test_tied_parameters_count_once(tmp_path: Path) -> None:
    model, optimizer, path = trained(tmp_path / "m.pt", tied(NAMES))
    other = tied(NAMES[::-1])
    other_optimizer = adam(other)
    restored({"model": other, "optimizer": other_optimizer}, path)
    assert torch.equal(
        optimizer.state[model["first"].weight]["exp_avg"], other_optimizer.state[other["third"].weight]["exp_avg"]
    )
    for name in ("first.bias", "second.weight", "third.bias"):
        assert torch.equal(moments(model, optimizer)[name], moments(other, other_optimizer)[name])


def test_order_of_the_programs_own_is_kept_where_the_model_has_not_changed(tmp_path: Path) -> None:
    def backwards(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(model.parameters())[::-1])

    model, optimizer, path = trained(tmp_path / "m.pt", make=backwards)
    other = net(seed=1)
    other_optimizer = backwards(other)
    restored({"model": other, "optimizer": other_optimizer}, path)
    assert same(moments(model, optimizer), moments(other, other_optimizer))


def test_order_of_the_programs_own_in_a_model_that_has_changed_is_an_error(tmp_path: Path) -> None:
    def backwards(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(model.parameters())[::-1])

    def plain(*names: str) -> nn.ModuleDict:
        return nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in names})

    _, _, path = trained(tmp_path / "m.pt", plain(*NAMES), make=backwards)
    other = plain("second", "first", "third")
    with pytest.raises(ts.MismatchError, match="3 parameters without names, in the order of another model"):
        restored({"model": other, "optimizer": backwards(other)}, path)


def test_state_of_as_many_other_parameters_is_not_taken_for_that_of_the_live_ones(tmp_path: Path) -> None:
    def sized() -> nn.ModuleDict:
        return nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 2)})

    _, _, path = trained(tmp_path / "m.pt", sized(), make=lambda model: adam(model.get_submodule("a")))
    other = sized()
    with pytest.raises(ts.MismatchError) as raised:
        restored({"model": other, "optimizer": adam(other["b"])}, path)
    assert raised.value.missing == ("optimizer.model.b.weight", "optimizer.model.b.bias")


def test_state_whose_parameters_cannot_be_told_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    _, _, path = trained(tmp_path / "m.pt", make=frozen)
    other = net(NAMES[::-1], seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ts.MismatchError) as raised:
        restored({"model": other, "optimizer": adam(other)}, path)
    ((key, reason),) = raised.value.targets
    assert key == "optimizer"
    assert "the state of 4 parameters without names" in reason
    assert "which of its 6 parameters these are cannot be told" in reason
    assert "Adam(model.named_parameters())" in reason
    assert same(before, other.state_dict())


def test_moments_of_other_shapes_are_an_error(tmp_path: Path) -> None:
    model, _, path = trained(tmp_path / "m.pt")
    state = torch.load(path, weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(5, 5)
    state["optimizer"]["state"][0]["exp_avg_sq"] = torch.zeros(5, 5)
    torch.save(state, path)
    with pytest.raises(ts.MismatchError, match="optimizer"):
        restored({"model": model, "optimizer": adam(model)}, path)


OPTIONS: dict[str, dict[str, Any]] = {
    **{kind: {} for kind in ("AdamW", "Adadelta", "Adafactor", "Adagrad", "Adamax", "ASGD", "NAdam", "RAdam", "Rprop")},
    "Adam": {"amsgrad": True},
    "LBFGS": {"max_iter": 1},
    "RMSprop": {"centered": True, "momentum": 0.9},
    "SGD": {"momentum": 0.9},
}


def made(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = getattr(torch.optim, kind)(model.parameters(), **OPTIONS[kind])
    return optimizer


@pytest.mark.parametrize("how", ["restored", "converted"])
@pytest.mark.parametrize("kind", [name for name in OPTIONS if hasattr(torch.optim, name)])
def test_every_optimizer_goes_on_as_if_its_modules_had_not_been_reordered(kind: str, how: str, tmp_path: Path) -> None:
    model, optimizer, path = trained(tmp_path / "m.pt", make=functools.partial(made, kind=kind))
    other = net(("second", "third", "first"), seed=1)
    other_optimizer = made(other, kind)
    values = {"model": other, "optimizer": other_optimizer}
    if how == "converted":
        convert_checkpoint(path, tmp_path / "new")
        ts.Saver(values).restore(tmp_path / "new")
    else:
        restored(values, path)
    for _ in range(2):
        step(model, optimizer)
        step(other, other_optimizer)
    close = torch.allclose if kind == "LBFGS" else torch.equal  # it adds over all parameters, in their order
    assert all(close(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("bit", [0, 6])
def test_file_with_any_byte_flipped_is_an_error_or_restores_what_was_saved(bit: int, tmp_path: Path) -> None:
    model, optimizer, path = trained(tmp_path / "m.pt", nn.Linear(2, 1))
    whole, flipped = Path(path).read_bytes(), tmp_path / "flipped.pt"
    wanted, outcomes = moments(model, optimizer), {"error": 0, "right": 0}
    for position in range(bit, len(whole), 23):
        flipped.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
        other = nn.Linear(2, 1)
        other_optimizer = adam(other)
        try:
            ts.Saver({"model": other, "optimizer": other_optimizer}).restore(flipped)
        except (ts.CorruptCheckpointError, ts.UnsupportedCheckpointError):
            outcomes["error"] += 1
            continue
        assert same(model.state_dict(), other.state_dict())
        assert same(moments(other, other_optimizer), wanted)
        outcomes["right"] += 1
    assert outcomes["error"] > 20


# ---- the names of positions


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0, 1, None])), max_size=6))
def test_only_way_is_the_way_that_trying_all_of_them_finds(tensors: list[tuple[int, int | None]]) -> None:
    entries = [Entry(str(number), (size,)) for number, (size, _) in enumerate(tensors)]
    wanted = [[str(number) for number, (_, group) in enumerate(tensors) if group == own] for own in (0, 1)]
    groups: list[list[tuple[int, ...] | None]] = [[(tensors[int(path)][0],) for path in own] for own in wanted]
    ways = []
    for code in range(3 ** len(entries)):
        digits = [code // 3**place % 3 for place in range(len(entries))]
        taken = [[entry for entry, digit in zip(entries, digits, strict=True) if digit == own] for own in (0, 1)]
        if [[entry.shape for entry in own] for own in taken] == groups:
            ways.append([[entry.path for entry in own] for own in taken])
    assert wanted in ways
    assert only_way(groups, entries) == (wanted if len(ways) == 1 else None)


def test_only_way_gives_up_where_there_are_too_many() -> None:
    entries = [Entry(str(number), (1,)) for number in range(2000)]
    assert only_way([[None] * 500, [None] * 500], entries) is None


# ---- reading one


def test_reader_gives_keys_shapes_and_values(tmp_path: Path) -> None:
    model, _, path = trained(tmp_path / "m.pt", epoch=3)
    with ts.load_checkpoint(path) as reader:
        assert set(reader.object_trees) == {"optimizer"}
        assert reader.metadata == {"epoch": 3}
        assert "optimizer.model.first.weight.exp_avg" in reader.keys()
        assert reader.get_variable_to_shape_map()["model.first.weight"] == [3, 3]
        assert reader.get_variable_to_dtype_map()["model.first.bias"] == torch.float32
        value = reader.get_tensor("model.first.weight")
        assert torch.equal(value, model["first"].weight)
        assert torch.equal(reader.get_slice("model.first.weight")[1:], model["first"].weight[1:])
        assert reader.describe("model.first.bias").nbytes == 12
        assert b"model.first.bias (DT_FLOAT) [3]" in reader.debug_string()
        reader.verify()
        with pytest.raises(ts.CheckpointKeyError, match=r"model\.first\.weight"):
            reader.get_tensor("model.first.weigh")
    value.zero_()  # its own memory
    assert torch.equal(ts.load_variable(path, "model.first.weight"), model["first"].weight)


def test_two_tensors_under_one_key_are_none(tmp_path: Path) -> None:
    torch.save({"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, "c": torch.ones(1)}, tmp_path / "m.pt")
    assert ts.load_checkpoint(tmp_path / "m.pt").keys() == ["c"]


def test_shards_of_hugging_face_are_one_checkpoint(tmp_path: Path) -> None:
    model, other = net(), net(seed=1)
    weight_map = {}
    for number, name in enumerate(NAMES):
        file = f"pytorch_model-{number}.bin"
        own = {key: value for key, value in model.state_dict().items() if key.startswith(name)}
        torch.save(own, tmp_path / file)
        weight_map |= dict.fromkeys(own, file)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    ts.Saver(other).restore(index)
    assert same(model.state_dict(), other.state_dict())
    (tmp_path / "pytorch_model-1.bin").unlink()
    with pytest.raises(ts.CorruptCheckpointError, match="shard 'pytorch_model-1"):
        ts.Saver(other).restore(index)
