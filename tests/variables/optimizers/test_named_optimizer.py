"""The state of optimizers goes by the names of their parameters: every optimizer, reordered, split, merged, frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.parametrizations import orthogonal, weight_norm
from variables.states import described

import torchsaver as ts
from torchsaver.formats.manifest import Manifest
from torchsaver.storage.checkpoint_files import write_checkpoint
from torchsaver.variables.optimizers.named_optimizer import NamedOptimizer, named
from torchsaver.variables.optimizers.named_state import NamedState
from torchsaver.variables.problems import Problems
from torchsaver.variables.state_tree import flatten


@pytest.fixture(autouse=True)
def _own_surroundings() -> Iterator[None]:
    """Names of one test are not another's; one thread, because more of them only wait for each other at such sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ts.Collection():
        yield
    torch.set_num_threads(threads)


class Model(torch.nn.Module):
    """Matrices of different values under the names `order`, registered in this order."""

    def __init__(self, order: str = "abc", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for name in order:
            values = torch.linspace(ord(name) % 7 / 4, ord(name) % 5, 6, dtype=dtype).reshape(3, 2)
            self.register_parameter(name, torch.nn.Parameter(values))

    def groups(self, *groups: str) -> list[dict[str, Any]]:
        return [{"params": [self.get_parameter(name) for name in group]} for group in groups]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "SGD nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, maximize=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), amsgrad=True),
    "Adam foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1, decoupled_weight_decay=True),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1, foreach=True),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.01),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1, t0=1.0),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True, momentum=0.9),
    "SparseAdam": lambda p: torch.optim.SparseAdam(p, lr=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "LBFGS wolfe": lambda p: torch.optim.LBFGS(p, max_iter=3, history_size=2, line_search_fn="strong_wolfe"),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "Muon": lambda p: torch.optim.Muon(p, lr=0.1),
}
# Muon came with torch 2.9, Adafactor with 2.5.
OPTIMIZERS = {name: make for name, make in OPTIMIZERS.items() if hasattr(torch.optim, name.split()[0])}
GROUPED = [name for name in OPTIMIZERS if not name.startswith("LBFGS")]  # LBFGS has one group


def test_every_optimizer_of_torch_is_tried() -> None:
    known = {
        name
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    }
    assert known - {"Optimizer"} == {name.split()[0] for name in OPTIMIZERS}


def step(model: Model, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    """Take steps towards a place of each parameter's own: what one does never depends on another."""

    def closure() -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                place = torch.linspace(ord(name) % 3, -1, 6, dtype=parameter.dtype).reshape(3, 2)
                loss += ((parameter - place) ** 2).sum()
                grad = 2 * (parameter - place) * (1 + ord(name) % 4)
                parameter.grad = grad.to_sparse(1) if isinstance(optimizer, torch.optim.SparseAdam) else grad
        return loss

    for _ in range(steps):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def all_by_name(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {name: (described(p.data), described(optimizer.state.get(p, {}))) for name, p in model.named_parameters()}


def trained(name: str, *groups: str, steps: int = 3) -> tuple[Model, torch.optim.Optimizer, ts.Saver]:
    model = Model("".join(groups))
    optimizer = OPTIMIZERS[name](model.groups(*groups))
    step(model, optimizer, steps)
    return model, optimizer, ts.Saver({"model": model, "optimizer": optimizer})


def test_torch_itself_swaps_the_moments_of_reordered_parameters_without_a_word() -> None:
    one, optimizer, _ = trained("Adam", "ab")
    two, reordered, _ = trained("Adam", "ba", steps=0)
    reordered.load_state_dict(optimizer.state_dict())
    assert torch.equal(reordered.state[two.a]["exp_avg"], optimizer.state[one.b]["exp_avg"])
    assert not torch.equal(reordered.state[two.a]["exp_avg"], optimizer.state[one.a]["exp_avg"])


def test_keys_in_the_file_are_names_of_parameters(tmp_path: Path) -> None:
    prefix = trained("Adam", "ab")[2].save(tmp_path / "m")
    keys = [key for key in ts.load_checkpoint(prefix).keys() if key.startswith("optimizer")]
    assert keys == [f"optimizer.model.{name}.{what}" for name in "ab" for what in ("exp_avg", "exp_avg_sq", "step")]


@pytest.mark.parametrize(("before", "after"), [(["abc"], ["b", "ca"]), (["b", "ca"], ["cab"])])
@pytest.mark.parametrize("name", GROUPED)
def test_optimizer_reordered_split_or_merged_goes_on_as_the_one_that_was_saved(
    name: str, before: list[str], after: list[str], tmp_path: Path
) -> None:
    model, optimizer, saver = trained(name, *before)
    prefix = saver.save(tmp_path / "m")
    other, reordered, restorer = trained(name, *after, steps=1)
    assert restorer.restore(prefix).unused == ()
    assert all_by_name(other, reordered) == all_by_name(model, optimizer)
    for each in ((model, optimizer), (other, reordered)):
        step(*each, 2)
    assert all_by_name(other, reordered) == all_by_name(model, optimizer)


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(GROUPED)))
def test_lbfgs_reordered_has_its_vectors_in_the_new_order(name: str, tmp_path: Path) -> None:
    model, optimizer, saver = trained(name, "abc")
    prefix = saver.save(tmp_path / "m")
    assert "optimizer.lbfgs.old_dirs.0" in ts.load_checkpoint(prefix).keys()
    same, in_order, restorer = trained(name, "abc", steps=1)
    restorer.restore(prefix)
    other, reordered, restorer = trained(name, "cab", steps=1)
    restorer.restore(prefix)
    for each in ((model, optimizer), (same, in_order), (other, reordered)):
        step(*each, 2)
    assert all_by_name(same, in_order) == all_by_name(model, optimizer)
    for letter in "abc":  # another order is another order of float sums
        torch.testing.assert_close(other.get_parameter(letter), model.get_parameter(letter))


@pytest.mark.parametrize("after", ["ab", "abcd"])
def test_lbfgs_over_other_parameters_is_refused(after: str, tmp_path: Path) -> None:
    prefix = trained("LBFGS", "abc")[2].save(tmp_path / "m")
    other, optimizer, saver = trained("LBFGS", after)
    before = all_by_name(other, optimizer)
    with pytest.raises(ts.MismatchError, match=r"optimizer: has a state over all of its parameters.*'model.c'"):
        saver.restore(prefix, strict=False)
    assert all_by_name(other, optimizer) == before


def test_lbfgs_of_other_lengths_is_refused(tmp_path: Path) -> None:
    prefix = trained("LBFGS", "ab")[2].save(tmp_path / "m")
    w, v = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.LBFGS([w, v])
    state = ts.Saver({"optimizer": optimizer}, names_from=torch.nn.ParameterDict({"a": w, "b": v}))
    with pytest.raises(ts.MismatchError, match="not in the checkpoint"):
        state.restore(prefix)
    with pytest.raises(ts.MismatchError, match="over 12 elements"):
        ts.Saver(
            {"optimizer": optimizer},
            names_from=torch.nn.ModuleDict({"model": torch.nn.ParameterDict({"a": w, "b": v})}),
        ).restore(prefix)


@pytest.mark.parametrize("name", GROUPED)
def test_frozen_parameter_is_left_out_and_named_unused(name: str, tmp_path: Path) -> None:
    model, optimizer, saver = trained(name, "abc")
    prefix = saver.save(tmp_path / "m")
    other = Model("cba")
    fewer = OPTIMIZERS[name](other.groups("ca"))
    report = ts.Saver({"model": other, "optimizer": fewer}).restore(prefix)
    tensors = [what for what, value in optimizer.state.get(model.b, {}).items() if isinstance(value, torch.Tensor)]
    assert report.unused == tuple(sorted(f"optimizer.model.b.{what}" for what in tensors))
    for each in ((model, optimizer), (other, fewer)):
        step(*each, 2)
    one, two = all_by_name(model, optimizer), all_by_name(other, fewer)
    assert (one["a"], one["c"]) == (two["a"], two["c"])


@pytest.mark.parametrize("name", GROUPED)
def test_added_parameter_is_refused_by_name_and_starts_afresh_if_not_strict(name: str, tmp_path: Path) -> None:
    model, optimizer, saver = trained(name, "ac")
    prefix = saver.save(tmp_path / "m")
    other, more, restorer = trained(name, "abc", "d")
    before = all_by_name(other, more)
    with pytest.raises(ts.MismatchError, match="strict=False") as raised:
        restorer.restore(prefix)
    assert raised.value.missing == ("model.b", "model.d", "optimizer.model.b", "optimizer.model.d")
    assert all_by_name(other, more) == before
    report = restorer.restore(prefix, strict=False)
    assert report.missing == raised.value.missing
    now, saved = all_by_name(other, more), all_by_name(model, optimizer)
    assert (now["a"], now["c"]) == (saved["a"], saved["c"])
    parameters = other.get_parameter("b"), other.get_parameter("d")
    fresh = OPTIMIZERS[name](parameters).state  # Adagrad has sums before the first step
    assert [now["b"][1], now["d"][1]] == [described(fresh.get(parameter, {})) for parameter in parameters]
    if name != "SGD fused":  # which wants momenta for all or none; torch's own load_state_dict() has no remedy either
        step(other, more)


@settings(max_examples=50, deadline=None)
@given(order=st.permutations("abcde"), cut=st.integers(0, 5), stepped=st.sets(st.sampled_from("abcde")))
def test_any_order_and_split_with_state_of_some_gives_each_its_own(
    order: list[str], cut: int, stepped: set[str]
) -> None:
    model = Model("abcde")
    optimizer = torch.optim.Adam(model.groups("abcde"))
    for name in stepped:
        model.get_parameter(name).grad = torch.ones(3, 2)
    optimizer.step()
    other = Model("".join(order))
    live = torch.optim.Adam(other.groups("".join(order[:cut]), "".join(order[cut:])))
    step(other, live)
    NamedOptimizer(live, order).load_state_dict(NamedOptimizer(optimizer, "abcde").state_dict())
    own = {name: all_by_name(model, optimizer)[name][1] for name in "abcde"}
    assert {name: state for name, (_, state) in all_by_name(other, live).items()} == own
    assert NamedOptimizer(live, order).state_dict().parameters.keys() == stepped


# ---- options of groups


def _with_lr(model: Model, **groups: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{**model.groups(names)[0], "lr": lr} for names, lr in groups.items()], lr=9.0, momentum=0.9)


