"""Values from other checkpoints go into a model: all of them or none, told before, and saved back bit for bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from roundtrip import Held
from safetensors.torch import load_file, save_file
from torch import nn
from variables.tf_reference import DTYPES, any_bits, content

import torchsaver as ts
from torchsaver import transfer
from torchsaver.transfer import Concat, Layout, Stack, Sum, conv, dense, gates, init_from_checkpoint, plan_transfer


def checkpoint(tmp_path: Path, values: Mapping[str, Any], **args: Any) -> str:
    """Save values, or nested lists of numbers, and return the prefix."""
    tensors = {key: value if isinstance(value, torch.Tensor) else torch.tensor(value) for key, value in values.items()}
    saved = ts.Saver(tensors).save(tmp_path / "theirs", **args)
    assert saved is not None
    return saved


def linear(*shape: int) -> nn.Linear:
    """Return a layer of zeros."""
    layer = nn.Linear(*shape)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def contents(values: Any) -> list[Any]:
    return [content(value.detach()) for value in values]


class Unchanged:
    """Tensors that are to stay as they are."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = tensors
        self.before = contents(tensors)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        assert contents(self.tensors) == self.before


# ---- init_from_checkpoint


def test_init_fills_a_module_from_tensorflow_names_and_layouts_and_reports(tmp_path: Path) -> None:
    kernel, bias = torch.rand(2, 3), torch.rand(3)
    prefix = checkpoint(tmp_path, {"net/out/w": kernel, "net/out/b": bias, "net/step": 3}, global_step=7)
    model = nn.ModuleDict({"out": linear(2, 3)})
    report = init_from_checkpoint(prefix, {"net/": transfer.from_tf(model)})
    assert torch.equal(model["out"].weight, kernel.t())
    assert torch.equal(model["out"].bias, bias)
    assert sorted(report.restored) == ["out.bias", "out.weight"]
    assert (report.unused, report.global_step, report.save_path) == (("net/step",), 7, prefix)


def test_init_takes_a_directory_or_a_file_of_anyone(tmp_path: Path) -> None:
    checkpoint(tmp_path, {"w": [1.0]})
    save_file({"w": torch.tensor([2.0])}, tmp_path / "anyone.safetensors")
    for path, expected in ((tmp_path, 1.0), (tmp_path / "anyone.safetensors", 2.0)):
        target = torch.zeros(1)
        init_from_checkpoint(path, {"w": target})
        assert target.item() == expected


def test_init_from_tensorflow_object_graph_finds_values_by_path_and_by_name() -> None:
    case = Path(__file__).parent / "data" / "corpus" / "keras2_save_weights" / "weights"
    with ts.load_checkpoint(case) as reader:
        names = {key: others for key, others in transfer.names_of(reader).items() if others}
        for key, others in names.items():
            for name in (key, *others):
                target = torch.zeros_like(reader.get_tensor(key))
                init_from_checkpoint(case, {name: target})
                assert torch.equal(target, reader.get_tensor(key))
    assert names


def test_init_finds_a_tied_value_by_the_name_it_is_not_stored_under(tmp_path: Path) -> None:
    tied = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "ab"})
    tied["b"].weight = tied["a"].weight
    prefix = ts.Saver(tied).save(tmp_path / "tied")
    target = torch.zeros(2, 2)
    init_from_checkpoint(str(prefix), {"b.weight": target})
    assert torch.equal(target, tied["a"].weight)


def test_init_lets_one_value_go_into_several_variables_and_the_last_entry_win(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path, {"a": [1.0], "b": [2.0]})
    one, two = torch.zeros(1), torch.zeros(1)
    report = init_from_checkpoint(prefix, [("b", one), ("a", one), ("b", two)])
    assert (one.item(), two.item()) == (2.0, 2.0)
    assert report.restored == ("b", "b (2)")


def test_init_fills_a_variable_in_parts(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path, {"emb": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]})
    parts = [torch.zeros(1, 2), torch.zeros(2, 2)]
    init_from_checkpoint(prefix, {"emb": parts})
    assert [part.tolist() for part in parts] == [[[1, 2]], [[3, 4], [5, 6]]]


