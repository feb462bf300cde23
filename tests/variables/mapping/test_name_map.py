"""An assignment map comes to what goes where, what is missing and what is left, or says which entry is none."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import torchsaver as ts
from torchsaver.variables.mapping.joins import Concat
from torchsaver.variables.mapping.layouts import Layout
from torchsaver.variables.mapping.name_map import Match, match_names
from torchsaver.variables.mapping.name_tables import ModuleNames, tensors_of
from torchsaver.variables.mapping.transforms import dense


def match(names: Any, assignment_map: Any) -> Match:
    """Match on keys alone, or on {key: its other names}."""
    return match_names(names if isinstance(names, dict) else {name: [] for name in names}, assignment_map)


def going(found: Match) -> dict[str, str]:
    """Return {label: key}."""
    assert len({link.label for link in found.links}) == len(found.links)
    return {link.label: link.key for link in found.links}


def missing(found: Match) -> dict[str, str]:
    return {one.label: one.name for one in found.missing}


def w() -> torch.Tensor:
    return torch.zeros(2)


def variables(*names: str) -> dict[str, torch.Tensor]:
    """Put variables into the current collection, which does not keep them alive."""
    values = {name: ts.Variable([0.0], name=name) for name in names}
    _alive.extend(values.values())
    return values


_alive: list[Any] = []


@pytest.fixture(autouse=True)
def _own_collection() -> Any:
    with ts.Collection():
        yield
    _alive.clear()


# ---- one value, one variable


def test_name_goes_to_a_tensor_and_the_rest_is_unused() -> None:
    tensor = w()
    found = match(["a", "b"], {"a": tensor})
    assert [(link.key, link.label) for link in found.links] == [("a", "a")]
    assert found.links[0].target is tensor
    assert (found.missing, found.unused) == ([], ["b"])


def test_name_that_is_not_there_is_missing() -> None:
    assert missing(match(["a"], {"nope": w(), "a": w(), "no": dense(torch.zeros(2, 2))})) == {
        "no": "no",
        "nope": "nope",
    }


def test_key_is_found_by_its_other_names_and_a_key_comes_first() -> None:
    names = {"a/.VALUE": ["a", "b"], "b": []}
    assert going(match(names, [("a", w()), ("b", w()), ("a/.VALUE", w())])) == {
        "a": "a/.VALUE",
        "a/.VALUE": "a/.VALUE",
        "b": "b",
    }


def test_list_of_tensors_is_a_variable_in_parts_along_its_first_dimension() -> None:
    parts = [torch.zeros(2, 3), torch.zeros(4, 3)]
    (link,) = match(["emb"], {"emb": parts}).links
    assert isinstance(link.target, Layout)
    assert link.target.join == Concat(0)
    assert all(one is two for one, two in zip(link.target.tensors, parts, strict=True))


def test_name_of_the_collection_is_a_target() -> None:
    values = variables("v", "scope/v")
    found = match(["a", "b"], {"a": "scope/v", "b": "v"})
    assert [link.target for link in found.links] == [values["scope/v"], values["v"]]


def test_another_name_of_a_tied_tensor_of_the_collection_is_a_target() -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "ab"})
    model["b"].weight = model["a"].weight
    ts.track(model)
    assert match(["k"], {"k": "b.weight"}).links[0].target is model["a"].weight


@pytest.mark.parametrize("source", [re.compile(r"[ac]/w"), lambda name: "" if name in ("a/w", "c/w") else None])
def test_pattern_or_function_for_one_variable_has_to_stand_for_one_value(source: Any) -> None:
    assert [link.key for link in match(["a/w", "a/w2"], {source: w()}).links] == ["a/w"]
    assert len(match(["b"], {source: w()}).missing) == 1
    with pytest.raises(ValueError, match="stands for several values, and here is one variable: a/w, c/w"):
        match(["a/w", "c/w"], {source: w()})


def test_pairs_let_one_value_go_into_several_variables() -> None:
    tensors = [w(), w()]
    found = match(["a"], [("a", tensors[0]), ("a", tensors[1])])
    assert [link.target for link in found.links] == tensors
    assert going(found) == {"a": "a", "a (2)": "a"}


def test_of_several_values_for_one_variable_the_last_by_name_counts() -> None:
    tensor, model = w(), nn.Linear(2, 2)
    for pairs in ([("b", tensor), ("a", tensor)], [("a", tensor), ("b", tensor)]):
        assert [link.key for link in match(["a", "b"], pairs).links] == ["b"]
    names = ["sc/weight", "sc/bias", "sc2/w"]
    assert going(match(names, {"sc2/w": model.weight, "sc/": model})) == {"sc2/w": "sc2/w", "bias": "sc/bias"}
    assert [link.key for link in match(["z", "a"], [(re.compile("a"), tensor), ("z", tensor)]).links] == ["a"]


# ---- scopes


def test_scope_gives_a_module_its_values_under_its_own_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    names = [f"net/{name}" for name in model.state_dict()]
    found = match([*names, "other"], {"net/": model})
    assert going(found) == {name: f"net/{name}" for name in model.state_dict()}
    assert (found.missing, found.unused) == ([], ["other"])
    assert going(match([name.replace(".", "/") for name in names], {"net/": model})).keys() == model.state_dict().keys()
    assert going(match([f"net.{name}" for name in model.state_dict()], {"net.": model})).keys() == going(found).keys()


@pytest.mark.parametrize("assignment_map", [lambda m: {"/": m}, lambda m: m, lambda m: [("/", m)]])
def test_slash_is_no_scope_and_a_module_alone_means_it(assignment_map: Any) -> None:
    model = nn.Linear(2, 2)
    assert going(match(["weight", "bias", "sc/weight"], assignment_map(model))) == {"weight": "weight", "bias": "bias"}


def test_scope_takes_whole_parts_of_names_only() -> None:
    variables("x/w", "x_1/w", "y")
    found = match(["useful/w", "useful_1/w", "a/useful/w"], {"useful/": "x/"})
    assert (going(found), found.missing) == ({"x/w": "useful/w"}, [])
    assert found.unused == ["useful_1/w", "a/useful/w"]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("sc/", "x/", {"x/a": "sc/a", "x/in/c": "sc/in/c"}),
        ("/", "x/", {"x/a": "a", "x/in/c": "in/c"}),
        ("sc/", "/", {"x/a": "sc/x/a", "x/in/c": "sc/x/in/c", "y": "sc/y"}),
        ("/", "/", {"x/a": "x/a", "x/in/c": "x/in/c", "y": "y"}),
        ("sc/", "x/in/", {"x/in/c": "sc/c"}),
    ],
)
def test_scope_to_scope_gives_all_variables_of_the_collection_there(
    source: str, target: str, expected: dict[str, str]
) -> None:
    variables("x/a", "x/in/c", "y")
    names = [f"{scope}{name}" for scope in ("", "sc/") for name in ("a", "in/c", "c", "x/a", "x/in/c", "y")]
    assert going(match(names, {source: target})) == expected


def test_scope_of_a_tracked_module_ends_in_a_dot() -> None:
    model = ts.track(nn.Linear(2, 2), "model")
    assert going(match(["sc/weight", "sc/bias"], {"sc/": "model."})) == {
        f"model.{name}": f"sc/{name}" for name in model.state_dict()
    }


def test_what_a_scope_lacks_is_missing_under_the_name_that_was_looked_for() -> None:
    variables("x/a", "x/zz")
    assert missing(match(["sc/a"], {"sc/": "x/"})) == {"x/zz": "sc/zz"}
    assert missing(match(["weight"], nn.Linear(2, 2))) == {"bias": "bias"}
    found = match(["b/weight"], {"a/": nn.Linear(2, 2, bias=False), "b/": nn.Linear(2, 2), "c/": nn.Linear(2, 2)})
    assert missing(found) == {
        "weight (2)": "a/weight",
        "bias": "b/bias",
        "weight (3)": "c/weight",
        "bias (2)": "c/bias",
    }


def test_pattern_is_a_scope_with_all_that_it_matches_at_the_beginning() -> None:
    model = nn.Linear(2, 2)
    names = ["tower_0/weight", "tower_0/bias", "a/tower_1/weight"]
    assert going(match(names, {re.compile(r"tower_\d+/"): model})) == {
        "weight": "tower_0/weight",
        "bias": "tower_0/bias",
    }
    variables("x/weight", "x/bias")
    assert going(match(names, {re.compile(r"tower_\d+/"): "x/"})) == {
        "x/weight": "tower_0/weight",
        "x/bias": "tower_0/bias",
    }


def test_function_gives_what_is_left_after_the_scope_or_leaves_out() -> None:
    def source(name: str) -> str | None:
        return None if "Adam" in name else name.lower().removeprefix("net/")

    model = nn.Linear(2, 2)
    found = match(["NET/weight", "net/Bias", "net/weight/Adam"], {source: model})
    assert (going(found), found.unused) == ({"weight": "NET/weight", "bias": "net/Bias"}, ["net/weight/Adam"])
    with pytest.raises(TypeError, match="gives 1 for 'a'; a name or None was wanted"):
        match(["a"], {len: model})


def test_value_that_goes_by_two_names_fills_both_variables() -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "ab"})
    assert going(match({"a.weight": ["b.weight"]}, model)) == {"a.weight": "a.weight", "b.weight": "a.weight"}


def test_tied_tensor_is_found_under_either_name_and_wanted_once() -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "ab"})
    model["b"].weight = model["a"].weight
    for module in (model, ModuleNames(model)):
        leaf = "weight" if module is model else "kernel"
        for name in "ab":
            found = match([f"{name}/{leaf}"], module)
            assert (going(found), found.missing) == ({"a.weight": f"{name}/{leaf}"}, [])
        assert len(match([], module).missing) == 1


@pytest.mark.parametrize("target", [lambda m: m, ModuleNames])
def test_two_values_for_one_variable_are_a_value_error_that_names_both(target: Any) -> None:
    with pytest.raises(ValueError, match=r"'l0/bias' and 'l1/bias' both have a value for 'bias'; leave one out"):
        match(["l0/bias", "l1/bias"], {re.compile(r"l\d/"): target(nn.Linear(2, 2))})


def test_variable_that_a_scope_lacks_may_get_its_value_by_another_entry() -> None:
    model = nn.Linear(2, 2)
    found = match(["bias", "w"], {"/": model, "w": model.weight})
    assert (going(found), found.missing) == ({"bias": "bias", "w": "w"}, [])
    assert missing(match(["bias"], {"/": model, "w": model.weight})) == {"weight": "weight", "w": "w"}


def test_variable_that_a_scope_lacks_may_get_its_value_in_parts() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)})
    attention = model["attention"]
    names = ["attention/out_proj/kernel", "attention/out_proj/bias", "q", "k", "v", "b"]
    with torch.no_grad():
        parts = {name: dense(attention.in_proj_weight[4 * n : 4 * n + 4]) for n, name in enumerate("qkv")}
    found = match(names, {"/": ModuleNames(model), **parts, "b": attention.in_proj_bias})
    assert (found.missing, found.unused) == ([], [])
    parts["v"] = dense(attention.in_proj_weight[:4])  # the first part twice, and none for the third
    found = match(names, {"/": ModuleNames(model), **parts, "b": attention.in_proj_bias})
    assert missing(found) == {"attention.in_proj_weight": "attention.in_proj_weight"}


# ---- templates


def test_pattern_and_template_rename_one_by_one() -> None:
    variables("h0/w", "h1/w", "h1/b")
    found = match(["layer_0/w", "layer_1/w", "layer_2/w", "x/layer_0/w"], {re.compile(r"layer_(\d)/(.)"): r"h\1/\2"})
    assert (going(found), found.missing) == ({"h0/w": "layer_0/w", "h1/w": "layer_1/w"}, [])
    assert found.unused == ["layer_2/w", "x/layer_0/w"]


def test_template_of_a_scope_is_put_before_what_is_left() -> None:
    variables("h0/w", "h1/in/w")
    found = match(["layer_0/w", "layer_1/in/w"], {re.compile(r"layer_(\d)/"): r"h\1/"})
    assert going(found) == {"h0/w": "layer_0/w", "h1/in/w": "layer_1/in/w"}


def test_template_that_leads_nowhere_is_missing() -> None:
    variables("h0/w")
    assert missing(match(["layer_0/w"], {re.compile(r"leyer_(\d)/w"): r"h\1/w"})) == {r"h\1/w": r"leyer_(\d)/w"}


def test_template_that_two_values_come_to_is_a_value_error() -> None:
    variables("w0")
    with pytest.raises(ValueError, match=r"'a0' and 'b0' both have a value for 'w0'"):
        match(["a0", "b0"], {re.compile(r"[ab](\d)"): r"w\1"})


def test_template_with_a_group_that_is_not_there_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"invalid group reference"):
        match(["a"], {re.compile("a"): r"\1"})


# ---- TensorFlow's names


def test_from_tf_has_tensorflow_names_and_layouts_and_asks_for_no_count_of_batches() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    names = ["s/0/kernel", "s/0/bias", *(f"s/1/{leaf}" for leaf in ("gamma", "beta", "moving_mean", "moving_variance"))]
    found = match(names, {"s/": ModuleNames(model)})
    assert found.missing == []
    assert going(found) == dict(
        zip(("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"), names, strict=True)
    )
    assert isinstance(found.links[0].target, Layout)
    assert found.links[0].target.transform == dense


def test_from_tf_renames_by_rules_after_the_scope() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    rules = {re.compile(r"layer_(\d)/"): r"layers.\1.", "junk/": None}
    names = [f"bert/layer_{n}/{leaf}" for n in (0, 1) for leaf in ("kernel", "bias")]
    found = match([*names, "bert/junk/layers/0/kernel", "layer_0/kernel"], {"bert/": ModuleNames(model, rules)})
    assert sorted(going(found).values()) == sorted(names)
    assert found.unused == ["bert/junk/layers/0/kernel", "layer_0/kernel"]


def test_from_tf_takes_several_tensors_for_one_value_and_lists_them_missing_together() -> None:
    model = nn.LSTMCell(2, 3)
    assert going(match(["kernel", "recurrent_kernel", "bias"], ModuleNames(model))) == {
        "weight_ih": "kernel",
        "weight_hh": "recurrent_kernel",
        "bias_ih + bias_hh": "bias",
    }
    assert missing(match(["kernel", "recurrent_kernel"], ModuleNames(model))) == {"bias_ih + bias_hh": "bias"}


def test_from_tf_lists_what_it_has_no_name_for() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(2))
            self.attention = nn.MultiheadAttention(4, 2, bias=False)

    found = match(["factor"], ModuleNames(Scaled()))
    assert missing(found) == {
        "attention.out_proj.weight": "attention/out_proj/kernel",
        "attention.in_proj_weight": "attention.in_proj_weight",
    }


def test_from_tf_finds_a_module_that_stands_twice_under_either_path() -> None:
    layer = nn.Linear(2, 2, bias=False)
    for name in "ab":
        found = match([f"{name}/kernel"], ModuleNames(nn.ModuleDict({"a": layer, "b": layer})))
        assert (going(found), found.missing) == ({"a.weight": f"{name}/kernel"}, [])


def test_module_is_looked_at_anew_each_time() -> None:
    model = nn.Linear(2, 2)
    for target in (model, ModuleNames(model)):
        names = ["weight", "kernel", "bias"]
        match(names, target)
        model.load_state_dict({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, assign=True)
        now = {id(tensor) for link in match(names, target).links for tensor in tensors_of(link.target)}
        assert now == {id(model.weight), id(model.bias)}


# ---- entries that are none


@pytest.mark.parametrize("target", [nn.Linear(2, 2), ModuleNames(nn.Linear(2, 2))])
def test_module_under_a_name_without_a_slash_is_a_value_error_with_the_remedy(target: Any) -> None:
    with pytest.raises(ValueError, match="'sc': a module's values are in a scope, whose name ends in a slash: 'sc/'"):
        match(["sc/weight"], {"sc": target})


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("sc", "x/", "'sc': between scopes, the checkpoint's name has to end in a slash too: 'sc/'"),
        ("sc", "lexa", "sc: there is no variable 'lexa' (nearest: 'lexer/a'); a scope's name ends in a slash"),
        ("sc/", "x", "sc/: there is no variable 'x'; a scope's name ends in a slash"),
        ("sc/", "", "sc/: there is no variable ''; a scope's name ends in a slash"),
        ("sc/", "lexar/", "sc/: no variable is in 'lexar/' (nearest: 'lexer/')"),
        ("sc/", "l/", "sc/: no variable is in 'l/'"),
    ],
)
def test_name_of_no_variable_or_scope_is_a_value_error(source: str, target: str, message: str) -> None:
    variables("lexer/a", "zzz/embedding")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        match(["sc", "sc/a"], {source: target})


@pytest.mark.parametrize("source", [3, None, ("a", "b"), b"a", re.compile(b"a"), nn.Linear(2, 2), torch.zeros(2)])
def test_checkpoint_name_of_another_type_is_a_type_error(source: Any) -> None:
    with pytest.raises(TypeError, match="a name, a compiled pattern or a function was wanted"):
        match(["a"], [(source, w())])


@pytest.mark.parametrize("target", [3, None, b"w", {"a": w()}, dense, object()])
def test_target_of_another_type_is_a_type_error_that_names_the_entry(target: Any) -> None:
    with pytest.raises(TypeError, match=f"^a: a tensor, a Layout, .* was wanted, not a {type(target).__name__}"):
        match(["a"], {"a": target})


@pytest.mark.parametrize(
    ("parts", "error"),
    [(["a", "b"], TypeError), ([], ValueError), ([torch.zeros(2, 3), torch.zeros(2, 4)], ValueError)],
)
def test_list_that_is_no_variable_in_parts_is_an_error_that_names_the_entry(parts: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^a: a list of a variable's parts was wanted; "):
        match(["a"], {"a": parts})


@pytest.mark.parametrize("assignment_map", [3, None, "sc/", b"sc/", torch.zeros(2, 2)])
def test_map_of_another_type_is_a_type_error(assignment_map: Any) -> None:
    with pytest.raises(TypeError, match=r"^the assignment map is a dict, a list of pairs, a Module or from_tf"):
        match(["a"], assignment_map)


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", "b", "c"), 3])
def test_map_of_other_than_pairs_is_a_type_error_that_shows_it(pair: Any) -> None:
    with pytest.raises(TypeError, match=r"^the assignment map has .* where a pair was wanted"):
        match(["a"], [pair])


def test_from_tf_of_no_module_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"a torch.nn.Module was wanted, not a dict"):
        ModuleNames({})  # type: ignore[arg-type]


def test_module_whose_state_is_a_copy_is_a_value_error() -> None:
    model = nn.Linear(2, 2)
    model._register_state_dict_hook(lambda _, state, *__: {name: value.clone() for name, value in state.items()})
    with pytest.raises(ValueError, match=r"'weight': state_dict\(\) gives a copy"):
        match(["weight", "bias"], model)


def test_empty_map_does_nothing() -> None:
    for empty in ({}, [], nn.ReLU()):
        found = match(["a"], empty)
        assert (found.links, found.missing, found.unused) == ([], [], ["a"])


def test_lazy_parameter_that_is_missing_is_listed() -> None:
    model = nn.LazyLinear(2)
    assert missing(match([], model)) == {"weight": "weight", "bias": "bias"}
    assert going(match(["weight", "bias"], model)) == {"weight": "weight", "bias": "bias"}