def _fit(live: torch.optim.Optimizer, names: str, saved: torch.optim.Optimizer, saved_names: str) -> list[str]:
    state = NamedOptimizer(saved, saved_names).state_dict()
    return NamedOptimizer(live, names).fit(state)[1]


def test_groups_take_the_options_of_their_parameters_groups_whatever_their_order() -> None:
    saved, live = _with_lr(Model("abc"), ab=0.1, c=0.2), _with_lr(Model("cab"), c=5.0, ab=6.0)
    state = NamedOptimizer(saved, "abc").state_dict()
    NamedOptimizer(live, "cab").load_state_dict(state)
    assert [group["lr"] for group in live.param_groups] == [0.2, 0.1]


def test_merged_group_of_differing_options_is_refused_with_groups_options_and_parameters() -> None:
    (reason,) = _fit(_with_lr(Model(), abc=1.0), "abc", _with_lr(Model(), ab=0.1, c=0.2), "abc")
    assert "group 0 parameters of the checkpoint's groups 0 and 1" in reason
    assert "lr 0.1 for 'a', 'b'; lr 0.2 for 'c'" in reason


def test_split_group_whose_parts_differ_now_is_refused_with_the_remedy() -> None:
    (reason,) = _fit(_with_lr(Model(), a=0.1, bc=0.2), "abc", _with_lr(Model(), abc=0.3), "abc")
    assert reason.startswith("has groups 0 and 1 with parameters of the checkpoint's group 0")
    assert "lr (0.1 and 0.2); make them equal, and set them after the restore" in reason


