"""Averages in the model inside of the `with` block: every value comes back, and no checkpoint takes one for another."""

from __future__ import annotations

import copy
import gc
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torchsaver as ts
from torchsaver import transfer
from torchsaver.variables import swapped as module_under_test
from torchsaver.variables.swapped import is_any_swapped, swapped, where_held


class Net(torch.nn.Module):
    """A convolution, the statistics of a BatchNorm, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.down = torch.nn.Linear(4, 4)
        self.up = torch.nn.Linear(4, 4)
        self.up.weight = self.down.weight
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.norm(self.conv(images)).mean((2, 3))
        return self.up(self.down(features)) * self.scale


def _average(model: torch.nn.Module, **arguments: Any) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), **arguments)


def _images(seed: int) -> torch.Tensor:
    return torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(seed))


class Run:
    """A model in training, with its average."""

    def __init__(self, use_buffers: bool = True) -> None:
        torch.manual_seed(0)
        self.model = Net()
        self.ema = _average(self.model, use_buffers=use_buffers)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.1)
        self.step = 0

    def train(self, steps: int = 3) -> Run:
        self.model.train()
        for _ in range(steps):
            self.step += 1
            self.optimizer.zero_grad()
            self.model(_images(self.step)).square().mean().backward()
            self.optimizer.step()
            self.ema.update_parameters(self.model)
        return self

    def values(self) -> dict[str, Any]:
        moments = {
            f"{number}.{key}": value
            for number, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        return _copied({**_named("model", self.model), **_named("ema", self.ema), **moments})

    def saver(self) -> ts.Saver:
        return ts.Saver({"model": self.model, "ema": self.ema, "optimizer": self.optimizer})


def _named(prefix: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{key}": value for key, value in module.state_dict().items()}


def _copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor.detach().clone() for key, tensor in tensors.items()}


def _equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(
        value.dtype == others[key].dtype and value.stride() == others[key].stride() and torch.equal(value, others[key])
        for key, value in some.items()
    )


def _different(run: Run) -> bool:
    return not torch.equal(run.model.conv.weight, run.ema.module.conv.weight)


@pytest.fixture(autouse=True)
def _nothing_stays_swapped() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny
    yield
    torch.set_num_threads(threads)
    assert not is_any_swapped()


# ---- the values


def test_swapped_model_computes_what_its_average_computes_and_the_average_what_the_model_did() -> None:
    run = Run().train()
    run.model.eval(), run.ema.eval()
    with torch.no_grad():
        of_model, of_ema = run.model(_images(0)), run.ema(_images(0))
        assert not torch.equal(of_model, of_ema)
        with swapped(run.model, run.ema):
            assert torch.equal(run.model(_images(0)), of_ema)
            assert torch.equal(run.ema(_images(0)), of_model)
        assert torch.equal(run.model(_images(0)), of_model)


@pytest.mark.parametrize("use_buffers", [True, False])
def test_training_goes_on_bit_identically_after_a_swap(use_buffers: bool) -> None:
    undisturbed = Run(use_buffers).train(6)
    run = Run(use_buffers).train(3)
    memory = {name: value.data_ptr() for name, value in run.model.state_dict().items()}
    with swapped(run.model, run.ema), torch.no_grad():
        run.model.eval()(_images(0))
    assert {name: value.data_ptr() for name, value in run.model.state_dict().items()} == memory
    assert _equal(run.train(3).values(), undisturbed.values())


def test_tensors_are_the_same_objects_inside_and_after() -> None:
    run = Run().train()
    before = [*map(id, run.model.parameters()), *map(id, run.ema.parameters()), *map(id, run.model.buffers())]
    gradient = run.model.conv.weight.grad

    def now() -> list[int]:
        return [*map(id, run.model.parameters()), *map(id, run.ema.parameters()), *map(id, run.model.buffers())]

    with swapped(run.model, run.ema):
        assert now() == before
        assert run.model.conv.weight.grad is gradient
        assert run.model.conv.weight.requires_grad
        assert not run.model.scale.requires_grad
    assert now() == before


def test_model_may_be_trained_inside_and_what_it_learns_is_the_averages(tmp_path: Path) -> None:
    run = Run().train()
    of_model, of_ema = _copied(_named("", run.model)), run.ema.module.conv.weight.clone()
    with swapped(run.model, run.ema):
        run.model.train()
        run.model(_images(0)).square().mean().backward()
        run.optimizer.step()
    assert _equal(_named("", run.model), of_model)
    assert not torch.equal(run.ema.module.conv.weight, of_ema)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_everything_is_as_before_after_an_exception(error: type[BaseException]) -> None:
    run = Run().train()
    before = run.values()
    with pytest.raises(error), swapped(run.model, run.ema):
        raise error
    assert _equal(run.values(), before)


@pytest.mark.parametrize("inference", [False, True])
def test_swap_inside_of_inference_mode_leaves_parameters_that_can_be_trained(inference: bool) -> None:
    undisturbed, run = Run().train(4), Run().train()
    with torch.inference_mode(inference), swapped(run.model, run.ema), torch.inference_mode():
        run.model.eval()(_images(0))
    assert _equal(run.train(1).values(), undisturbed.values())


def test_average_made_in_inference_mode_is_exchanged_and_leaves_parameters_that_can_be_trained() -> None:
    undisturbed, run = Run().train(4), Run().train()
    with torch.inference_mode():
        shadow = {name: torch.full_like(p, float("nan")) for name, p in run.model.named_parameters()}
    with swapped(run.model, shadow):
        assert run.model.conv.weight.isnan().all()
        assert not run.model.conv.weight.is_inference()
        assert shadow["conv.weight"].is_inference()
        assert not shadow["conv.weight"].isnan().any()
    assert shadow["conv.weight"].isnan().all()
    assert _equal(run.train(1).values(), undisturbed.values())


def test_memory_formats_go_with_the_values() -> None:
    run = Run().train()
    run.ema.to(memory_format=torch.channels_last)
    before, expected = run.values(), run.ema.eval()(_images(0))
    with swapped(run.model, run.ema):
        assert run.model.conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert run.ema.module.conv.weight.is_contiguous()
        assert torch.equal(run.model.eval()(_images(0)), expected)
    assert _equal(run.values(), before)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.int64, torch.bool]),
    in_inference_mode=st.booleans(),  # then contents are exchanged, not memory
    transposed=st.booleans(),
)
def test_any_values_are_exchanged_and_come_back_bit_for_bit(
    shapes: list[list[int]], dtype: torch.dtype, in_inference_mode: bool, transposed: bool
) -> None:
    def tensor(shape: list[int], fill: int) -> torch.Tensor:
        if not transposed:
            return torch.full(shape, fill, dtype=dtype)
        return torch.full(shape[::-1], fill, dtype=dtype).permute(tuple(reversed(range(len(shape)))))

    model = torch.nn.Module()
    for number, shape in enumerate(shapes):
        model.register_parameter(f"p{number}", torch.nn.Parameter(tensor(shape, 0), requires_grad=False))
    with torch.inference_mode(in_inference_mode):
        ema = {f"p{number}": tensor(list(p.shape), 1) for number, p in enumerate(model.parameters())}
    with swapped(model, ema):
        assert all(bool((p == 1).all()) for p in model.parameters())
        assert not any(bool(value.any()) for value in ema.values())
    assert not any(bool(p.any()) for p in model.parameters())
    assert all(bool((value == 1).all()) for value in ema.values())


# ---- autograd, autocast, torch.compile


@pytest.mark.parametrize("crossing", ["in", "out", "in and out"])
def test_backward_pass_through_values_that_were_exchanged_is_refused(crossing: str) -> None:
    run = Run().train()
    images = _images(0).requires_grad_()  # its gradient needs the weights
    loss = run.model(images).sum()
    with swapped(run.model, run.ema):
        if crossing == "out":
            loss = run.model(images).sum()
        if crossing == "in":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
    if crossing != "in":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_swap_inside_of_autocast_does_not_compute_with_what_was_cast_before() -> None:
    run = Run().train()
    run.model.eval(), run.ema.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of_ema = run.ema(_images(0))
        of_model = run.model(_images(0))  # its weights, cast, are kept now
        with swapped(run.model, run.ema):
            assert torch.equal(run.model(_images(0)), of_ema)
        assert torch.equal(run.model(_images(0)), of_model)


def test_compiled_model_computes_with_the_averages_and_goes_on() -> None:
    run = Run().train()
    torch.compiler.reset()
    compiled = torch.compile(run.model, backend="eager")
    run.model.eval(), run.ema.eval()
    with torch.no_grad():
        of_model, of_ema = compiled(_images(0)), run.ema(_images(0))
        with swapped(compiled, run.ema):
            assert torch.equal(compiled(_images(0)), of_ema)
        assert torch.equal(compiled(_images(0)), of_model)


# ---- what the average may be


class _Holder:
    """As timm's and YOLOX's: an object that has the average."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class _ModuleV2(torch.nn.Module):
    """As timm's ModelEmaV2: no wrapper that torch knows."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    "form",
    [
        lambda ema: ema,
        lambda ema: ema.module,
        lambda ema: _Holder(module=ema.module),
        lambda ema: _Holder(ema=ema.module),
        lambda ema: _Holder(ema=ema),
        lambda ema: _ModuleV2(ema.module),
        torch.nn.DataParallel,
        lambda ema: torch.compile(ema, backend="eager"),
        lambda ema: dict(ema.module.named_parameters()),
        lambda ema: ema.module.state_dict(keep_vars=True),
        lambda ema: {f"module.{name}": p.detach() for name, p in ema.module.named_parameters()},
    ],
    ids=["averaged", "module", "timm", "yolox", "nested", "timm2", "parallel", "compiled", "dict", "state", "detached"],
)
@pytest.mark.parametrize(
    "wrap", [None, torch.nn.DataParallel, partial(torch.compile, backend="eager")], ids=["-", "dp", "c"]
)
def test_every_form_of_an_average_is_exchanged(form: Callable[[Any], Any], wrap: Any) -> None:
    run = Run().train()
    before, average = run.values(), copy.deepcopy(run.ema.module)
    with swapped(wrap(run.model) if wrap else run.model, form(run.ema)):
        for name, parameter in run.model.named_parameters():
            assert torch.equal(parameter, average.get_parameter(name))
    assert _equal(run.values(), before)


def test_submodule_that_a_user_called_module_is_told_from_a_wrapper() -> None:
    model = torch.nn.Module()
    model.w, model.module = torch.nn.Parameter(torch.zeros(1)), torch.nn.Module()
    model.module.w = torch.nn.Parameter(torch.ones(1))
    ema = AveragedModel(model)
    for parameter in ema.parameters():
        parameter.data += 10
    with swapped(model, ema):
        assert (model.w.item(), model.module.w.item()) == (10, 11)
    with pytest.raises(ValueError, match=r"(?s)\n  w: not in ema.*\n  module\.w: not in ema"):
        swapped(model, _ModuleV2(copy.deepcopy(model))).__enter__()


def test_buffers_that_both_have_go_with_the_parameters_and_others_stay() -> None:
    run = Run().train()
    run.model.register_buffer("seen", torch.ones(1))
    run.ema.module.register_buffer("table", torch.ones(3))
    run.model.register_buffer("table", torch.zeros(4))  # of another shape
    mean, averaged, count = run.model.norm.running_mean, run.ema.module.norm.running_mean, run.ema.n_averaged.clone()
    of_model, of_ema = mean.clone(), averaged.clone()
    assert not torch.equal(of_model, of_ema)
    with swapped(run.model, run.ema):
        assert torch.equal(mean, of_ema)
        assert torch.equal(averaged, of_model)
        assert run.model.seen.item() == 1
        assert run.model.table.tolist() == [0] * 4
        assert torch.equal(run.ema.n_averaged, count)
    assert torch.equal(mean, of_model)
    assert torch.equal(averaged, of_ema)


def test_dict_of_parameters_leaves_buffers_alone() -> None:
    run = Run().train()
    before = _copied(dict(run.model.named_buffers()))
    with swapped(run.model, {name: p.detach() * 2 for name, p in run.model.named_parameters()}):
        assert _equal(dict(run.model.named_buffers()), before)


def test_tied_weights_are_exchanged_once_whichever_of_their_names_the_average_has() -> None:
    run = Run().train()
    before = run.model.up.weight.clone()
    shadow = {name: torch.zeros_like(p) for name, p in run.model.named_parameters()}
    shadow["up.weight"] = shadow.pop("down.weight")
    with swapped(run.model, shadow):
        assert run.model.up.weight is run.model.down.weight
        assert not run.model.up.weight.any()
        assert torch.equal(shadow["up.weight"], before)
    assert torch.equal(run.model.down.weight, before)


def test_tie_that_only_one_side_has_is_refused() -> None:
    run = Run().train()
    shadow = {name: torch.zeros_like(p) for name, p in run.model.named_parameters(remove_duplicate=False)}
    with pytest.raises(ValueError, match=r"up\.weight: the same tensor as down\.weight in the model, and"):
        swapped(run.model, shadow).__enter__()
    untied = Net()
    untied.up.weight = torch.nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"up\.weight: the same tensor as down\.weight in ema, and"):
        swapped(untied, run.ema).__enter__()


def test_tensor_that_both_share_is_left_alone() -> None:
    run = Run().train()
    version, of_model = run.model.conv.weight._version, run.model.up.bias.clone()
    shadow = {**dict(run.model.named_parameters()), "up.bias": torch.zeros(4), "scale": run.model.scale.detach()}
    with swapped(run.model, shadow):
        assert run.model.conv.weight._version == version
        assert not run.model.up.bias.any()
    assert torch.equal(run.model.up.bias, of_model)
    with swapped(run.model, run.model):
        assert torch.equal(run.model.up.bias, of_model)


# ---- what is refused


def test_average_that_does_not_fit_is_refused_with_every_reason_and_nothing_is_swapped() -> None:
    run = Run().train()
    before = run.values()
    shadow: dict[str, Any] = {name: torch.zeros_like(p) for name, p in run.model.named_parameters()}
    del shadow["conv.weight"]
    shadow["conv.bias"] = torch.zeros(3)
    shadow["norm.weight"] = torch.zeros(4, dtype=torch.float64)
    shadow["norm.bias"] = None
    with pytest.raises(ValueError, match="nothing was swapped") as caught:
        swapped(run.model, shadow).__enter__()
    hint = "not in ema; to leave it alone, give it itself, as in {**dict(model.named_parameters()), **ema}"
    assert str(caught.value).split("\n  ")[1:] == [
        f"conv.weight: {hint}",
        "conv.bias: shape [4] in the model, [3] in ema",
        "norm.weight: dtype float32 in the model, float64 in ema",
        f"norm.bias: {hint}",
    ]
    assert _equal(run.values(), before)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda ema: ema.to("meta"), "conv.weight: is on the meta device"),
        (lambda ema: setattr(ema.module, "up", torch.nn.LazyLinear(4)), "up.bias: is a lazy parameter"),
        (lambda ema: ema.half(), "scale: dtype float32 in the model, float16 in ema"),
    ],
    ids=["meta", "lazy", "half"],
)
def test_values_that_cannot_be_exchanged_are_refused(spoil: Callable[[Any], Any], reason: str) -> None:
    run = Run().train()
    spoil(run.ema)
    with pytest.raises(ValueError, match=reason):
        swapped(run.model, run.ema).__enter__()


def test_expanded_average_is_exchanged_by_memory_and_refused_where_contents_would_be() -> None:
    model = torch.nn.Linear(2, 2, bias=False)
    with swapped(model, {"weight": torch.ones(1, 2).expand(2, 2)}):
        assert model.weight.tolist() == [[1, 1], [1, 1]]
    with torch.inference_mode():
        ema = {"weight": torch.ones(1, 2).expand(2, 2)}
    with pytest.raises(ValueError, match="weight: is expanded"):
        swapped(model, ema).__enter__()


@pytest.mark.parametrize("ema", [None, [], 3, torch.zeros(1), SimpleNamespace(module=3), object()])
def test_what_is_no_average_is_a_type_error(ema: Any) -> None:
    with pytest.raises(TypeError, match=r"ema is a .*a Module, an object with one"):
        swapped(Net(), ema).__enter__()
    with pytest.raises(TypeError, match=r"model is a torch\.nn\.Module"):
        swapped({}, Net()).__enter__()  # type: ignore[arg-type]


def test_same_model_twice_is_refused_and_the_first_swap_ends_well() -> None:
    run = Run().train()
    before, other = run.values(), copy.deepcopy(run.ema)
    with swapped(run.model, run.ema):
        inside = run.values()
        for model, ema in ((run.model, run.ema), (run.model, other), (copy.deepcopy(run.model), run.ema)):
            with pytest.raises(RuntimeError, match=r"swapped already.*: scale, conv\.weight, "):
                swapped(model, ema).__enter__()
        assert _equal(run.values(), inside)
    assert _equal(run.values(), before)


def test_different_models_may_be_swapped_within_each_other_and_end_in_any_order() -> None:
    one, two = Run().train(), Run().train(5)
    before = one.values(), two.values()
    first, second = swapped(one.model, one.ema), swapped(two.model, two.ema)
    first.__enter__(), second.__enter__()
    assert not _equal(one.values(), before[0])
    assert not _equal(two.values(), before[1])
    first.__exit__(None, None, None)
    assert _equal(one.values(), before[0])
    assert not _equal(two.values(), before[1])
    second.__exit__(None, None, None)
    assert _equal(two.values(), before[1])


# ---- errors and interrupts in the midst


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("leaving", [False, True])
def test_interrupt_while_values_are_exchanged_loses_none(
    after: int, leaving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run().train()
    with torch.inference_mode():  # so that contents are exchanged for some, one after another
        shadow = {"conv.weight": torch.ones(4, 3, 3, 3), "conv.bias": torch.ones(4), "up.bias": torch.ones(4)}
    shadow |= {name: torch.ones_like(p) for name, p in run.model.named_parameters() if name not in shadow}
    before, exchange = (run.values(), _copied(shadow)), module_under_test._exchange_contents
    calls = 0

    def interrupted(one: torch.Tensor, two: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise KeyboardInterrupt
        exchange(one, two)

    def enter_and_leave() -> None:
        if not leaving:
            monkeypatch.setattr(module_under_test, *interruption)
        with swapped(run.model, shadow):
            assert leaving
            monkeypatch.setattr(module_under_test, *interruption)

    interruption = ("_exchange_contents", interrupted)
    if after == 3:
        interruption = ("note_new_values", _raising_once(module_under_test.note_new_values))
    with pytest.raises(KeyboardInterrupt):
        enter_and_leave()
    assert _equal(run.values(), before[0])
    assert _equal(shadow, before[1])


def _raising_once(function: Callable[..., None]) -> Callable[..., None]:
    raised = []

    def raising(tensors: Any) -> None:
        if not raised:
            raised.append(True)
            raise KeyboardInterrupt
        function(tensors)

    return raising


# ---- tensors that are replaced inside


def test_values_loaded_by_assignment_inside_are_the_averages_after() -> None:
    run = Run().train()
    of_model = _copied(run.model.state_dict())
    loaded = {name: value + 7 for name, value in _copied(dict(run.model.named_parameters())).items()}
    with swapped(run.model, run.ema):
        run.model.load_state_dict(_copied(loaded), assign=True, strict=False)
        run.model.up.weight = run.model.down.weight  # assign=True unties
        assert where_held({"w": run.model.conv.weight})["w"] is run.ema.module.conv.weight
    assert _equal(_copied(run.model.state_dict()), of_model)
    assert _equal(_copied(dict(run.ema.module.named_parameters())), loaded)


def test_weight_that_was_untied_inside_is_named_for_it_has_no_values_of_its_own_to_come_back_to() -> None:
    run = Run().train()
    of_model = _copied(run.model.state_dict())
    swap = swapped(run.model, run.ema)
    swap.__enter__()
    run.model.up.weight = torch.nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(RuntimeError, match=r"\n  up\.weight: is not tied to down\.weight any more$"):
        swap.__exit__(None, None, None)
    assert _equal({**run.model.state_dict(), "up.weight": run.model.down.weight.detach()}, of_model)


def test_dict_whose_tensors_are_replaced_inside_holds_the_averages_after() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1)
    shadow = {"weight": torch.full((1, 1), 2.0)}
    with swapped(model, shadow):
        shadow["weight"] = shadow["weight"] + 10  # of the values that the model trains on
    assert (model.weight.item(), shadow["weight"].item()) == (11, 2)


def test_tensor_that_changed_its_kind_or_is_gone_is_named_and_the_others_are_swapped_back() -> None:
    run = Run().train()
    before = run.values()
    swap = swapped(run.model, run.ema)
    swap.__enter__()
    run.model.conv.half()
    run.model.norm.bias = None
    run.ema.module.up.bias = torch.nn.Parameter(torch.zeros(5))
    with pytest.raises(RuntimeError, match="not swapped back; the others are") as caught:
        swap.__exit__(None, None, None)
    assert str(caught.value).split("\n  ")[1:] == [
        "conv.weight: dtype float16 in the model, float32 in ema",
        "conv.bias: dtype float16 in the model, float32 in ema",
        "norm.bias: is not in the model any more",
        "up.bias: shape [4] in the model, [5] in ema",
    ]
    after = run.values()
    left = ("conv.weight", "conv.bias", "norm.bias", "up.bias")
    changed = {f"{prefix}.{name}" for prefix in ("model", "ema.module") for name in left}
    assert _equal(
        *({key: v for key, v in values.items() if key not in changed and key[0] in "me"} for values in (after, before))
    )
    assert torch.equal(run.ema.module.conv.weight, before["model.conv.weight"])  # it is not lost
    assert torch.equal(run.ema.module.norm.bias, before["ema.module.norm.bias"])


# ---- Saver


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)


def _files(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in os.listdir(directory) if name.endswith(".safetensors")}


@pytest.mark.parametrize("shadow", [False, True])
def test_save_inside_writes_the_very_bytes_of_a_save_outside(tmp_path: Path, clock: None, shadow: bool) -> None:
    run = Run().train()
    ema = {name: p.detach() * 2 for name, p in run.model.named_parameters()} if shadow else run.ema
    values = {f"ema/{name}": value for name, value in ema.items()} if isinstance(ema, dict) else {"ema": ema}
    saver = ts.Saver({"model": run.model, "optimizer": run.optimizer, **values})
    for directory in ("before", "inside", "after"):
        if directory == "inside":
            with swapped(run.model, ema):
                saver.save(tmp_path / directory / "model.ckpt", 3, write_state=False)
        else:
            saver.save(tmp_path / directory / "model.ckpt", 3, write_state=False)
    assert _files(tmp_path / "before") == _files(tmp_path / "inside") == _files(tmp_path / "after") != {}


def test_resume_from_a_save_inside_gives_each_its_own_and_goes_on_bit_identically(tmp_path: Path) -> None:
    undisturbed, run, resumed = Run().train(6), Run().train(3), Run()
    with swapped(run.model, run.ema):
        run.saver().save(tmp_path / "model.ckpt", 3)
    report = resumed.saver().resume(tmp_path)
    assert report is not None
    resumed.step = report.global_step or 0
    assert _equal(resumed.values(), run.values())
    assert _equal(resumed.train(3).values(), undisturbed.values())


def test_restore_inside_gives_each_its_own(tmp_path: Path) -> None:
    run = Run().train()
    saver = run.saver()
    prefix = saver.save(tmp_path / "model.ckpt", 3)
    assert prefix is not None
    before = run.values()
    run.train(2)
    with swapped(run.model, run.ema):
        saver.restore(prefix)
        assert torch.equal(run.model.conv.weight, before["ema.module.conv.weight"])
    assert _equal(run.values(), before)
    saver.restore(prefix)
    assert _equal(run.values(), before)


@pytest.mark.parametrize("form", ["dict", "pairs", "module", "names_from", "layout"])
def test_every_form_of_var_list_has_the_values_of_its_own_inside(tmp_path: Path, form: str) -> None:
    run = Run().train()
    weight = run.model.down.weight
    forms: dict[str, Callable[[], ts.Saver]] = {
        "dict": lambda: ts.Saver({"down.weight": weight}),
        "pairs": lambda: ts.Saver([("down.weight", weight)]),
        "module": lambda: ts.Saver(run.model),
        "names_from": lambda: ts.Saver([weight], names_from=run.model),
        "layout": lambda: ts.Saver({"down.weight": transfer.dense(weight)}),
    }
    saver, wanted = forms[form](), weight.detach().clone()
    with swapped(run.model, run.ema):
        prefix = saver.save(tmp_path / "model.ckpt")
    assert prefix is not None
    stored = ts.load_variable(prefix, "down.weight")
    assert torch.equal(stored.T if form == "layout" else stored, wanted)
    torch.nn.init.zeros_(weight)
    with swapped(run.model, run.ema):
        saver.restore(prefix)
    assert torch.equal(weight, wanted)


class _Ema:
    """An average of a user's own, an object to the saver."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.ema = copy.deepcopy(model)
        self.updates = 3

    def state_dict(self) -> dict[str, Any]:
        return {"ema": dict(self.ema.state_dict()), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ema.load_state_dict(state["ema"])
        self.updates = state["updates"]


def test_average_that_is_an_object_is_saved_right_inside_and_not_restored_there(tmp_path: Path, clock: None) -> None:
    model = torch.nn.Linear(2, 2)
    ema = _Ema(torch.nn.Linear(2, 2))
    saver = ts.Saver({"model": model, "ema": ema})
    outside = saver.save(tmp_path / "outside" / "model.ckpt", write_state=False)
    before = _copied({**_named("model", model), **_named("ema", ema.ema)})
    assert outside is not None
    with swapped(model, ema):
        saver.save(tmp_path / "inside" / "model.ckpt", write_state=False)
        with pytest.raises(ts.MismatchError, match="restore outside of the `with` block"):
            saver.restore(outside)
    assert _files(tmp_path / "outside") == _files(tmp_path / "inside")
    assert _equal(before, {**_named("model", model), **_named("ema", ema.ema)})
    saver.restore(outside)


def test_own_values_are_held_by_the_counterpart_inside_and_by_themselves_outside() -> None:
    run = Run().train()
    weight, averaged = run.model.conv.weight, run.ema.module.conv.weight
    tensors = {"model": weight, "ema": averaged, "count": run.ema.n_averaged, "other": torch.zeros(1)}
    assert where_held(tensors) == tensors
    with swapped(run.model, run.ema):
        held = where_held(tensors)
        assert held["model"] is averaged
        assert held["ema"] is weight
        assert held["count"] is tensors["count"]
        assert held["other"] is tensors["other"]
        assert where_held({1: weight.detach()}, or_shared=True)[1] is averaged
        assert where_held({1: (alias := weight.detach())})[1] is alias
    assert where_held(tensors) == tensors


# ---- generators and threads, as the docstring says


def test_suspended_generator_leaves_values_swapped_until_it_is_closed() -> None:
    run = Run().train()
    before = run.values()

    def evaluations() -> Iterator[torch.Tensor]:
        with swapped(run.model, run.ema):
            while True:
                yield run.model.conv.weight

    generator = evaluations()
    assert torch.equal(next(generator), before["ema.module.conv.weight"])
    assert is_any_swapped()
    generator.close()
    assert _equal(run.values(), before)
    next(generator := evaluations())
    del generator
    gc.collect()
    assert _equal(run.values(), before)


def test_other_threads_see_the_averages_and_save_each_under_its_own_key(tmp_path: Path, clock: None) -> None:
    run = Run().train()
    wanted, seen = run.values(), []
    run.saver().save(tmp_path / "outside" / "model.ckpt", 3, write_state=False)

    def other() -> None:
        seen.append(run.model.conv.weight.detach().clone())
        run.saver().save(tmp_path / "inside" / "model.ckpt", 3, write_state=False)
        with pytest.raises(RuntimeError, match="swapped already"):
            swapped(run.model, run.ema).__enter__()
        seen.append(True)

    with swapped(run.model, run.ema):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(seen) == 2
    assert torch.equal(seen[0], wanted["ema.module.conv.weight"])
    assert _files(tmp_path / "outside") == _files(tmp_path / "inside")


def test_threads_that_swap_models_of_their_own_do_not_disturb_each_other() -> None:
    runs = [Run().train(steps) for steps in range(1, 5)]
    before = [run.values() for run in runs]
    wrong = []

    def many(run: Run, values: dict[str, torch.Tensor]) -> None:
        for _ in range(20):
            with swapped(run.model, run.ema):
                if not torch.equal(run.model.conv.bias, values["ema.module.conv.bias"]):
                    wrong.append("inside")
            if not torch.equal(run.model.conv.bias, values["model.conv.bias"]):
                wrong.append("outside")

    threads = [threading.Thread(target=many, args=pair) for pair in zip(runs, before, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(_equal(run.values(), values) for run, values in zip(runs, before, strict=True))


# ---- two devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("moved", ["ema", "model", "both", "model, inside"])
def test_contents_are_exchanged_between_devices_and_saved_as_outside(tmp_path: Path, clock: None, moved: str) -> None:
    run = Run().train()
    if moved in ("ema", "both"):
        run.ema.cuda()
    if moved in ("model", "both"):
        run.model.cuda()
    saver = ts.Saver({"model": run.model, "ema": run.ema})
    saver.save(tmp_path / "outside" / "model.ckpt", 3, write_state=False)
    before = {key: value.cpu() for key, value in run.values().items()}
    with swapped(run.model, run.ema):
        if moved == "model, inside":
            run.model.cuda()
        assert torch.equal(run.model.conv.weight.cpu(), before["ema.module.conv.weight"])
        assert torch.equal(run.model.norm.running_mean.cpu(), before["ema.module.norm.running_mean"])
        saver.save(tmp_path / "inside" / "model.ckpt", 3, write_state=False)
    assert run.model.conv.weight.is_cuda == (moved != "ema")
    assert run.ema.module.conv.weight.is_cuda == (moved in ("ema", "both"))
    assert _equal({key: value.cpu() for key, value in run.values().items()}, before)
    assert _files(tmp_path / "outside") == _files(tmp_path / "inside") != {}