def test_init_fills_attention_from_three_kernels_through_parts_of_its_weight(tmp_path: Path) -> None:
    kernels = {name: torch.rand(4, 4) for name in ("query", "key", "value")}
    rest = {"att/out_proj/kernel": torch.rand(4, 4), "att/out_proj/bias": torch.rand(4), "bias": torch.rand(12)}
    prefix = checkpoint(tmp_path, {**kernels, **rest})
    model = nn.ModuleDict({"att": nn.MultiheadAttention(4, 2)})
    weight = model["att"].in_proj_weight
    parts = {name: dense(weight[4 * number : 4 * number + 4]) for number, name in enumerate(kernels)}
    entries: dict[Any, Any] = {"/": transfer.from_tf(model), "bias": model["att"].in_proj_bias, **parts}
    assert plan_transfer(prefix, entries).is_complete
    init_from_checkpoint(prefix, entries)
    assert torch.equal(weight, torch.cat([kernel.t() for kernel in kernels.values()]))
    fresh = nn.MultiheadAttention(4, 2)
    with pytest.raises(ts.MismatchError) as caught:
        init_from_checkpoint(prefix, {"/": transfer.from_tf(nn.ModuleDict({"att": fresh}))})
    assert caught.value.missing == ("att.in_proj_weight", "att.in_proj_bias")


