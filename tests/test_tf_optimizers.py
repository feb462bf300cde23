"""TensorFlow's optimizers go on in torch: the losses that TensorFlow recorded after its checkpoints come again."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pytest
import torch
from torch import nn

import torchsaver as ts
from torchsaver import transfer
from torchsaver.tf_optimizers import restore_optimizer, tf_epsilon, variables_to_restore
from torchsaver.variables.tensorflow.steps import steps_of_powers

RECORDED = Path(__file__).parent / "data" / "tf_optimizers"
CASES = json.loads((RECORDED / "recorded.json").read_text())
# Where a plain torch optimizer has TensorFlow's formula, and where it takes tf_epsilon.
SAME_FORMULA = {"tf1_adagrad", *(case for case, one in CASES.items() if one["optimizer"] == "SGD")}
SLOT_NAMES = {
    "tf1_adam_in_scope": {"exp_avg": "my_adam", "exp_avg_sq": "my_adam_1"},
    "tf1_adam_twice": {"exp_avg": "Adam_2", "exp_avg_sq": "Adam_3"},
}


class Net(nn.Module):
    """Two layers, as in tests/data/tf_optimizers/record.py and the corpus' tf1_adam_ema."""

    def __init__(self, inputs: int = 4, hidden: int = 3, outputs: int = 2) -> None:
        super().__init__()
        self.layer_1 = nn.Linear(inputs, hidden)
        self.layer_2 = nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer_2(torch.tanh(self.layer_1(x)))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, xs: Any, ys: Any) -> list[float]:
    losses = []
    for x, y in zip(torch.from_numpy(xs), torch.from_numpy(ys), strict=True):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def in_tf_layout(model: Net) -> np.ndarray[Any, Any]:
    """Return all weights as TensorFlow has them, one after the other."""
    one, two = model.layer_1, model.layer_2
    return torch.cat([t.detach().flatten() for t in (one.weight.t(), one.bias, two.weight.t(), two.bias)]).numpy()


def recorded_optimizer(case: str, model: nn.Module, **changes: Any) -> torch.optim.Optimizer:
    return getattr(torch.optim, CASES[case]["optimizer"])(model.parameters(), **{**CASES[case]["arguments"], **changes})


def resumed(case: str, **changes: Any) -> tuple[Net, torch.optim.Optimizer]:
    model = Net()
    optimizer = recorded_optimizer(case, model, **changes)
    names = {"/": transfer.from_tf(model)}
    ts.init_from_checkpoint(RECORDED / case, names)
    restore_optimizer(RECORDED / case, optimizer, names, slot_names=SLOT_NAMES.get(case))
    return model, optimizer


def go_on(case: str, model: Net, optimizer: torch.optim.Optimizer) -> tuple[list[float], np.ndarray[Any, Any]]:
    """Return the losses in torch, and TensorFlow's losses and final weights."""
    with np.load(RECORDED / "recorded.npz") as arrays:
        losses = train(model, optimizer, arrays["x"][4:], arrays["y"][4:])
        return losses, arrays["results"][CASES[case]["row"]]