def test_group_of_new_parameters_keeps_its_options(tmp_path: Path) -> None:
    model, other = Model("ab"), Model("abc")
    prefix = ts.Saver({"m": model, "o": _with_lr(model, ab=0.1)}).save(tmp_path / "m")
    live = _with_lr(other, ab=5.0, c=0.3)
    ts.Saver({"m": other, "o": live}).restore(prefix, strict=False)
    assert [group["lr"] for group in live.param_groups] == [0.1, 0.3]


def test_options_that_are_tensors_are_compared_by_value() -> None:
    saved = torch.optim.Adam(Model().groups("a", "bc"), lr=torch.tensor(0.1))
    live = torch.optim.Adam(Model().groups("abc"), lr=torch.tensor(1.0))
    assert _fit(live, "abc", saved, "abc") == []
    saved.param_groups[1]["lr"] = torch.tensor(0.2)
    assert "lr tensor(0.1000) for 'a'" in _fit(live, "abc", saved, "abc")[0]


def test_option_that_the_stored_group_lacks_gets_torchs_default() -> None:
    saved, live = (torch.optim.Adam(Model("a").groups("a"), lr=lr) for lr in (0.1, 0.2))
    del saved.param_groups[0]["maximize"]
    NamedOptimizer(live, "a").load_state_dict(NamedOptimizer(saved, "a").state_dict())
    assert (live.param_groups[0]["maximize"], live.param_groups[0]["lr"]) == (False, 0.1)


