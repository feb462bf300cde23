"""What wraps a module leaves no trace in keys, and files written with and without it restore into either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import torchsaver as ts
from torchsaver.formats.manifest import Manifest
from torchsaver.storage.checkpoint_files import write_checkpoint
from torchsaver.variables.var_list import read_var_list, resolve
from torchsaver.variables.wrappers import (
    clean_names,
    match_parameters,
    match_plain,
    plain_name,
    plain_parameter_name,
    without_parametrization,
    without_private,
)


class Net(torch.nn.Module):
    """A layer, a buffer and state that is no tensor."""

    KEYS = ("fc.weight", "fc.bias", "mean")

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.note: Any = "new"

    def get_extra_state(self) -> Any:
        return self.note

    def set_extra_state(self, state: Any) -> None:
        self.note = state


class Compiled(torch.nn.Module):
    """Has its module where torch.compile has it, without the seconds that it takes: test_var_list has one of its own."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


class Checkpointed(torch.nn.Module):
    """As torch.distributed's checkpoint wrapper: it takes its own name out of state_dict()."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._checkpoint_wrapped_module = module
        self._register_state_dict_hook(self._strip)

    @staticmethod
    def _strip(module: torch.nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for key in list(state):
            state[key.replace("_checkpoint_wrapped_module.", "")] = state.pop(key)


class HasModule(torch.nn.Module):
    """A user's own submodule of the name `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Net()


WRAPPERS: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "parallel": torch.nn.DataParallel,
    "compiled": Compiled,
    "averaged": AveragedModel,
    "checkpointed": Checkpointed,
    "both": lambda net: torch.nn.DataParallel(Compiled(net)),
    "both ways": lambda net: Compiled(torch.nn.DataParallel(Checkpointed(net))),
    "inside": lambda net: Checkpointed(torch.nn.DataParallel(net)),
}


def _keys(var_list: Any) -> set[str]:
    slots = resolve(read_var_list(var_list))
    return {*slots.tensors, *slots.aliases, *slots.objects}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_module_has_the_keys_of_the_module(name: str) -> None:
    own = {"n_averaged"} if name == "averaged" else set()
    assert _keys({"model": WRAPPERS[name](Net())}) == {f"model.{key}" for key in (*Net.KEYS, "_extra_state", *own)}


def test_wrapped_submodule_has_its_keys_and_a_users_module_keeps_its_name() -> None:
    model = torch.nn.ModuleDict({"deep": torch.nn.DataParallel(HasModule()), "own": HasModule()})
    keys = _keys(model)
    assert {"deep.module.fc.weight", "own.module.fc.weight", "deep.module._extra_state"} <= keys
    assert len(keys) == 8


def test_names_that_would_be_one_without_wrappers_stay_as_they_are() -> None:
    averaged = AveragedModel(torch.nn.Module())
    averaged.module.register_buffer("n_averaged", torch.zeros(()))
    assert _keys(averaged) == {"n_averaged", "module.n_averaged"}


def test_list_of_tensors_has_clean_names_too() -> None:
    wrapped = torch.nn.DataParallel(Net())
    entries = read_var_list([wrapped.module.fc.weight], wrapped)
    assert [entry.key for entry in entries] == ["fc.weight"]


@pytest.mark.parametrize("before", [None, *WRAPPERS])
@pytest.mark.parametrize("after", [None, "parallel", "both"])
def test_model_and_optimizer_restore_across_wrappers(before: str | None, after: str | None, tmp_path: Path) -> None:
    def build(wrapper: str | None) -> tuple[Net, ts.Saver, torch.optim.Optimizer]:
        net = Net()
        wrapped = WRAPPERS[wrapper](net) if wrapper else net
        if isinstance(wrapped, AveragedModel):
            net = wrapped.module
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
        return net, ts.Saver({"model": wrapped, "o": optimizer}), optimizer

    net, saver, optimizer = build(before)
    net.note = "old"
    for parameter in net.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    prefix = saver.save(tmp_path / "m")
    other, restorer, live = build(after)
    restorer.restore(prefix)
    assert other.note == "old"
    assert torch.equal(other.fc.weight, net.fc.weight)
    momenta = [each.state[fc.weight]["momentum_buffer"] for each, fc in ((optimizer, net.fc), (live, other.fc))]
    assert torch.equal(*momenta)