def test_init_after_values_were_assigned_fills_those_that_are_there_now(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path, {"kernel": torch.ones(2, 3), "bias": torch.ones(3)})
    model = linear(2, 3)
    names = transfer.from_tf(model)
    init_from_checkpoint(prefix, names)
    model.load_state_dict({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, assign=True)
    init_from_checkpoint(prefix, names)
    assert model.weight.eq(1).all()
    assert model.bias.eq(1).all()


def test_init_with_any_mismatch_lists_them_all_and_changes_nothing(tmp_path: Path) -> None:
    values = {
        "sc/good": [1.0],
        "sc/shape": [[1.0, 2.0]],
        "sc/dtype": torch.ones(1).double(),
        "kernel": torch.ones(3, 2),
    }
    prefix = checkpoint(tmp_path, {**values, "sc/expanded": [1.0, 1.0]})
    with ts.Collection():
        names = {"x/good": [0.0], "x/shape": [0.0, 0.0], "x/dtype": [0.0], "x/gone": [0.0]}
        kept = [ts.Variable(value, name=name) for name, value in names.items()]
        weight, expanded = torch.zeros(3, 2), torch.zeros(1).expand(2)
        entries = {"sc/": "x/", "kernel": dense(weight), "sc/expanded": expanded, "nope": torch.zeros(1)}
        with Unchanged(*kept, weight, expanded), pytest.raises(ts.MismatchError) as caught:
            init_from_checkpoint(prefix, entries)
        error = caught.value
        assert error.missing == ("nope", "x/gone")
        assert error.shapes == (("x/shape", [1, 2], [2]),)
        assert error.dtypes == (("x/dtype", "float64", "float32"),)
        assert [key for key, _ in error.targets] == ["sc/expanded", "kernel"]
        del entries["nope"]
        plan = plan_transfer(prefix, entries)
        assert plan.problems.keys() == {"x/shape", "x/dtype", "sc/expanded", "kernel"}
        assert plan.missing == {"x/gone": ("sc/good", "sc/shape", "sc/dtype")}


def test_mismatch_tells_the_name_that_was_looked_for_and_no_remedy_of_savers(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path, {"sc/weigth": torch.ones(2, 3), "sc/bias": torch.ones(3)})
    model = linear(2, 3)
    with pytest.raises(ts.MismatchError) as caught:
        init_from_checkpoint(prefix, {"sc/": model})
    assert str(caught.value) == (
        f"{prefix!r} does not fit the variables; nothing was restored:\n"
        "  weight: not in the checkpoint as 'sc/weight'; nearest: 'sc/weigth', 'sc/bias'"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(ts.MismatchError) as caught:
        init_from_checkpoint(prefix, {"sc/weigth": model.weight})
    assert str(caught.value).endswith(
        "sc/weigth: shape [2, 3] in checkpoint, [3, 2] in the model; say how it is laid out, as by transfer.from_tf"
    )


def test_mismatch_names_what_looks_like_an_object_graphs_short_names() -> None:
    case = Path(__file__).parent / "data" / "corpus" / "keras2_save_weights" / "weights"
    with ts.load_checkpoint(case) as reader:
        name = next(others[-1] for others in transfer.names_of(reader).values() if others)
    with pytest.raises(ts.MismatchError) as caught:
        init_from_checkpoint(case, {f"{name}s": torch.zeros(1)})
    assert name in caught.value.nearest[f"{name}s"]


def test_mismatch_in_one_of_two_modules_of_equal_names_is_told_apart(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path, {"a/weight": torch.ones(3, 2), "a/bias": torch.ones(3), "b/bias": torch.ones(3)})
    plan = plan_transfer(prefix, {"a/": linear(2, 3), "b/": linear(2, 3)})
    assert [row[:4] for row in plan.rows] == [
        ("a/bias", "[3]", "", "bias"),
        ("a/weight", "[3, 2]", "", "weight"),
        ("b/bias", "[3]", "", "bias (2)"),
    ]
    assert plan.missing.keys() == {"weight (2)"}


def test_init_refuses_other_values_for_parts_of_one_memory_and_takes_equal_ones(tmp_path: Path) -> None:
    weight = torch.zeros(2, 2)
    prefix = checkpoint(tmp_path, {"all": [[1.0, 2.0], [3.0, 4.0]], "row": [[1.0], [2.0]], "other": [[1.0], [9.0]]})
    init_from_checkpoint(prefix, {"all": weight, "row": dense(weight[:1])})
    assert weight.tolist() == [[1, 2], [3, 4]]
    with Unchanged(weight), pytest.raises(ts.MismatchError, match="shares memory with another value of var_list"):
        init_from_checkpoint(prefix, {"all": weight, "other": dense(weight[:1])})
    with Unchanged(weight), pytest.raises(ts.MismatchError, match="shares memory"):
        init_from_checkpoint(prefix, {"other": dense(weight[:1]), "row": dense(weight[:1])})


def test_init_of_a_damaged_value_changes_nothing_unless_it_was_not_to_verify(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path, {"a": [1.0, 2.0], "k": torch.ones(2, 2)})
    file = tmp_path / "theirs.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x41")
    a, weight = torch.zeros(2), torch.zeros(2, 2)
    with Unchanged(a, weight), pytest.raises(ts.CorruptCheckpointError, match="checksum"):
        init_from_checkpoint(prefix, {"a": a, "k": dense(weight)})
    with Unchanged(weight), pytest.raises(ts.CorruptCheckpointError, match="some tensors may have their new values"):
        init_from_checkpoint(prefix, {"a": a, "k": dense(weight)}, verify=False)
    assert a.tolist() == [1, 2]


def test_init_of_nothing_needs_a_checkpoint_all_the_same(tmp_path: Path) -> None:
    assert init_from_checkpoint(checkpoint(tmp_path, {"a": [1.0]}), {}).unused == ("a",)
    with pytest.raises(ts.CheckpointNotFoundError):
        init_from_checkpoint(tmp_path / "none", {})


# ---- plan_transfer


def test_plan_changes_nothing_and_its_text_is_a_table_of_everything(tmp_path: Path) -> None:
    values = {"net/a/kernel": torch.ones(2, 3), "net/a/bias": torch.ones(4), "net/b/kernle": torch.ones(3, 1)}
    prefix = checkpoint(tmp_path, {**values, "global_step": 3})
    model = nn.ModuleDict({"a": linear(2, 3), "b": nn.Linear(3, 1, bias=False)})
    with Unchanged(*model.parameters()):
        plan = plan_transfer(prefix, {"net/": transfer.from_tf(model)})
    assert str(plan).splitlines() == [
        f"2 values of {prefix!r}:",
        "  net/a/bias    [4]            -> a.bias    [3]",
        "  net/a/kernel  [2, 3]  dense  -> a.weight  [3, 2]",
        "1 do not fit:",
        "  a.bias: shape [4] in checkpoint, [3] in the model",
        "1 variables without a value:",
        "  b.weight; nearest: 'net/b/kernle', 'net/a/kernel'",
        "2 values that go nowhere:",
        "  global_step  []",
        "  net/b/kernle  [3, 1]; nearest: 'b.weight'",
    ]
    assert plan.alike == {"net/b/kernle": ("b.weight",)}
    assert not plan.is_complete
    assert [link.label for link in plan.links] == ["a.bias", "a.weight"]


def test_plan_of_all_that_fits_is_complete(tmp_path: Path) -> None:
    plan = plan_transfer(checkpoint(tmp_path, {"a": [1.0]}), {"a": torch.zeros(1)})
    assert plan.is_complete
    assert str(plan).splitlines()[1:] == ["  a  [1]    -> a  [1]"]


def test_plan_of_a_lazy_parameter_says_that_it_does_not_fit_yet(tmp_path: Path) -> None:
    plan = plan_transfer(checkpoint(tmp_path, {"weight": torch.ones(2, 2), "bias": torch.ones(2)}), nn.LazyLinear(2))
    assert [row[-1] for row in plan.rows] == ["no shape yet", "no shape yet"]
    assert all("lazy" in why for why in plan.problems.values())


# ---- map_names, and Layouts in var_lists

KEYS = {
    "emb": lambda m: m["emb"].weight,
    "conv/kernel": lambda m: conv(m["conv"].weight),
    "fc/kernel": lambda m: dense(m["fc"].weight),
    "fused": lambda m: dense(m["q"].weight, m["k"].weight, join=Concat(0)),
    "gru/bias": lambda m: gates(1, 0, 2)(m["gru"].bias_ih, m["gru"].bias_hh, join=Stack()),
    "lstm/bias": lambda m: Layout((m["lstm"].bias_ih, m["lstm"].bias_hh), join=Sum((0.0, 1.0, 0.0, 0.0))),
}
LAYERS = {
    "emb": lambda: nn.Embedding(5, 3),
    "conv": lambda: nn.Conv2d(2, 4, 3),
    "fc": lambda: nn.Linear(3, 4),
    "q": lambda: nn.Linear(3, 2),
    "k": lambda: nn.Linear(3, 5),
    "gru": lambda: nn.GRUCell(2, 3),
    "lstm": lambda: nn.LSTMCell(2, 3),
}


def layers() -> nn.ModuleDict:
    return nn.ModuleDict({name: make() for name, make in LAYERS.items()})


def var_list(model: nn.ModuleDict) -> dict[str, Any]:
    return {key: value(model) for key, value in KEYS.items()}


def test_map_names_gives_a_var_list_that_restores_and_saves_back_the_same_bits(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Conv2d(2, 4, 3), "b": nn.GRUCell(2, 3), "c": nn.LSTM(2, 3), "d": nn.BatchNorm1d(3)})
    shapes: dict[str, tuple[int, ...]] = {"a/kernel": (3, 3, 2, 4), "a/bias": (4,)}
    shapes |= {"b/kernel": (2, 9), "b/recurrent_kernel": (3, 9), "b/bias": (2, 9)}
    shapes |= {"c/kernel": (2, 12), "c/recurrent_kernel": (3, 12), "c/bias": (12,)}
    shapes |= {f"d/{leaf}": (3,) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}
    stored = {f"net/{key}": any_bits(shape, torch.float32, seed) for seed, (key, shape) in enumerate(shapes.items())}
    prefix = checkpoint(tmp_path, {**stored, "unrelated": 1})
    mapped = transfer.map_names(prefix, {"net/": transfer.from_tf(model)})
    assert mapped.keys() == stored.keys()
    saver = ts.Saver(mapped)
    assert saver.restore(prefix).unused == ("unrelated",)
    saver.save(tmp_path / "back")
    back = load_file(tmp_path / "back.safetensors")
    assert {key: content(value) for key, value in back.items()} == {
        key: content(value) for key, value in stored.items()
    }