def test_all_that_does_not_fit_is_told_at_once_and_nothing_changes(tmp_path: Path) -> None:
    model = Model("abc", torch.bfloat16)
    saved = [_with_lr(model, ab=0.1, c=0.2), torch.optim.Adam(model.parameters())]
    for optimizer in saved:
        step(model, optimizer)
    prefix = ts.Saver({"one": saved[0], "two": saved[1]}, names_from=model).save(tmp_path / "m")
    other = Model("cab")
    live = [_with_lr(other, cab=0.1), torch.optim.Adam(other.parameters())]
    step(other, live[0])
    before = all_by_name(other, live[0])
    with pytest.raises(ts.MismatchError) as raised:
        ts.Saver({"one": live[0], "two": live[1]}, names_from=other).restore(prefix)
    assert [key for key, _ in raised.value.targets] == ["one"] * 4 + ["two"] * 6
    assert "'momentum_buffer' of 'c' is [3, 2] bfloat16 in checkpoint, and the parameter [3, 2] float32" in str(
        raised.value
    )
    assert all_by_name(other, live[0]) == before
    assert live[1].state == {}


# ---- names


def test_nameless_parameters_are_refused_with_where_they_are_and_the_remedies(tmp_path: Path) -> None:
    model = Model("ab")
    optimizer = torch.optim.Adam([{"params": [model.a]}, {"params": [model.b, torch.nn.Parameter(torch.ones(4))]}])
    with pytest.raises(ts.VarListError) as raised:
        ts.Saver({"model": model, "opt": optimizer, "other": torch.optim.SGD([model.a], lr=1.0)})
    (problem,) = raised.value.problems
    assert problem.startswith(
        "'opt' has parameters without a name (group 1, parameter 1, shape [4]); give the model in"
    )
    assert "names_from=model" in problem
    assert "Adam(model.named_parameters())" in problem
    saver = ts.Saver({"a": model.a, "opt": (late := torch.optim.Adam([model.a]))})
    late.add_param_group({"params": [model.b]})
    with pytest.raises(ts.VarListError, match="group 1, parameter 0"):
        saver.save(tmp_path / "m")


def _started(parameters: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    for parameter in optimizer.param_groups[0]["params"]:
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    return optimizer


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda m: ts.Saver({"m": m, "o": _started([m.a])}), "m.a"),
        (lambda m: ts.Saver({"w": m.a, "m": m, "o": _started([m.a])}), "w"),
        (lambda m: ts.Saver({"o": _started([m.a])}, names_from=m), "a"),
        (lambda m: ts.Saver({"o": _started([("x", m.a)])}), "x"),
        (lambda m: ts.Saver({"o": _started([("_orig_mod.x", m.a)])}), "x"),
        (lambda m: ts.Saver({"o": _started([("x", m.a)])}, names_from=m), "x"),
        (lambda m: ts.Saver({"m": m, "o": _started([("x", m.a)])}), "m.a"),
        (lambda m: ts.Saver({"o": _started([ts.track(m, "tracked").a])}), "tracked.a"),
        (lambda m: ts.Saver({"o": _started([ts.Variable(1.0, name="v")])}), "v"),
        (lambda m: ts.Saver({"k": ts.transfer.dense(m.a), "o": _started([m.a])}), "k"),
        (lambda m: ts.Saver({"o": _started([m.a]), "m": m}), "m.a"),
    ],
)
def test_name_of_a_parameter_is_its_key_or_what_the_optimizer_was_given_or_its_place(
    make: Callable[[Model], ts.Saver], name: str, tmp_path: Path
) -> None:
    prefix = make(Model("a")).save(tmp_path / "m")
    assert f"o.{name}.momentum_buffer" in ts.load_checkpoint(prefix).keys()


def test_names_are_those_of_the_tensors_that_are_in_the_module_now(tmp_path: Path) -> None:
    model = Model("ab")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saver = ts.Saver({"o": optimizer}, names_from=model)
    model.a, model.b = model.b, model.a
    step(model, optimizer)
    assert set(ts.load_checkpoint(saver.save(tmp_path / "m")).keys()) == {"o.a.momentum_buffer", "o.b.momentum_buffer"}
    model.a = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ts.VarListError, match="parameter 1"):
        saver.save(tmp_path / "m")


def test_two_parameters_of_one_name_are_refused() -> None:
    model = Model("ab")
    optimizer = torch.optim.SGD([("x", model.a), ("x.", model.b)], lr=0.1)
    optimizer.param_groups[0]["param_names"] = ["x", "x"]
    with pytest.raises(ts.VarListError, match="several parameters of the name 'x'"):
        ts.Saver({"o": optimizer})