def test_average_restores_with_its_count(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    saved, live = AveragedModel(net), AveragedModel(net)
    for _ in range(3):
        torch.nn.init.normal_(net.weight)
        saved.update_parameters(net)
    prefix = ts.Saver({"ema": saved}).save(tmp_path / "m")
    assert ts.load_checkpoint(prefix).keys() == ["ema.bias", "ema.n_averaged", "ema.weight"]
    ts.Saver({"ema": live}).restore(prefix)
    assert live.n_averaged == 3
    assert torch.equal(live.module.weight, saved.module.weight)
    ts.Saver({"ema": net}).restore(prefix)
    assert torch.equal(net.weight, saved.module.weight)


# ---- files from elsewhere


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_file_with_wrappers_restores_into_a_plain_model_and_a_wrapped_one(prefix: str, tmp_path: Path) -> None:
    values = {f"{prefix}{name}": torch.rand_like(value) for name, value in torch.nn.Linear(2, 2).state_dict().items()}
    write_checkpoint(str(tmp_path / "m"), values, Manifest())
    for wrap in (lambda net: net, torch.nn.DataParallel, Compiled):
        net = torch.nn.Linear(2, 2)
        assert ts.Saver(wrap(net)).restore(tmp_path / "m").unused == ()
        assert torch.equal(net.weight, values[f"{prefix}weight"])


def test_key_that_two_stored_ones_may_be_is_missing(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path / "m"), {f"{p}.w": torch.ones(1) for p in ("module", "_orig_mod")}, Manifest())
    with pytest.raises(ts.MismatchError, match="w: not in the checkpoint"):
        ts.Saver({"w": torch.zeros(1)}).restore(tmp_path / "m")


def test_stored_key_that_another_slot_wants_is_not_taken(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path / "m"), {"module.w": torch.ones(1)}, Manifest())
    with pytest.raises(ts.MismatchError) as raised:
        ts.Saver({"w": torch.zeros(1), "module.w": torch.zeros(1)}).restore(tmp_path / "m")
    assert raised.value.missing == ("w",)


def test_tied_tensors_are_found_through_wrappers_under_either_name(tmp_path: Path) -> None:
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1, bias=False), "b": torch.nn.Linear(1, 1, bias=False)})
    net["b"].weight = net["a"].weight
    write_checkpoint(str(tmp_path / "m"), {"module.b.weight": torch.full((1, 1), 7.0)}, Manifest())
    ts.Saver(net).restore(tmp_path / "m")
    assert net["a"].weight.item() == 7.0


def test_init_from_checkpoint_goes_by_its_map_and_not_by_wrappers(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path / "m"), {"module.w": torch.ones(1)}, Manifest())
    with pytest.raises(ts.TorchSaverError):
        ts.init_from_checkpoint(tmp_path / "m", {"w": torch.zeros(1)})


# ---- names as text


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("module.fc.weight", "fc.weight"),
        ("model.module._orig_mod.fc.weight", "model.fc.weight"),
        ("_fsdp_wrapped_module.a._checkpoint_wrapped_module.w", "a.w"),
        ("a.module", "a.module"),
        ("module", "module"),
        ("my_module.w", "my_module.w"),
        ("modules.w", "modules.w"),
        ("", ""),
    ],
)
def test_plain_name_has_no_wrappers_and_keeps_the_last_part(name: str, plain: str) -> None:
    assert plain_name(name) == plain


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("fc.parametrizations.weight.original", "fc.weight"),
        ("parametrizations.weight.original", "weight"),
        ("fc.parametrizations.weight.original0", "fc.weight.original0"),
        ("fc.parametrizations.weight.0.base", "fc.parametrizations.weight.0.base"),
        ("my_parametrizations.weight.original", "my_parametrizations.weight.original"),
        ("module.fc.parametrizations.weight.original", "module.fc.weight"),
    ],
)
def test_parametrized_value_is_called_as_without(name: str, plain: str) -> None:
    assert without_parametrization(name) == plain
    assert plain_parameter_name(name) == plain.removeprefix("module.")


def test_private_names_go_and_module_stays() -> None:
    assert without_private("module._orig_mod.w") == "module.w"
    assert without_private("a._orig_mod") == "a._orig_mod"


def test_clean_names_of_a_module_without_wrappers_are_its_own() -> None:
    assert clean_names(HasModule(), ["module.mean", "x"]) == {"module.mean": "module.mean", "x": "x"}


def test_match_is_of_one_with_one() -> None:
    assert match_plain(["a", "b"], ["module.a", "module.b", "_orig_mod.b"]) == {"a": "module.a"}
    assert match_plain(["a", "module.a"], ["_orig_mod.a"]) == {}
    assert match_parameters(["a", "module.b", "c"], ["a", "b", "module.a"]) == {"a": "a", "module.b": "b"}