def test_map_names_of_the_collection_gives_its_tensors(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path, {"sc/a": [1.0]})
    with ts.Collection():
        value = ts.Variable([0.0], name="x/a")
        assert transfer.map_names(prefix, {"sc/": "x/"}) == {"sc/a": value}


def test_map_names_of_a_value_for_two_variables_is_a_value_error(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path, {"a": [1.0]})
    with pytest.raises(ValueError, match=r"'a' goes into 'a' and 'a \(2\)'"):
        transfer.map_names(prefix, [("a", torch.zeros(1)), ("a", torch.zeros(1))])


def test_map_names_with_anything_missing_is_a_mismatch(tmp_path: Path) -> None:
    with pytest.raises(ts.MismatchError) as caught:
        transfer.map_names(checkpoint(tmp_path, {"a": [1.0]}), {"b": torch.zeros(1), "c": torch.zeros(1)})
    assert caught.value.missing == ("b", "c")


def test_saver_of_layouts_writes_tensorflow_layouts_and_restores_their_inverse(tmp_path: Path) -> None:
    model, other = layers(), layers()
    prefix = ts.Saver(var_list(model)).save(tmp_path / "m")
    stored = load_file(tmp_path / "m.safetensors")
    assert torch.equal(stored["fc/kernel"], model["fc"].weight.t())
    assert torch.equal(stored["conv/kernel"], model["conv"].weight.permute(2, 3, 1, 0))
    assert torch.equal(stored["fused"], torch.cat([model["q"].weight, model["k"].weight]).t())
    assert {key: list(value.shape) for key, value in stored.items()} == dict(ts.list_variables(tmp_path / "m"))
    saver = ts.Saver(var_list(other))
    report = saver.restore(prefix)
    assert sorted(report.restored) == sorted(KEYS)
    saver.save(tmp_path / "again")
    again = load_file(tmp_path / "again.safetensors")
    assert {key: content(value) for key, value in again.items()} == {key: content(v) for key, v in stored.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_saver_of_a_layout_keeps_every_bit_of_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    weight, *parts = (any_bits(shape, dtype, seed) for seed, shape in enumerate([(3, 4), (2, 3), (4, 3)]))
    if dtype == torch.bool:  # torch makes every byte 0 or 1 as it moves it
        for tensor in (weight, *parts):
            tensor.view(torch.uint8).remainder_(2)
    before = contents([weight, *parts])
    saver = ts.Saver({"w": dense(weight), "p": dense(*parts, join=Concat(0))})
    prefix = saver.save(tmp_path / "m")
    for tensor in (weight, *parts):
        tensor.view(torch.uint8).zero_()
    saver.restore(prefix)
    assert contents([weight, *parts]) == before


def test_saver_of_a_layout_follows_values_and_is_used_again(tmp_path: Path) -> None:
    layer = linear(2, 3)
    saver = ts.Saver({"kernel": dense(layer.weight), "bias": layer.bias})
    prefixes = []
    for step in range(3):
        with torch.no_grad():
            layer.weight.fill_(step)
        prefixes.append(saver.save(tmp_path / "m", step))
    layer.bfloat16()
    with Unchanged(*layer.parameters()), pytest.raises(ts.MismatchError) as caught:
        saver.restore(prefixes[0])
    assert caught.value.dtypes == (("bias", "float32", "bfloat16"), ("kernel", "float32", "bfloat16"))
    layer.float()
    for step in (1, 0, 2):
        saver.restore(prefixes[step])
        assert layer.weight.eq(step).all()


def test_saver_of_a_layout_whose_shape_is_another_refuses_with_the_reason(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path, {"k": torch.ones(3, 2), "b": [1.0, 1.0, 1.0], "fused": torch.ones(2, 5)})
    layer, parts = linear(2, 3), [torch.zeros(2, 2), torch.zeros(2, 2)]
    saver = ts.Saver({"k": dense(layer.weight), "b": layer.bias, "fused": dense(*parts, join=Concat(0))}, reshape=True)
    with Unchanged(*layer.parameters(), *parts), pytest.raises(ts.MismatchError) as caught:
        saver.restore(prefix)
    assert caught.value.targets == (
        ("k", "dense: shape [3, 2] is stored, and [2, 3] was wanted for torch's [3, 2]"),
        ("fused", "dense: shape [2, 5] is stored, and [2, 4] was wanted for torch's [2, 2], [2, 2]"),
    )


def test_saver_of_a_layout_restores_around_a_missing_key_only_when_not_strict(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path, {"b": [1.0, 1.0, 1.0]})
    layer = linear(2, 3)
    saver = ts.Saver({"k": dense(layer.weight), "b": layer.bias})
    with Unchanged(*layer.parameters()), pytest.raises(ts.MismatchError) as caught:
        saver.restore(prefix)
    assert caught.value.missing == ("k",)
    with Unchanged(layer.weight):
        assert saver.restore(prefix, strict=False).missing == ("k",)
    assert layer.bias.eq(1).all()


def test_saver_of_layouts_resumes(tmp_path: Path) -> None:
    layer = linear(2, 3)
    saver = ts.Saver({"k": dense(layer.weight), "b": layer.bias})
    for step in range(3):
        with torch.no_grad():
            layer.weight.fill_(step)
        newest = saver.save(tmp_path / "run" / "m", step)
    fresh = linear(2, 3)
    report = ts.Saver({"k": dense(fresh.weight), "b": fresh.bias}).resume(tmp_path / "run")
    assert report is not None
    assert (report.save_path, report.global_step, fresh.weight.eq(2).all().item()) == (newest, 2, True)


def test_saver_of_parts_of_a_weight_fills_and_saves_the_weight(tmp_path: Path) -> None:
    attention = nn.MultiheadAttention(4, 2)
    kernels = {name: torch.rand(4, 4) for name in "qkv"}
    prefix = checkpoint(tmp_path, kernels)
    weight = attention.in_proj_weight
    saver = ts.Saver({name: dense(weight[4 * n : 4 * n + 4]) for n, name in enumerate("qkv")})
    saver.restore(prefix)
    assert torch.equal(weight, torch.cat([kernel.t() for kernel in kernels.values()]))
    saver.save(tmp_path / "back")
    back = load_file(tmp_path / "back.safetensors")
    assert contents(back[name] for name in kernels) == contents(kernels.values())


@pytest.mark.parametrize(
    "target",
    [
        torch.zeros(6, 4)[::2],
        torch.zeros(4, 3).t(),
        torch.zeros(3, 4, 2)[..., 1],
        torch.zeros(4, 3).t().contiguous().requires_grad_(),
    ],
    ids=["stepped", "transposed", "strided", "parameter"],
)
def test_saver_of_a_layout_fills_any_strides(target: torch.Tensor, tmp_path: Path) -> None:
    kernel = torch.rand(4, 3)
    prefix = checkpoint(tmp_path, {"k": kernel})
    saver = ts.Saver({"k": dense(target)})
    saver.restore(prefix)
    assert torch.equal(target, kernel.t())
    saver.save(tmp_path / "back")
    assert torch.equal(ts.load_variable(tmp_path / "back", "k"), kernel)


def test_saver_of_a_layout_makes_a_graph_that_used_the_old_values_refuse(tmp_path: Path) -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    saver = ts.Saver({"k": dense(weight)})
    prefix = saver.save(tmp_path / "m")
    loss = (weight * weight).sum()
    saver.restore(prefix)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_saver_of_a_layout_of_inference_tensors_restores_inside_inference_mode_only(tmp_path: Path) -> None:
    with torch.inference_mode():
        weight = torch.zeros(3, 2)
    saver = ts.Saver({"k": dense(weight)})
    prefix = checkpoint(tmp_path, {"k": torch.ones(2, 3)})
    with pytest.raises(ts.MismatchError, match=r"k: is an inference tensor; restore inside torch.inference_mode\(\)"):
        saver.restore(prefix)
    assert not weight.any()
    normal = linear(2, 3)
    with torch.inference_mode():
        saver.restore(prefix)
        ts.Saver({"k": dense(normal.weight)}).restore(prefix)
        saver.save(tmp_path / "back")
    assert weight.all()
    assert normal.weight.all()
    (normal.weight * 2).sum().backward()


def test_saver_of_a_layout_that_does_not_fit_its_shape_is_refused_at_once() -> None:
    with pytest.raises(ts.VarListError) as caught:
        ts.Saver({"a": dense(torch.zeros(3)), "b": conv(torch.zeros(2, 2)), "c": dense(torch.zeros(2, 2))})
    assert caught.value.problems == (
        "'a' cannot be laid out: a dense weight has 2 dimensions, this has shape [3]",
        "'b' cannot be laid out: a conv weight has 3 to 5 dimensions, this has shape [2, 2]",
    )


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(2, 2, device="meta"), "is on the meta device and has no values"),
        (torch.zeros(2, 2).to_sparse(), "has the layout sparse_coo"),
    ],
    ids=["meta", "sparse"],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_saver_of_a_layout_of_what_has_no_values_is_refused_at_the_save(
    tensor: torch.Tensor, reason: str, parts: int, tmp_path: Path
) -> None:
    saver = ts.Saver({"k": dense(*[tensor, torch.zeros(2, 2)][:parts], join=Concat(0))})
    with pytest.raises(ts.VarListError, match=f"'k' {reason}"):
        saver.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ts.MismatchError, match=f"k: {reason}"):
        saver.restore(checkpoint(tmp_path, {"k": torch.ones(2, 2 * parts)}))