def test_tied_parameter_has_one_name(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(2, 2, bias=False), "two": torch.nn.Linear(2, 2, bias=False)})
    model["two"].weight = model["one"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model["one"].weight.grad = torch.ones(2, 2)
    optimizer.step()
    prefix = ts.Saver({"m": model, "o": optimizer}).save(tmp_path / "m")
    assert set(ts.load_checkpoint(prefix).keys()) == {"m.one.weight", "o.m.one.weight.momentum_buffer"}


def _tied(order: str, *, is_named: bool = False) -> tuple[torch.nn.ModuleDict, torch.optim.Optimizer]:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in order})
    model["c"].weight = model["a"].weight
    optimizer = torch.optim.SGD(model.named_parameters() if is_named else model.parameters(), lr=0.1, momentum=0.9)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.grad = torch.full((2, 2), float(name.startswith("b")))
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("kind", ["ours", "torch.save"])
def test_tied_parameter_is_found_under_whichever_of_its_names_is_stored(kind: str, tmp_path: Path) -> None:
    model, optimizer = _tied("abc", is_named=True)
    optimizer.state[model["a"].weight]["momentum_buffer"].fill_(5.0)
    path = str(tmp_path / "m.pt")
    torch.save({"m": model.state_dict(), "o": optimizer.state_dict()}, path)
    if kind == "ours":
        path = ts.Saver({"m": model, "o": optimizer}).save(tmp_path / "m") or ""
    other, live = _tied("cba", is_named=True)
    ts.Saver({"m": other, "o": live}).restore(path)
    assert live.state[other["c"].weight]["momentum_buffer"].tolist() == [[5.0, 5.0], [5.0, 5.0]]
    assert live.state[other["b"].weight]["momentum_buffer"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_parameters_have_names_before_they_have_shapes(tmp_path: Path) -> None:
    model = torch.nn.LazyLinear(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saver = ts.Saver({"model": model, "o": optimizer})
    with pytest.raises(ts.VarListError, match="lazy"):
        ts.Saver({"o": optimizer})
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    prefix = saver.save(tmp_path / "m")
    assert "o.model.weight.momentum_buffer" in ts.load_checkpoint(prefix).keys()
    fresh = torch.nn.LazyLinear(2)
    live = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9)
    ts.Saver({"o": live}, names_from=torch.nn.ModuleDict({"model": fresh})).restore(prefix)
    assert torch.equal(live.state[fresh.weight]["momentum_buffer"], optimizer.state[model.weight]["momentum_buffer"])


def test_parametrized_weight_is_the_weight_to_the_optimizer(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"o": orthogonal(torch.nn.Linear(2, 2)), "n": weight_norm(torch.nn.Linear(2, 2))})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    prefix = ts.Saver({"m": model, "s": optimizer}).save(tmp_path / "m")
    keys = ts.load_checkpoint(prefix).keys()
    names = ["n.bias", "n.weight.original0", "n.weight.original1", "o.bias", "o.weight"]
    assert [key for key in keys if key.startswith("s")] == [f"s.m.{name}.momentum_buffer" for name in names]
    assert "m.o.parametrizations.weight.original" in keys
    plain = torch.nn.ModuleDict({"o": torch.nn.Linear(2, 2)})
    live = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    ts.Saver({"s": live}, names_from=torch.nn.ModuleDict({"m": plain})).restore(prefix)
    assert live.state[plain["o"].weight]["momentum_buffer"].tolist() == [[0.5, 0.5]] * 2


# ---- states by position: checkpoints from before, and torch's own


