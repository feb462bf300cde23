"""What becomes of each value: decided before anything is read, and all that cannot be is told at once."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from torchsaver.conversion.plan import Format, Row, plan_manifest, plan_rows
from torchsaver.conversion.source import Source, Value
from torchsaver.errors import ConversionError, VarListError
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.tensor_bytes import dtype_text
from torchsaver.variables.mapping.rules_file import ConversionRules, parse_rules


def value(key: str, tensor: torch.Tensor | None = None, *aliases: str, problem: str = "") -> Value:
    tensor = torch.ones(2, 3) if tensor is None else tensor
    return Value(key, dtype_text(tensor.dtype), tuple(tensor.shape), lambda: tensor, aliases, problem)


def strings(key: str) -> Value:
    return Value(key, "string", (2,), lambda: np.array([b"a", b"b"], dtype=object))


def source(*values: Value, is_tensorflow: bool = False, manifest: Manifest | None = None) -> Source:
    return Source("src", values, manifest or Manifest(), is_tensorflow, {})


def rows(found: Source, to: Format, rules: str = "") -> tuple[list[Row], dict[str, str]]:
    left_out: dict[str, str] = {}
    return plan_rows(found, to, parse_rules(rules), left_out), left_out


def problems(found: Source, to: Format, rules: str = "") -> tuple[str, ...]:
    with pytest.raises(ConversionError) as raised:
        rows(found, to, rules)
    return raised.value.problems


DROP_A = '[[rename]]\nname = "a"\ndrop = true'

# ---- what is converted


@pytest.mark.parametrize("to", ["safetensors", "tf"])
def test_values_stay_as_they_are_without_rules(to: Format) -> None:
    planned, left_out = rows(source(value("b"), value("a")), to)
    assert [(row.name, row.key, row.nbytes, str(row.transform)) for row in planned] == [
        ("b", "b", 24, "identity"),
        ("a", "a", 24, "identity"),
    ]
    assert left_out == {}


def test_nothing_is_read() -> None:
    def read() -> Any:
        pytest.fail("it was read")

    planned, _ = rows(source(Value("a", "float32", (2,), read)), "tf")
    assert planned[0].as_json()["bytes"] == 8


def test_strings_are_left_out_for_safetensors_and_kept_for_tensorflow() -> None:
    found = source(strings("s"), value("a"), is_tensorflow=True)
    assert rows(found, "safetensors")[1] == {"s": "strings, which safetensors cannot hold"}
    kept, left_out = rows(found, "tf")
    assert ([row.key for row in kept], left_out, kept[0].nbytes) == (["s", "a"], {}, 0)


def test_rule_leaves_out_and_that_is_noted() -> None:
    planned, left_out = rows(source(value("a"), value("b")), "tf", DROP_A)
    assert ([row.key for row in planned], left_out) == (["b"], {"a": "a rule leaves it out"})


@pytest.mark.parametrize(
    ("dtype", "nbytes"), [("bool", 6), ("bfloat16", 12), ("complex128", 96), ("float8_e4m3fn", 6), ("uint64", 48)]
)
def test_size_is_that_of_the_dtype(dtype: str, nbytes: int) -> None:
    planned, _ = rows(source(value("a", torch.empty(2, 3, dtype=getattr(torch, dtype)))), "safetensors")
    assert planned[0].nbytes == nbytes


# ---- tied values


def test_tied_value_is_one_row_with_aliases_for_safetensors_and_a_row_for_each_name_for_tensorflow() -> None:
    found = source(value("a", None, "b", "c"))
    (row,), _ = rows(found, "safetensors")
    assert (row.key, row.aliases) == ("a", ("b", "c"))
    several, _ = rows(found, "tf")
    assert [(row.name, row.key, row.aliases) for row in several] == [("a", "a", ()), ("b", "b", ()), ("c", "c", ())]


def test_tied_value_whose_own_name_is_left_out_is_kept_under_another() -> None:
    (row,), left_out = rows(source(value("a", None, "b", "c")), "safetensors", DROP_A)
    assert (row.name, row.key, row.aliases) == ("b", "b", ("c",))
    assert left_out == {"a": "a rule leaves it out"}


def test_aliases_are_renamed_and_checked_as_keys_are() -> None:
    found = source(value("a", None, "m.b"), value("b"), value("d", None, "e"))
    assert problems(found, "safetensors", '[[rename]]\nscope = "m."\nto = ""') == (
        "'a' and 'b' both come to 'b'; rename one of them",
    )
    (told,) = problems(found, "safetensors", '[[rename]]\nname = "e"\nto = "__metadata__"')
    assert told == "'d' comes to the key '__metadata__', which the format cannot have; rename it"


def test_names_of_one_tied_value_may_become_one() -> None:
    found = source(value("a", None, "b"))
    (row,), _ = rows(found, "safetensors", '[[rename]]\nname = "b"\nto = "a"')
    assert (row.key, row.aliases) == ("a", ())
    (row,), _ = rows(found, "tf", '[[rename]]\nname = "b"\nto = "a"')
    assert (row.key, row.aliases) == ("a", ())


# ---- layouts

LAYOUT = "[[rename]]\nregex = '/'\nto = '.'\n[[layout]]\nregex = '.*/kernel'\ntransform = 'dense'"


def test_layout_goes_by_the_key_in_tensorflow_both_ways() -> None:
    kernel = torch.arange(6.0).reshape(2, 3)
    (row,), _ = rows(source(value("a/kernel", kernel), is_tensorflow=True), "safetensors", LAYOUT)
    assert (row.key, list(row.meta().shape), row.nbytes) == ("a.kernel", [3, 2], 24)
    assert torch.equal(row.read(), kernel.t())
    back = "[[rename]]\nregex = '\\.'\nto = '/'\n[[layout]]\nregex = '.*/kernel'\ntransform = 'dense'"
    (row,), _ = rows(source(value("a.kernel", kernel.t())), "tf", back)
    assert row.key == "a/kernel"
    assert torch.equal(row.read(), kernel)
    assert row.as_json() == {
        "from": "a.kernel",
        "dtype": "float32",
        "from_shape": [3, 2],
        "key": "a/kernel",
        "shape": [2, 3],
        "transform": "dense",
        "bytes": 24,
        "aliases": [],
    }


def test_each_name_of_a_tied_value_has_its_own_layout_in_tensorflow() -> None:
    planned, _ = rows(source(value("a", None, "b")), "tf", "[[layout]]\nregex = 'b'\ntransform = 'dense'")
    assert [(row.key, list(row.meta().shape)) for row in planned] == [("a", [2, 3]), ("b", [3, 2])]


@pytest.mark.parametrize(("is_tensorflow", "to"), [(True, "tf"), (False, "safetensors")])
def test_layouts_between_files_of_one_kind_are_refused(is_tensorflow: bool, to: Format) -> None:
    (told,) = problems(source(value("a/kernel"), is_tensorflow=is_tensorflow), to, LAYOUT)
    assert told.startswith("[[layout]] leads between TensorFlow's files and torch's, and both are ")


def test_strings_have_no_layout() -> None:
    found = source(strings("s"), value("a"), is_tensorflow=False)
    planned, _ = rows(found, "tf", "[[layout]]\nregex = '.*'\ntransform = 'dense'")
    assert [str(row.transform) for row in planned] == ["identity", "dense"]


# ---- problems


def test_all_problems_come_at_once() -> None:
    found = source(
        value("a/x"),
        value("a.x"),
        value("k", torch.ones(2)),
        value("__metadata__"),
        value("p", problem="has the layout sparse_coo"),
        value("\udcff"),
        is_tensorflow=True,
    )
    rules = "[[rename]]\nregex = '/'\nto = '.'\n[[layout]]\nregex = 'k'\ntransform = 'dense'"
    assert problems(found, "safetensors", rules) == (
        "'a/x' and 'a.x' both come to 'a.x'; rename one of them",
        "'k' cannot be laid out: a dense kernel has 2 dimensions, this has shape [2]",
        "'__metadata__' comes to the key '__metadata__', which the format cannot have; rename it",
        "'p' has the layout sparse_coo",
        "'\\udcff' comes to the key '\\udcff', which the format cannot have; rename it",
    )


def test_keys_that_tensorflow_cannot_have() -> None:
    assert problems(source(value("a"), value("\ud800")), "tf", '[[rename]]\nname = "a"\nto = ""') == (
        "'a' comes to the key '', which the format cannot have; rename it",
        "'\\ud800' comes to the key '\\ud800', which the format cannot have; rename it",
    )
    assert len(rows(source(value("__metadata__"), value("\udcff")), "tf")[0]) == 2


def test_dtype_that_tensorflow_has_not_is_told_and_one_that_safetensors_has_not() -> None:
    name = "float8_e8m0fnu"
    if not hasattr(torch, name):
        pytest.skip(f"this torch has no {name}")
    scale = value("a", torch.empty(2, dtype=getattr(torch, name)))
    assert problems(source(scale), "tf") == (
        f"'a' is {name}, which TensorFlow's checkpoints do not have; leave it out",
    )
    assert len(rows(source(scale), "safetensors")[0]) == 1


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("shape", [(), (2,)])
def test_dtype_without_a_name_in_safetensors_is_told_for_a_scalar_too(shape: tuple[int, ...]) -> None:
    (told,) = problems(source(value("a", torch.empty(shape, dtype=torch.complex32))), "safetensors")
    assert told == "'a' has dtype complex32, for which safetensors has no name; convert it first"


@pytest.mark.parametrize("values", [(), (strings("s"),)])
def test_nothing_left_to_convert_is_a_problem(values: tuple[Value, ...]) -> None:
    assert problems(source(*values), "safetensors") == ("'src' holds nothing that can be converted",)


def test_error_is_a_var_list_error_that_names_every_problem_and_pickles() -> None:
    error = ConversionError(["'a' is bad", "'b' is too"])
    assert isinstance(error, VarListError)
    assert str(error) == "nothing was converted, 2 problems:\n  'a' is bad;\n  'b' is too"
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), copied.problems, str(copied)) == (ConversionError, error.problems, str(error))


# ---- what goes with the tensors

GIVEN = Manifest(global_step=3, metadata={"x": 1}, objects={"opt": {"lr": 0.1}})


def manifest(to: Format, rules: ConversionRules | None = None) -> tuple[Manifest, dict[str, str]]:
    found = source(value("a", torch.ones(1, dtype=torch.complex128), "b"), value("c"), manifest=GIVEN)
    left_out: dict[str, str] = {}
    planned = plan_rows(found, to, rules or ConversionRules(), left_out)
    return plan_manifest(found, planned, rules, to, left_out), left_out


def test_step_metadata_aliases_and_state_go_along_to_safetensors() -> None:
    made, left_out = manifest("safetensors")
    assert (made.global_step, made.metadata, made.objects) == (3, {"x": 1}, {"opt": {"lr": 0.1}})
    assert (made.aliases, made.complex128, left_out) == ({"b": "a"}, {"a"}, {})
    assert made.versions.keys() == {"torch", "torchsaver"}


def test_state_of_objects_does_not_go_along_under_other_names() -> None:
    made, left_out = manifest("safetensors", parse_rules('[[rename]]\nname = "a"\nto = "d"'))
    assert (made.objects, made.aliases, made.complex128) == ({}, {"b": "d"}, {"d"})
    assert left_out == {"state of 'opt'": "only its tensors are converted"}


def test_tensorflow_has_no_place_for_any_of_it() -> None:
    _, left_out = manifest("tf")
    assert left_out == {
        "metadata": "TensorFlow's files have no place for it",
        "global_step": "TensorFlow's files have no place for it",
        "state of 'opt'": "only its tensors are converted",
    }