def test_saver_of_a_layout_of_a_lazy_parameter_can_be_made_and_works_once_it_has_a_shape(tmp_path: Path) -> None:
    layer = nn.LazyLinear(3)
    saver = ts.Saver({"k": dense(layer.weight), "b": layer.bias})
    with pytest.raises(ts.VarListError, match="'k' is a lazy parameter without a shape yet"):
        saver.save(tmp_path / "m")
    layer(torch.zeros(1, 2))
    prefix = saver.save(tmp_path / "m")
    assert list(ts.load_variable(prefix, "k").shape) == [2, 3]
    saver.restore(prefix)


# ---- one tensor, twice


@pytest.mark.parametrize(
    "values",
    [
        lambda w: {"one": w, "two": dense(w)},
        lambda w: {"two": dense(w), "one": w},
        lambda w: {"one": dense(w), "two": dense(w)},
        lambda w: {"one": dense(w), "two": dense(w, torch.zeros(1, 2), join=Concat(0))},
    ],
)
def test_tensor_under_two_keys_is_refused_in_layouts_too(values: Any) -> None:
    with pytest.raises(ts.VarListError, match=r"same tensor; save it under one key") as caught:
        ts.Saver(values(torch.zeros(2, 2)))
    assert all(key in str(caught.value) for key in ("'one'", "'two'"))