def write_positional(path: Path, state: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> str:
    problems = Problems()
    tree, inside = flatten("o", state, problems)
    problems.raise_if_any()
    write_checkpoint(str(path), {**inside, **(tensors or {})}, Manifest(objects={"o": tree}))
    return str(path)


def _with_names(model: Model, order: str) -> torch.optim.Optimizer:
    return torch.optim.SGD([(name, model.get_parameter(name)) for name in order], lr=0.1, momentum=0.9)


@pytest.mark.parametrize("has_own_names", [True, False])
def test_positional_state_with_names_goes_by_them(has_own_names: bool, tmp_path: Path) -> None:
    model, other = Model("abc"), Model("cab")
    saved = _with_names(model, "abc")
    step(model, saved)
    prefix = write_positional(tmp_path / "m", saved.state_dict())
    live = _with_names(other, "cab") if has_own_names else torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    report = ts.Saver({"deep.model": other, "o": live}).restore(prefix, strict=False)
    stored, now = all_by_name(model, saved), all_by_name(other, live)
    assert [now[name][1] for name in "abc"] == [stored[name][1] for name in "abc"]
    assert set(report.missing) == {f"deep.model.{name}" for name in "abc"}
    assert live.param_groups[0].get("param_names") == (["c", "a", "b"] if has_own_names else None)


def test_positional_state_with_names_of_other_parameters_is_refused_by_name(tmp_path: Path) -> None:
    prefix = write_positional(tmp_path / "m", _with_names(Model("abc"), "abc").state_dict())
    live = _with_names(Model("xbc"), "xbc")
    with pytest.raises(ts.MismatchError) as raised:
        ts.Saver({"o": live}).restore(prefix)
    assert raised.value.missing == ("o.x",)


def test_positional_state_without_names_goes_by_position_with_counts_shapes_and_dtypes_checked(tmp_path: Path) -> None:
    _, saved, _ = trained("Adam", "ab")
    prefix = write_positional(tmp_path / "m", saved.state_dict())
    other, live, _ = trained("Adam", "ab", steps=1)
    ts.Saver({"o": live}, names_from=other).restore(prefix)
    assert described(live.state_dict()) == described(saved.state_dict())
    for wrong, reason in (
        (torch.optim.Adam(Model("a").groups("a")), "has a group of 1 parameters, and 2 in checkpoint"),
        (torch.optim.Adam(Model("ab").groups("a", "b")), "has 2 parameter groups, and 1 in checkpoint"),
        (torch.optim.Adam(Model("ab", torch.float64).groups("ab")), r"is \[3, 2\] float32 in checkpoint"),
    ):
        names = {f"p{i}": p for i, p in enumerate(p for group in wrong.param_groups for p in group["params"])}
        with pytest.raises(ts.MismatchError, match=reason):
            ts.Saver({**names, "o": wrong}).restore(prefix, strict=False)


def test_named_turns_a_positional_state_into_one_by_name_or_says_why_not() -> None:
    model, optimizer, _ = trained("SGD momentum", "a", "b")
    state = optimizer.state_dict()
    by_name = named(state, ["m.a", "m.b"])
    assert by_name.parameters["m.b"]["momentum_buffer"] is optimizer.state[model.b]["momentum_buffer"]
    assert [group["params"] for group in by_name.param_groups] == [["m.a"], ["m.b"]]
    assert named(_with_names(model, "ba").state_dict()).param_groups[0]["params"] == ["b", "a"]
    for wrong, names in ((state, None), (state, ["x"]), (state, ["x", "x"]), ({"state": {}}, ["x"])):
        with pytest.raises(ValueError, match=r"name|wanted"):
            named(wrong, names)


def test_positional_lbfgs_state_is_reordered_by_its_names() -> None:
    model, optimizer, _ = trained("LBFGS", "abc")
    other, live, _ = trained("LBFGS", "cab", steps=0)
    NamedOptimizer(live, "cab").load_state_dict(named(optimizer.state_dict(), "abc"))
    d = optimizer.state[model.a]["d"]
    assert torch.equal(live.state[other.c]["d"], torch.cat([d[12:], d[:12]]))


# ---- other optimizers


class Counting(torch.optim.SGD):
    """Keeps a number for all parameters together, and gives it a name that is no parameter."""

    def step(self, closure: Any = None) -> Any:
        self.state["counts"] = {"steps": self.state.get("counts", {}).get("steps", 0) + 1, "mean": torch.ones(2)}
        return super().step(closure)


def test_state_of_no_parameter_comes_along(tmp_path: Path) -> None:
    model, other = Model("ab"), Model("ba")
    saved, live = Counting(model.parameters(), lr=0.1, momentum=0.9), Counting(other.parameters(), lr=0.1, momentum=0.9)
    step(model, saved, 2)
    prefix = ts.Saver({"model": model, "o": saved}).save(tmp_path / "m")
    assert "o.counts.mean" in ts.load_checkpoint(prefix).keys()
    ts.Saver({"model": other, "o": live}).restore(prefix)
    assert live.state["counts"]["steps"] == 2
    assert all_by_name(model, saved) == all_by_name(other, live)


class OwnForm(torch.optim.SGD):
    """Gives its state in a form of its own."""

    def state_dict(self) -> Any:
        return {"rates": [group["lr"] for group in self.param_groups]}

    def load_state_dict(self, state: Any) -> None:
        self.param_groups[0]["lr"] = state["rates"][0]


def test_optimizer_with_a_state_of_another_form_is_an_object_like_any(tmp_path: Path) -> None:
    saved, live = (OwnForm([torch.zeros(1)], lr=lr) for lr in (0.5, 0.1))
    ts.Saver({"o": live}).restore(ts.Saver({"o": saved}).save(tmp_path / "m"))
    assert live.param_groups[0]["lr"] == 0.5


class OwnPositions(torch.optim.SGD):
    """Adds something to the usual state, so that it has a form of its own, by position."""

    def state_dict(self) -> Any:
        return {**super().state_dict(), "more": 1}

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict({key: value for key, value in state.items() if key != "more"})


def _own_positions(order: str) -> tuple[Model, OwnPositions, ts.Saver]:
    model = Model(order)
    optimizer = OwnPositions(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, ts.Saver({"model": model, "optimizer": optimizer})


def test_state_of_another_form_is_restored_in_its_order_and_refused_in_any_other(tmp_path: Path) -> None:
    model, optimizer, saver = _own_positions("abc")
    step(model, optimizer)
    prefix = saver.save(tmp_path / "m")
    same, live, same_saver = _own_positions("abc")
    same_saver.restore(prefix)
    assert all_by_name(same, live) == all_by_name(model, optimizer)
    other, reordered, other_saver = _own_positions("bca")
    step(other, reordered, 2)
    before = all_by_name(other, reordered)
    with pytest.raises(ts.MismatchError, match="goes by the order of the parameters, and that is another one"):
        other_saver.restore(prefix)
    assert all_by_name(other, reordered) == before


class Wrapping:
    """Wraps an optimizer, and is none itself."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, refuses: bool = False) -> None:
        self.optimizer, self.refuses = optimizer, refuses

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def state_dict(self) -> Any:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.optimizer.load_state_dict(state)
        if self.refuses:
            self.refuses = False
            raise ValueError("no")


def test_wrapper_that_is_no_optimizer_goes_by_name_too_and_back_if_it_refuses(tmp_path: Path) -> None:
    model, optimizer, _ = trained("Adam", "ab")
    other, live, _ = trained("Adam", "ba", steps=1)
    prefix = ts.Saver({"model": model, "optimizer": Wrapping(optimizer)}).save(tmp_path / "m")
    before = all_by_name(other, live)
    wrapping = Wrapping(live, refuses=True)
    with pytest.raises(ts.MismatchError, match="ValueError: no"):
        ts.Saver({"model": other, "optimizer": wrapping}).restore(prefix)
    assert all_by_name(other, live) == before
    ts.Saver({"model": other, "optimizer": wrapping}).restore(prefix)
    assert all_by_name(other, live) == all_by_name(model, optimizer)


def test_wrapper_whose_parameters_have_no_names_is_an_object_like_any(tmp_path: Path) -> None:
    saved, live = (Wrapping(torch.optim.SGD([torch.zeros(1)], lr=lr)) for lr in (0.5, 0.1))
    ts.Saver({"o": live}).restore(ts.Saver({"o": saved}).save(tmp_path / "m"))
    assert live.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("after", ["SGD momentum", "Adagrad", "Rprop"])
def test_state_of_another_optimizer_is_refused_and_changes_nothing(after: str, tmp_path: Path) -> None:
    prefix = trained("Adam", "ab")[2].save(tmp_path / "m")
    model, optimizer, saver = trained(after, "ab", steps=1)
    before = all_by_name(model, optimizer), described(optimizer.state_dict())
    with pytest.raises(ts.MismatchError, match="it is of another optimizer, and has no "):
        saver.restore(prefix)
    assert (all_by_name(model, optimizer), described(optimizer.state_dict())) == before
    step(model, optimizer)


class Delegating(torch.optim.Optimizer):
    """Hands everything on to the optimizer inside, as launchers wrap them."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    def __getattribute__(self, name: str) -> Any:
        if name in ("param_groups", "state", "state_dict", "load_state_dict", "step"):
            return getattr(object.__getattribute__(self, "inner"), name)
        return object.__getattribute__(self, name)


def test_wrapped_optimizer_goes_by_name_and_fits_a_plain_one(tmp_path: Path) -> None:
    model, optimizer, saver = trained("Adam", "ab")
    other, live, _ = trained("Adam", "ba", steps=1)
    wrapped = ts.Saver({"model": other, "optimizer": Delegating(live)})
    wrapped.restore(saver.save(tmp_path / "plain"))
    assert all_by_name(other, live) == all_by_name(model, optimizer)
    step(other, live)
    saver.restore(wrapped.save(tmp_path / "wrapped"))
    assert all_by_name(other, live) == all_by_name(model, optimizer)


def test_state_of_lbfgs_is_refused_by_others_and_theirs_by_lbfgs(tmp_path: Path) -> None:
    lbfgs, adam = (trained(name, "ab")[2].save(tmp_path / name) for name in ("LBFGS", "Adam"))
    with pytest.raises(ts.MismatchError, match="has the state of LBFGS in checkpoint"):
        trained("Adam", "ab")[2].restore(lbfgs)
    with pytest.raises(ts.MismatchError, match="and another in checkpoint"):
        trained("LBFGS", "ab")[2].restore(adam)


def test_several_optimizers_over_shared_parameters_keep_their_own_states(tmp_path: Path) -> None:
    model, other = Model("abc"), Model("cba")

    def optimizers(of: Model) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(of.groups("ab")), torch.optim.SGD(of.groups("bc"), lr=0.1, momentum=0.9)]

    saved, live = optimizers(model), optimizers(other)
    for optimizer in saved:
        step(model, optimizer)
    prefix = ts.Saver({"m": model, "one": saved[0], "two": saved[1]}).save(tmp_path / "m")
    ts.Saver({"m": other, "one": live[0], "two": live[1]}).restore(prefix)
    for before, now in zip(saved, live, strict=True):
        assert all_by_name(model, before) == all_by_name(other, now)


def test_hooks_of_the_optimizer_run_with_its_own_positions() -> None:
    (saved, live), seen = (torch.optim.Adam(Model(order).groups(order)) for order in ("ab", "ba")), []
    live.register_load_state_dict_pre_hook(lambda _, state: seen.append(state["param_groups"][0]["params"]))
    live.register_load_state_dict_post_hook(lambda _: seen.append("after"))
    NamedOptimizer(live, "ba").load_state_dict(NamedOptimizer(saved, "ab").state_dict())
    assert seen == [[0, 1], "after"]


def test_stored_state_of_a_wrapped_or_a_plain_model_fits_the_other() -> None:
    saved, live = (torch.optim.Adam(Model("ab").groups("ab")) for _ in range(2))
    step(Model("ab"), saved)
    for one, two in ((["m.a", "m.b"], ["m.module.b", "m.module.a"]), (["m._orig_mod.module.a", "m.b"], ["m.b", "m.a"])):
        assert NamedOptimizer(live, two).compare(NamedOptimizer(saved, one).state_dict()) == ([], [])


TORCH_OPTIMIZERS = {
    name: make for name, make in OPTIMIZERS.items() if name.split()[0] not in ("SparseAdam", "LBFGS", "Muon")
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name in TORCH_OPTIMIZERS if "fused" not in name])
def test_state_of_every_torch_optimizer_comes_back_with_its_dtypes(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    def stepped(steps: int) -> tuple[Model, torch.optim.Optimizer]:
        model = Model("ab", dtype)
        optimizer = TORCH_OPTIMIZERS[name](model.parameters())
        step(model, optimizer, steps)
        return model, optimizer

    (model, saved), (other, live) = stepped(3), stepped(1)
    prefix = ts.Saver({"o": saved}, names_from=model).save(tmp_path / "m")
    ts.Saver({"o": live}, names_from=other).restore(prefix)
    assert described(live.state_dict()) == described(saved.state_dict())


def test_texts_and_tensors_in_lists_come_back_as_they_were_where_torch_makes_others_of_them(tmp_path: Path) -> None:
    model, optimizer, saver = trained("SGD momentum", "ab")
    for parameter in model.parameters():
        more = {"mode": "warm", "past": [torch.ones(2, dtype=torch.float64), (torch.ones(1).bfloat16(),)]}
        optimizer.state[parameter] |= {**more, "nested": {"mode": "cold", "n": torch.ones(1).double()}}
    before = all_by_name(model, optimizer)
    other, live, other_saver = trained("SGD momentum", "ba", steps=1)
    other_saver.restore(saver.save(tmp_path / "m"))
    assert all_by_name(other, live) == before


def test_load_that_fails_leaves_the_state_as_it_was() -> None:
    _, optimizer, _ = trained("Adam", "ab")
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="has the state of LBFGS"):
        NamedOptimizer(optimizer, "ab").load_state_dict(NamedState({}, {"lbfgs_numels": []}, []))
    assert described(optimizer.state_dict()) == described(before)