@pytest.mark.parametrize("case", CASES)
def test_recorded_optimizer_goes_on_with_the_very_losses_of_tensorflow(case: str) -> None:
    model, optimizer = resumed(case)
    if case not in SAME_FORMULA:
        tf_epsilon(optimizer)
    losses, wanted = go_on(case, model, optimizer)
    np.testing.assert_allclose(losses, wanted[:6], rtol=1e-6)
    np.testing.assert_allclose(in_tf_layout(model), wanted[6:], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("case", sorted(CASES.keys() - SAME_FORMULA))
def test_recorded_optimizer_without_tf_epsilon_takes_other_steps(case: str) -> None:
    losses, wanted = go_on(case, *resumed(case))  # epsilon was 1e-3 everywhere, so that it shows
    assert np.abs(losses / wanted[:6] - 1).max() > 1e-5


@pytest.mark.parametrize("case", CASES)
def test_state_has_the_form_of_torch_s_own(case: str) -> None:
    _, optimizer = resumed(case)
    other = Net()
    fresh = recorded_optimizer(case, other)
    sum(parameter.sum() for parameter in other.parameters()).backward()  # type: ignore[union-attr]
    fresh.step()
    for parameter, like in zip(optimizer.param_groups[0]["params"], fresh.param_groups[0]["params"], strict=True):
        state, wanted = optimizer.state[parameter], fresh.state[like]
        assert list(state) == list(wanted)
        for name, value in wanted.items():
            found = (type(state[name]), state[name].dtype, state[name].device, state[name].shape, state[name].stride())
            assert found == (type(value), value.dtype, value.device, value.shape, value.stride())
            assert not state[name].requires_grad
    again = recorded_optimizer(case, Net())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("case", [case for case, one in CASES.items() if one["optimizer"].startswith("Adam")])
def test_adam_counts_the_steps_of_tensorflow(case: str) -> None:
    model, optimizer = resumed(case)
    assert {optimizer.state[parameter]["step"].item() for parameter in model.parameters()} == {4.0}


# ---- the corpus


def test_tf1_adam_resumes_with_recorded_losses_and_final_weights() -> None:
    model = Net(6, 8, 3)
    told = corpus.expected("tf1_adam_ema")["adam"]
    optimizer = torch.optim.Adam(
        model.parameters(), lr=told["lr"], betas=(told["beta1"], told["beta2"]), eps=told["epsilon"]
    )
    names = {"/": transfer.from_tf(model, {"dense_1/": "layer_1/", "dense_2/": "layer_2/"})}
    ts.init_from_checkpoint(corpus.prefix("tf1_adam_ema"), names)
    report = restore_optimizer(corpus.prefix("tf1_adam_ema"), optimizer, names)
    assert set(report.restored) >= {"layer_1.weight exp_avg", "layer_2.bias exp_avg_sq"}
    tf_epsilon(optimizer)
    with np.load(corpus.CORPUS / "tf1_adam_ema" / "resume.npz") as resume:
        np.testing.assert_allclose(train(model, optimizer, resume["x"], resume["y"]), resume["losses"], rtol=1e-6)
        parts = [f"final_dense_{layer}.{leaf}" for layer in (1, 2) for leaf in ("kernel", "bias")]
        final = np.concatenate([resume[part].ravel() for part in parts])
    np.testing.assert_allclose(in_tf_layout(model), final, rtol=2e-5, atol=1e-6)


def test_moving_averages_give_the_forward_output_of_tensorflow() -> None:
    model = Net(6, 8, 3)
    names = {"/": transfer.from_tf(model, {"dense_1/": "layer_1/", "dense_2/": "layer_2/"})}
    path = corpus.CORPUS / "tf1_adam_ema"
    ts.Saver(variables_to_restore(path / "model.ckpt-6", names)).restore(path / "model.ckpt-6")
    output = model(torch.from_numpy(np.load(path / "forward_input.npy"))).detach()
    np.testing.assert_allclose(output, np.load(path / "forward_output_ema.npy"), rtol=1e-5, atol=1e-6)


class KerasNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_a, self.bn_a = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv_b, self.bn_b = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.hid, self.out = nn.Linear(150, 7), nn.Linear(7, 3)

    def layouts(self) -> dict[str, Any]:
        """Return parameters by Keras' names, as Keras lays them out."""
        leaves = {"weight": "kernel", "bias": "bias"}
        targets: dict[str, Any] = {}
        for path, parameter in self.named_parameters():
            layer, leaf = path.split(".")
            name = {"weight": "gamma", "bias": "beta"}[leaf] if layer.startswith("bn") else leaves[leaf]
            transform = {4: transfer.conv, 2: transfer.dense}.get(parameter.dim(), transfer.identity)
            targets[f"{layer}/{name}"] = transform(parameter)
        return targets


def keras_slots(case: str, slot: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return the recorded values of the slot variable m or v, by the name of the variable."""
    with np.load(corpus.CORPUS / case / "expected.npz") as arrays:
        tensors = {
            tensor["key"]: arrays[tensor["npz"]] for tensor in corpus.expected(case)["tensors"] if "npz" in tensor
        }
    graph = corpus.expected(case)["object_graph"]
    full_names = {value["full_name"]: key for key, value in graph["keys"].items()}
    patterns = {
        "keras2_adam_object": lambda name: f"Adam/{slot}/{name}",
        "keras2_legacy_adam_object": lambda name: f"Adam/{name}/{slot}",
        "keras3_adam_object": lambda name: f"adam/{name.replace('/', '_')}_{'momentum' if slot == 'm' else 'velocity'}",
    }
    return {name: tensors[full_names[patterns[case](name)]] for name in KerasNet().layouts()}


@pytest.mark.parametrize("case", ["keras2_adam_object", "keras2_legacy_adam_object", "keras3_adam_object"])
@pytest.mark.parametrize("is_module", [True, False])
def test_keras_moments_arrive_in_torch_s_layout_with_their_step(case: str, *, is_module: bool) -> None:
    model = KerasNet()
    optimizer = torch.optim.Adam(model.parameters())
    layouts = model.layouts()
    names = {"/": transfer.from_tf(model)} if is_module else layouts
    restore_optimizer(corpus.prefix(case), optimizer, names)
    with ts.load_checkpoint(corpus.prefix(case)) as reader:
        key = "optimizer/iter" if "legacy" in case else "optimizer/_iterations"
        step = reader.get_tensor(key).item()
    assert step > 0
    for field, slot in (("exp_avg", "m"), ("exp_avg_sq", "v")):
        for name, wanted in keras_slots(case, slot).items():
            (parameter,) = layouts[name].tensors
            moment = layouts[name].transform.to_stored(optimizer.state[parameter][field])
            np.testing.assert_array_equal(moment, wanted)
            assert optimizer.state[parameter]["step"].item() == step


def test_v1_optimizer_s_objects_give_moments_and_the_step_of_the_powers() -> None:
    prefix = corpus.prefix("v1_optimizer_object")
    a, b = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([a, b])
    restore_optimizer(prefix, optimizer, {"net/a": a, "net/b": b})
    with ts.load_checkpoint(prefix) as reader:
        assert optimizer.state[a]["exp_avg"].equal(reader.get_tensor("net/a/.OPTIMIZER_SLOT/opt/m"))
        assert optimizer.state[b]["exp_avg_sq"].equal(reader.get_tensor("net/b/.OPTIMIZER_SLOT/opt/v"))
        steps = round(math.log(reader.get_tensor("opt/beta2_power").item()) / math.log(0.999)) - 1
    assert optimizer.state[a]["step"].item() == steps


@pytest.mark.parametrize(
    ("case", "scope", "ending", "field"),
    [
        ("resnet_like", "resnet/", "Momentum", "momentum_buffer"),
        ("slim_resnet_v1fmt", "resnet_v1_tiny/", "Momentum", "momentum_buffer"),
        ("bert_like", "bert/", "Adam_1", "exp_avg_sq"),
    ],
)
def test_slots_of_whole_models_arrive_transposed(case: str, scope: str, ending: str, field: str) -> None:
    with ts.load_checkpoint(corpus.prefix(case)) as reader:
        slots = {
            key.removesuffix(f"/{ending}"): reader.get_tensor(key)
            for key in reader.keys()
            if key.startswith(scope) and key.endswith(f"/{ending}")
        }
    layouts = {}
    for key, slot in slots.items():
        transform = {4: transfer.conv}.get(slot.dim(), transfer.identity)
        if slot.dim() == 2 and key.endswith(("kernel", "weights")):
            transform = transfer.dense
        layouts[key] = transform(nn.Parameter(transform.to_torch(torch.zeros(slot.shape)).contiguous()))
    parameters = [layout.tensors[0] for layout in layouts.values()]
    is_adam = ending.startswith("Adam")
    optimizer = torch.optim.AdamW(parameters) if is_adam else torch.optim.SGD(parameters, 0.1, 0.9)
    restore_optimizer(corpus.prefix(case), optimizer, layouts)
    for key, layout in layouts.items():
        state = optimizer.state[layout.tensors[0]][field]
        assert state.is_contiguous()
        assert layout.transform.to_stored(state).equal(slots[key])
        assert slots[key].any()


# ---- what is not there


def copied_state(optimizer: torch.optim.Optimizer) -> dict[Any, dict[str, Any]]:
    return {parameter: copy.deepcopy(state) for parameter, state in optimizer.state.items()}


def require_same_state(optimizer: torch.optim.Optimizer, before: dict[Any, dict[str, Any]]) -> None:
    assert optimizer.state.keys() == before.keys()
    for parameter, state in before.items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(optimizer.state[parameter][name]), torch.as_tensor(value))


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Any, dict[str, Any]]:
    """Return the state after a step of its own."""
    sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return copied_state(optimizer)


def test_missing_slots_are_all_named_and_nothing_changes() -> None:
    model = Net()
    optimizer = recorded_optimizer("tf1_momentum", model)
    adam = torch.optim.Adam(model.parameters())
    before = stepped(model, adam)
    with pytest.raises(ts.MismatchError) as caught:
        restore_optimizer(RECORDED / "tf1_momentum", adam, {"/": transfer.from_tf(model)}, step=4)
    parameters = [f"layer_{layer}.{leaf}" for layer in (1, 2) for leaf in ("weight", "bias")]
    assert set(caught.value.missing) == {f"{name} {m}" for name in parameters for m in ("exp_avg", "exp_avg_sq")}
    assert "as 'layer_1/kernel/Adam'" in str(caught.value)
    require_same_state(adam, before)
    restore_optimizer(RECORDED / "tf1_momentum", optimizer, {"/": transfer.from_tf(model)})


def test_parameters_that_the_map_leaves_out_are_all_named_and_nothing_changes() -> None:
    model = Net()
    optimizer = recorded_optimizer("tf1_momentum", model)
    before = stepped(model, optimizer)
    rules = {"layer_2/": "layer_3/"}
    with pytest.raises(ts.MismatchError) as caught:
        restore_optimizer(RECORDED / "tf1_momentum", optimizer, {"/": transfer.from_tf(model, rules)})
    assert set(caught.value.missing) == {"layer_2.weight", "layer_2.bias"}
    require_same_state(optimizer, before)


def test_slots_of_another_shape_change_nothing() -> None:
    model = Net(4, 3, 3)
    optimizer = recorded_optimizer("tf1_momentum", model)
    before = stepped(model, optimizer)
    with pytest.raises(ts.MismatchError, match=r"layer_2\.bias momentum_buffer"):
        restore_optimizer(RECORDED / "tf1_momentum", optimizer, {"/": transfer.from_tf(model)})
    require_same_state(optimizer, before)


def test_damaged_slots_change_nothing(tmp_path: Path) -> None:
    for file in RECORDED.glob("tf1_momentum.*"):
        data = bytearray(file.read_bytes())
        if file.suffix != ".index":
            data[-1] ^= 1  # the last is layer_2/kernel/Momentum
        (tmp_path / file.name).write_bytes(data)
    model = Net()
    optimizer = recorded_optimizer("tf1_momentum", model)
    before = stepped(model, optimizer)
    with pytest.raises(ts.CorruptCheckpointError):
        restore_optimizer(tmp_path / "tf1_momentum", optimizer, {"/": transfer.from_tf(model)})
    require_same_state(optimizer, before)


def test_what_is_missing_keeps_its_state_when_not_strict() -> None:
    model = Net()
    optimizer = recorded_optimizer("tf1_momentum", model)
    before = stepped(model, optimizer)
    rules = {"layer_2/": "layer_3/"}
    names = {"/": transfer.from_tf(model, rules)}
    report = restore_optimizer(RECORDED / "tf1_momentum", optimizer, names, strict=False)
    assert set(report.missing) == {"layer_2.weight", "layer_2.bias"}
    for parameter in model.layer_2.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].equal(before[parameter]["momentum_buffer"])
    moment = ts.load_variable(RECORDED / "tf1_momentum", "layer_1/kernel/Momentum")
    assert optimizer.state[model.layer_1.weight]["momentum_buffer"].equal(moment.t())


def test_frozen_parameters_need_no_slots() -> None:
    model = Net()
    model.layer_2.requires_grad_(False)
    optimizer = recorded_optimizer("tf1_momentum", model)
    restore_optimizer(RECORDED / "tf1_momentum", optimizer, {"layer_1/": transfer.from_tf(model.layer_1)})
    assert set(optimizer.state) == set(model.layer_1.parameters())


def test_settings_that_tensorflow_cannot_have_had_are_refused() -> None:
    model = Net()
    names = {"/": transfer.from_tf(model)}
    with pytest.raises(ValueError, match="dampening"):
        restore_optimizer(
            RECORDED / "tf1_momentum", torch.optim.SGD(model.parameters(), 0.1, 0.9, dampening=0.1), names
        )
    with pytest.raises(ValueError, match="lr=0"):
        restore_optimizer(RECORDED / "keras3_sgd", torch.optim.SGD(model.parameters(), 0.0, 0.9), names)
    with pytest.raises(TypeError, match="Rprop"):
        restore_optimizer(RECORDED / "tf1_momentum", torch.optim.Rprop(model.parameters()), names)
    with pytest.raises(ValueError, match="momentum"):
        restore_optimizer(
            RECORDED / "tf1_momentum", torch.optim.Adam(model.parameters()), names, slot_names={"momentum": "x"}
        )
    with pytest.raises(ValueError, match="step=-1"):
        restore_optimizer(RECORDED / "tf1_momentum", torch.optim.Adam(model.parameters()), names, step=-1)


# ---- the number of steps


def power(beta: float, steps: int) -> torch.Tensor:
    """Return what TensorFlow has: multiplied in float32, and 0 where that is below the normal numbers."""
    value = np.float32(beta)
    for _ in range(steps):
        value *= np.float32(beta)
        if value < np.finfo(np.float32).tiny:
            return torch.tensor(0.0)
    return torch.tensor(value)


@pytest.mark.parametrize("steps", [0, 1, 800, 5000, 60000])
def test_powers_tell_the_number_of_steps(steps: int) -> None:
    pair = power(0.9, steps), power(0.999, steps)
    assert steps_of_powers([pair], (0.9, 0.999), None) == steps


def test_powers_too_small_to_tell_take_a_global_step_that_agrees() -> None:
    pair = torch.tensor(0.0), torch.tensor(0.0)
    assert steps_of_powers([pair], (0.9, 0.999), None) is None
    assert steps_of_powers([pair], (0.9, 0.999), 1000) is None
    assert steps_of_powers([pair], (0.9, 0.999), 200_000) == 200_000
    assert steps_of_powers([(torch.tensor(0.0), power(0.999, 7))], (0.0, 0.999), None) == 7


def test_powers_that_disagree_tell_nothing() -> None:
    assert steps_of_powers([(power(0.9, 4), power(0.999, 5))], (0.9, 0.999), 4) is None
    assert steps_of_powers([(torch.tensor(0.0), power(0.999, 5))], (0.9, 0.999), 5) is None
    assert steps_of_powers([(power(0.9, 4), power(0.99, 4))], (0.9, 0.999), 4) is None
    both = [(power(0.9, steps), power(0.999, steps)) for steps in (4, 5)]
    assert steps_of_powers(both, (0.9, 0.999), 4) is None


def test_other_betas_than_tensorflow_s_ask_for_the_step() -> None:
    model = Net()
    optimizer = recorded_optimizer("tf1_adam_in_scope", model, betas=(0.85, 0.98))
    names = {"/": transfer.from_tf(model)}
    slot_names = SLOT_NAMES["tf1_adam_in_scope"]
    with pytest.raises(ts.MismatchError, match=r"train/beta2_power.*step="):
        restore_optimizer(RECORDED / "tf1_adam_in_scope", optimizer, names, slot_names=slot_names)
    assert not optimizer.state
    restore_optimizer(RECORDED / "tf1_adam_in_scope", optimizer, names, slot_names=slot_names, step=9)
    assert optimizer.state[model.layer_1.bias]["step"].item() == 9


# ---- parts of parameters, and sums


def test_parts_of_a_parameter_get_their_parts_of_the_state(tmp_path: Path) -> None:
    values = {f"{name}/kernel": torch.randn(4, 2) for name in "qkv"}
    slots = {f"{key}/Momentum": torch.randn(4, 2) for key in values}
    ts.Saver({**values, **slots}).save(tmp_path / "ckpt")
    fused = nn.Parameter(torch.zeros(6, 4))
    optimizer = torch.optim.SGD([fused], 0.1, 0.9)
    parts = {f"{name}/kernel": transfer.dense(fused[2 * row : 2 * row + 2]) for row, name in enumerate("qkv")}
    restore_optimizer(tmp_path / "ckpt", optimizer, parts)
    wanted = torch.cat([slots[f"{name}/kernel/Momentum"].t() for name in "qkv"])
    assert optimizer.state[fused]["momentum_buffer"].equal(wanted)
    del parts["k/kernel"]
    with pytest.raises(ts.MismatchError, match="a part of"):
        restore_optimizer(tmp_path / "ckpt", optimizer, parts)
    report = restore_optimizer(tmp_path / "ckpt", optimizer, parts, strict=False)
    assert len(report.missing) == 1
    assert optimizer.state[fused]["momentum_buffer"].equal(wanted)


def test_another_view_of_a_parameter_is_the_parameter(tmp_path: Path) -> None:
    slot = torch.randn(4, 2)
    ts.Saver({"w": torch.zeros(4, 2), "w/Momentum": slot}).save(tmp_path / "ckpt")
    own = nn.Parameter(torch.zeros(2, 4))
    optimizer = torch.optim.SGD([own], 0.1, 0.9)
    restore_optimizer(tmp_path / "ckpt", optimizer, {"w": own.detach().t()})
    assert optimizer.state[own]["momentum_buffer"].equal(slot.t())


def test_keras_names_in_a_graph_of_tensorflow_1_count_as_keras(tmp_path: Path) -> None:
    values = {"w": torch.zeros(2), "training/SGD/w/momentum": torch.tensor([1.0, -2.0])}
    adam = {f"training/Adam/w/{slot}": torch.tensor([3.0, 4.0]) for slot in "mv"}
    count = {"training/Adam/iter": torch.tensor(7)}
    ts.Saver({**values, **adam, **count}).save(tmp_path / "ckpt")
    own = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([own], 0.5, 0.9)
    restore_optimizer(tmp_path / "ckpt", optimizer, {"w": own})
    assert optimizer.state[own]["momentum_buffer"].tolist() == [-2, 4]
    other = torch.optim.Adam([own])
    restore_optimizer(tmp_path / "ckpt", other, {"w": own})
    assert other.state[own]["step"].item() == 7
    assert other.state[own]["exp_avg"].tolist() == [3, 4]


def test_powers_in_another_scope_than_the_slots_count(tmp_path: Path) -> None:
    slots = {"w": torch.zeros(2), "w/Adam": torch.ones(2), "w/Adam_1": torch.ones(2)}
    powers = {"train/beta1_power": power(0.9, 3), "train/beta2_power": power(0.999, 3)}
    ts.Saver({**slots, **powers}).save(tmp_path / "ckpt")
    own = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([own])
    restore_optimizer(tmp_path / "ckpt", optimizer, {"w": own})
    assert optimizer.state[own]["step"].item() == 3


def test_bert_s_own_adam_goes_on_without_bias_correction(tmp_path: Path) -> None:
    m, v, w, g = (np.array(values) for values in ([0.1, -0.2], [0.01, 0.3], [1.0, 2.0], [0.5, -0.5]))
    stored = {"w": w, "w/adam_m": m, "w/adam_v": v}
    ts.Saver({key: torch.tensor(value, dtype=torch.float32) for key, value in stored.items()}).save(tmp_path / "ckpt")
    own = nn.Parameter(torch.tensor(w, dtype=torch.float32))
    optimizer = torch.optim.AdamW([own], 0.1, eps=1e-6, weight_decay=0.01)
    slot_names = {"exp_avg": "adam_m", "exp_avg_sq": "adam_v"}
    restore_optimizer(tmp_path / "ckpt", optimizer, {"w": own}, slot_names=slot_names, step=10**6)
    own.grad = torch.tensor(g, dtype=torch.float32)
    optimizer.step()
    update = (0.9 * m + 0.1 * g) / (np.sqrt(0.999 * v + 0.001 * g**2) + 1e-6) + 0.01 * w
    np.testing.assert_allclose(own.detach(), w - 0.1 * update, rtol=1e-6)


def test_step_is_as_torch_makes_it_for_fused_optimizers_and_another_default_dtype() -> None:
    model = Net()
    torch.set_default_dtype(torch.float64)
    try:
        for fused in (False, True):
            optimizer = recorded_optimizer("legacy_adam", model, fused=fused)
            fresh = recorded_optimizer("legacy_adam", model, fused=fused)
            stepped(model, fresh)
            restore_optimizer(RECORDED / "legacy_adam", optimizer, {"/": transfer.from_tf(model)})
            for parameter in model.parameters():
                assert optimizer.state[parameter]["step"].dtype == fresh.state[parameter]["step"].dtype
    finally:
        torch.set_default_dtype(torch.float32)


def test_both_biases_of_a_stored_sum_get_the_whole_moment(tmp_path: Path) -> None:
    cell = nn.LSTMCell(3, 2)
    layouts = transfer.basic_lstm_layouts(cell)
    names = {f"cell/{leaf}": layout for leaf, layout in layouts.items()}
    values = {name: layout.to_stored() for name, layout in names.items()}
    slots = {f"{name}/Momentum": torch.randn(value.shape) for name, value in values.items()}
    ts.Saver({**values, **slots}).save(tmp_path / "ckpt")
    optimizer = torch.optim.SGD(cell.parameters(), 0.1, 0.9)
    restore_optimizer(tmp_path / "ckpt", optimizer, names)
    wanted = layouts["bias"].transform.to_torch(slots["cell/bias/Momentum"])
    assert optimizer.state[cell.bias_ih]["momentum_buffer"].equal(wanted)
    assert optimizer.state[cell.bias_hh]["momentum_buffer"].equal(wanted)


def test_a_scope_s_slots_are_those_of_the_longest_name(tmp_path: Path) -> None:
    keys = ["w", "a/w", "a/w/Momentum", "train/w/Momentum"]
    ts.Saver({key: torch.full((2,), float(number)) for number, key in enumerate(keys)}).save(tmp_path / "ckpt")
    own, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([own, other], 0.1, 0.9)
    restore_optimizer(tmp_path / "ckpt", optimizer, {"w": own, "a/w": other})
    assert optimizer.state[own]["momentum_buffer"].tolist() == [3, 3]
    assert optimizer.state[other]["momentum_buffer"].tolist() == [2, 2]


def test_slots_in_two_scopes_are_not_chosen_between(tmp_path: Path) -> None:
    keys = ["w", "one/w/Momentum", "two/w/Momentum"]
    ts.Saver({key: torch.zeros(2) for key in keys}).save(tmp_path / "ckpt")
    own = nn.Parameter(torch.zeros(2))
    with pytest.raises(ts.MismatchError, match="'one/w/Momentum', 'two/w/Momentum'"):
        restore_optimizer(tmp_path / "ckpt", torch.optim.SGD([own], 0.1, 0.9), {"w": own})


# ---- epsilon


def test_epsilon_and_state_are_the_user_s_between_steps() -> None:
    for case in ("tf1_rmsprop", "keras2_adagrad", "legacy_adam"):
        model, optimizer = resumed(case)
        handle = tf_epsilon(optimizer)
        go_on(case, model, optimizer)
        assert optimizer.state_dict()["param_groups"][0]["eps"] == CASES[case]["arguments"]["eps"]
        handle.remove()
        plain, other = resumed(case)
        go_on(case, plain, other)
        values = ("square_avg", "sum", "exp_avg_sq")
        for one, two in zip(model.parameters(), plain.parameters(), strict=True):
            for name in (name for name in values if name in optimizer.state[one]):
                torch.testing.assert_close(optimizer.state[one][name], other.state[two][name], rtol=0.02, atol=1e-3)


def test_epsilon_counts_for_each_group() -> None:
    one, two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([{"params": [one]}, {"params": [two], "eps": 1e-2}], eps=1e-3)
    handle = tf_epsilon(optimizer)
    seen: list[list[float]] = []
    hook = optimizer.register_step_pre_hook(lambda o, a, k: seen.append([group["eps"] for group in o.param_groups]))
    one.grad = torch.ones(3)
    optimizer.step()
    two.grad = torch.ones(3)
    optimizer.step()
    root = [math.sqrt(1 - 0.999**step) for step in (1, 2)]
    np.testing.assert_allclose(seen, [[1e-3 / root[0], 1e-2], [1e-3 / root[1], 1e-2 / root[0]]], rtol=1e-12)
    hook.remove()
    handle.remove()
    assert not optimizer._optimizer_step_pre_hooks


def test_epsilon_of_parameters_with_different_steps_is_refused_and_nothing_changes() -> None:
    one, two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([one, two])
    tf_epsilon(optimizer)
    one.grad = torch.ones(3)
    optimizer.step()
    two.grad = torch.ones(3)
    with pytest.raises(ValueError, match="0, 1 steps"):
        optimizer.step()
    assert two.tolist() == [1, 1, 1]
    assert optimizer.param_groups[0]["eps"] == 1e-8


def test_epsilon_with_a_closure_takes_the_same_step_and_runs_it_once() -> None:
    model, optimizer = resumed("tf1_rmsprop")
    plain, other = resumed("tf1_rmsprop")
    tf_epsilon(optimizer)
    tf_epsilon(other)
    x = torch.ones(5, 4)
    calls = []

    def closure() -> torch.Tensor:
        calls.append(1)
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == plain(x).sum().item()  # type: ignore[attr-defined]
    plain(x).sum().backward()
    other.step()
    assert len(calls) == 1
    np.testing.assert_array_equal(in_tf_layout(model), in_tf_layout(plain))


@pytest.mark.parametrize("is_step_taken", [True, False])
def test_a_step_that_fails_leaves_no_trace_of_epsilon(*, is_step_taken: bool) -> None:
    model, optimizer = resumed("tf1_rmsprop")
    handle = tf_epsilon(optimizer)
    model(torch.ones(5, 4)).sum().backward()
    before = copied_state(optimizer)

    def fail(*args: Any) -> None:
        raise RuntimeError("disk of the moon")

    register = optimizer.register_step_post_hook if is_step_taken else optimizer.register_step_pre_hook
    hook = register(fail)
    if is_step_taken:
        optimizer._optimizer_step_post_hooks.move_to_end(hook.id, last=False)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="moon"):
        optimizer.step()
    handle.remove()
    assert optimizer.param_groups[0]["eps"] == 1e-3
    for parameter, state in before.items():
        grad = parameter.grad if is_step_taken else torch.zeros(())
        wanted = 0.8 * state["square_avg"] + 0.2 * grad**2 if is_step_taken else state["square_avg"]
        torch.testing.assert_close(optimizer.state[parameter]["square_avg"], wanted)


def test_epsilon_twice_and_of_sgd_is_refused() -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    handle = tf_epsilon(optimizer)
    with pytest.raises(ValueError, match="already"):
        tf_epsilon(optimizer)
    handle.remove()
    tf_epsilon(optimizer)
    with pytest.raises(TypeError, match="SGD"):
        tf_epsilon(torch.optim.SGD(model.parameters(), 0.1))


def test_epsilon_without_any_state_begins_as_torch_does() -> None:
    for kind in (torch.optim.RMSprop, torch.optim.Adagrad):
        model = Net()
        optimizer = kind(model.parameters(), lr=0.1, eps=1e-2)
        tf_epsilon(optimizer)
        before = in_tf_layout(model)
        model.layer_2.bias.grad = torch.tensor([0.5, -0.25])
        optimizer.step()
        share = 0.01 if kind is torch.optim.RMSprop else 1.0
        wanted = 0.1 * np.array([0.5, -0.25]) / np.sqrt(share * np.array([0.25, 0.0625]) + 1e-2)
        np.testing.assert_allclose(before[-2:] - in_tf_layout(model)[-2:], wanted, rtol=1e-4)
        assert all(parameter.grad is not None for parameter in optimizer.state if kind is torch.optim.RMSprop)


# ---- moving averages


def test_averages_in_a_scope_and_of_another_name_are_found_and_the_rest_is_itself(tmp_path: Path) -> None:
    model = Net()
    targets = variables_to_restore(RECORDED / "tf1_adam_in_scope", transfer.from_tf(model), name="average")
    leaves = [f"layer_{layer}/{leaf}" for layer in (1, 2) for leaf in ("kernel", "bias")]
    assert set(targets) == {f"train/{leaf}/average" for leaf in leaves}
    ts.Saver(targets).restore(RECORDED / "tf1_adam_in_scope")
    assert model.layer_1.bias.equal(ts.load_variable(RECORDED / "tf1_adam_in_scope", "train/layer_1/bias/average"))
    ts.Saver({"w": torch.zeros(2), "w/ema": torch.ones(2), "mean": torch.ones(2)}).save(tmp_path / "ckpt")
    w, mean = torch.zeros(2), torch.zeros(2)
    assert variables_to_restore(tmp_path / "ckpt", {"w": w, "mean": mean}, name="ema") == {"w/ema": w, "mean": mean}


def test_averages_that_no_value_has_are_an_error() -> None:
    with pytest.raises(ts.CheckpointKeyError, match="ExponentialMovingAverage"):
        variables_to_restore(RECORDED / "tf1_adam_in_scope", transfer.from_tf(Net()))