def test_key_of_a_layout_that_is_taken_is_refused() -> None:
    model = linear(2, 2)
    with pytest.raises(ts.VarListError, match=r"'m\.weight' is the key of two values"):
        ts.Saver({"m.weight": dense(torch.zeros(2, 2)), "m": model})
    with pytest.raises(ts.VarListError, match="'k' is the key of two values"):
        ts.Saver([("k", dense(torch.zeros(2, 2))), ("k", torch.zeros(2, 2))])


def test_key_of_a_layout_inside_an_object_is_refused() -> None:
    held = Held({"t": torch.zeros(2)})
    with pytest.raises(ts.VarListError, match=r"'held\.t' is the key of two values; rename the object 'held'"):
        ts.Saver({"held.t": dense(torch.zeros(2, 2)), "held": held})


def test_module_beside_a_layout_of_its_weight_has_both_and_they_have_to_agree(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    saver = ts.Saver({"m": model, "kernel": dense(model.weight)})
    prefix = saver.save(tmp_path / "m")
    stored = load_file(tmp_path / "m.safetensors")
    assert torch.equal(stored["m.weight"].t(), stored["kernel"])
    nn.init.zeros_(model.weight)
    report = saver.restore(prefix)
    assert report.aliases == {}
    assert torch.equal(model.weight, stored["m.weight"])
    other = checkpoint(tmp_path, {**stored, "kernel": torch.zeros(2, 3)})
    with Unchanged(*model.parameters()), pytest.raises(ts.MismatchError) as caught:
        saver.restore(other)
    assert {why for _, why in caught.value.targets} == {
        "shares memory with another value of var_list, and the stored values differ there"
    }


def test_layout_of_a_tensor_twice_is_refused_when_stored_values_differ(tmp_path: Path) -> None:
    weight = torch.zeros(2)
    saver = ts.Saver({"k": Layout((weight, weight), join=Stack())})
    saver.restore(checkpoint(tmp_path, {"k": [[1.0, 2.0], [1.0, 2.0]]}))
    assert weight.tolist() == [1, 2]
    with Unchanged(weight), pytest.raises(ts.MismatchError, match="k: shares memory"):
        saver.restore(checkpoint(tmp_path, {"k": [[1.0, 2.0], [3.0, 4.0]]}))


# ---- where a layout's tensors are


def test_layout_of_a_module_that_is_known_follows_its_assigned_tensors(tmp_path: Path) -> None:
    model = linear(2, 3)
    with ts.Collection():
        ts.track(model)
        tracked = ts.Saver({"k": dense(model.weight)})
    named = ts.Saver({"k": dense(model.weight), "own": dense(torch.zeros(2, 2))}, names_from=model)
    itself = ts.Saver({"k": dense(model.weight)})
    model.load_state_dict({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, assign=True)
    for saver, expected in ((tracked, 1), (named, 1), (itself, 0)):
        prefix = saver.save(tmp_path / "m")
        assert ts.load_variable(prefix, "k").eq(expected).all()
    assert named.settings["names_from"] is model
    named.restore(checkpoint(tmp_path, {"k": torch.full((2, 3), 5.0), "own": torch.ones(2, 2)}))
    assert model.weight.eq(5).all()


def test_layout_whose_tensors_do_not_join_any_more_or_are_gone_is_a_var_list_error(tmp_path: Path) -> None:
    model = nn.ModuleDict({"q": nn.Linear(2, 2, bias=False), "k": nn.Linear(2, 2, bias=False)})
    saver = ts.Saver({"f": dense(model["q"].weight, model["k"].weight, join=Concat(0))}, names_from=model)
    model["k"].weight = nn.Parameter(torch.zeros(2, 2).double())
    with pytest.raises(
        ts.VarListError, match="'f' cannot be laid out any more: dense: tensors of one value have dtypes"
    ):
        saver.save(tmp_path / "m")
    del model["k"]
    with pytest.raises(ts.VarListError, match="'f' is not in its module any more; build a new Saver"):
        saver.save(tmp_path / "m")


def test_layout_in_a_list_needs_a_key() -> None:
    with pytest.raises(ts.VarListTypeError, match="a list element is a Layout; give it a key"):
        ts.Saver([dense(torch.zeros(2, 2))])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copied_saver_of_layouts_has_the_copied_model(copied: Any, tmp_path: Path) -> None:
    model = linear(2, 3)
    saver = ts.Saver({"k": dense(model.weight), "g": gates(1, 0, 2)(model.bias)}, names_from=model)
    prefix = saver.save(tmp_path / "m")
    other, other_saver = copied((model, saver))
    other_saver.restore(checkpoint(tmp_path, {"k": torch.ones(2, 3), "g": [1.0, 2.0, 3.0]}))
    assert other.bias.tolist() == [2, 1, 3]
    assert not model.weight.any()
    assert other.weight.all()
    saver.restore(prefix)


def test_settings_carry_over_to_a_saver_of_layouts(tmp_path: Path) -> None:
    model = linear(2, 3)
    first = ts.Saver(model, max_to_keep=2, reshape=True)
    second = ts.Saver({"k": dense(model.weight)}, **first.settings)
    assert second.settings == first.settings
    assert second.save(tmp_path / "m") is not None


def test_layout_whose_tensor_was_replaced_is_checked_again(tmp_path: Path) -> None:
    model = nn.Linear(2, 3, bias=False)
    saver = ts.Saver({"k": dense(model.weight)}, names_from=model)
    prefix = saver.save(tmp_path / "m")
    saver.restore(prefix)
    model.weight = nn.Parameter(torch.zeros(3, 1).expand(3, 2))
    with pytest.raises(ts.MismatchError, match="is expanded"):
        saver.restore(prefix)