@pytest.mark.parametrize(
    "state",
    [
        {"state": {}, "param_groups": [{"params": [[0]]}]},
        {"state": {}, "param_groups": [{"params": [0], "param_names": 3}]},
        {"state": {}, "param_groups": [{"params": [0], "param_names": [3]}]},
        {"state": {0: 5}, "param_groups": [{"params": [0]}]},
        {"state": {0: {1: 2}}, "param_groups": [{"params": [0]}]},
        {"state": [], "param_groups": [{"params": [0]}]},
        {"state": {}, "param_groups": [3]},
        NamedState({}, {}, []),
        NamedState({"a": {"momentum_buffer": 3}}, {}, [{"params": ["a"], "lr": "x"}, {"params": ["a"]}]),
        NamedState({"a": {}}, {"lbfgs": 5, "lbfgs_numels": 7}, [{"params": ["a"]}]),
        5,
        None,
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["SGD momentum", "LBFGS"])
def test_hostile_state_is_refused_or_restored_and_never_another_error(name: str, state: Any, tmp_path: Path) -> None:
    model, optimizer, _ = trained(name, "a")
    problems = Problems()
    tree, tensors = flatten("o", state, problems)
    write_checkpoint(str(tmp_path / "m"), {"t": torch.ones(1), **tensors}, Manifest(objects={"o": tree}))
    before = all_by_name(model, optimizer)
    try:
        ts.Saver({"o": optimizer}, names_from=model).restore(tmp_path / "m")
    except ts.TorchSaverError:
        assert all_by_name(model, optimizer) == before
