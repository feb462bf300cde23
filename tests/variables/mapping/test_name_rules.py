"""Rules rename in order, by name, scope or pattern, or say which rule is none."""

from __future__ import annotations

import re
from typing import Any

import pytest

from torchsaver.variables.mapping.name_rules import expand, read_rules


def renamed(rules: Any, *names: str) -> list[str | None]:
    return list(map(read_rules(rules), names))


def test_no_rules_leave_names_as_they_are() -> None:
    assert renamed(None, "a/b", "") == ["a/b", ""]
    assert renamed({}, "a/b") == ["a/b"]


def test_name_renames_that_very_name_only() -> None:
    assert renamed({"a": "b"}, "a", "a/a", "ab", "x/a") == ["b", "a/a", "ab", "x/a"]


@pytest.mark.parametrize(("scope", "other"), [("useful/", "x/"), ("useful.", "x."), ("useful/", "")])
def test_scope_renames_whole_parts_at_the_beginning(scope: str, other: str) -> None:
    names = [f"{scope}w", f"useful_1{scope[-1]}w", f"a/{scope}w", "useful"]
    assert renamed({scope: other}, *names) == [f"{other}w", *names[1:]]


def test_pattern_replaces_every_match_within_a_name_and_knows_groups() -> None:
    rules = {re.compile(r"layer_(\d+)/"): r"layers.\1."}
    assert renamed(rules, "a/layer_3/layer_12/w", "layer_x/w") == ["a/layers.3.layers.12.w", "layer_x/w"]
    assert renamed({re.compile("(?P<n>[ab])(c)?"): r"<\g<n>\2>"}, "acb") == ["<ac><b>"]
    assert renamed({re.compile("^"): "scope/"}, "w") == ["scope/w"]


@pytest.mark.parametrize(
    ("pattern", "out", "kept"),
    [("a/w", "a/w", "a/w1"), ("a/", "a/w", "a_1/w"), (re.compile("Adam$"), "w/Adam", "w/Adam_1")],
)
def test_none_leaves_out_what_matches(pattern: Any, out: str, kept: str) -> None:
    assert renamed({pattern: None}, out, kept) == [None, kept]


def test_rules_work_in_order_each_on_what_those_before_have_made() -> None:
    rules: list[Any] = [("a/", "b/"), ("b/", "c/"), ("c/out", None), (re.compile("w$"), "weight")]
    assert renamed(rules, "a/w", "b/w", "a/out") == ["c/weight", "c/weight", None]
    assert renamed(reversed(rules), "a/w") == ["b/weight"]


def test_function_stands_for_rules_of_any_other_kind() -> None:
    assert renamed(lambda name: None if name == "a" else name.upper(), "a", "b") == [None, "B"]


def test_function_that_gives_no_name_is_told_with_the_name() -> None:
    with pytest.raises(TypeError, match=r"gives 3 for 'abc'; a name or None was wanted"):
        renamed(len, "abc")


@pytest.mark.parametrize(
    "rule", [("a", 3), (3, "a"), ("a",), ("a", "b", "c"), "ab", (re.compile(b"a"), "b"), (("a", "b"), "c"), None]
)
def test_what_is_no_rule_is_a_type_error_that_shows_it(rule: Any) -> None:
    with pytest.raises(TypeError, match="a rule is a name or a compiled pattern, and a name or None") as caught:
        read_rules([rule])
    assert repr(rule) in str(caught.value)


@pytest.mark.parametrize("rules", ["a/", 3, object()])
def test_what_are_no_rules_is_a_type_error(rules: Any) -> None:
    with pytest.raises(TypeError, match="rules are a dict, a list of pairs or a function"):
        read_rules(rules)


@pytest.mark.parametrize("template", [r"\2", r"\g<n>", r"\x"])
def test_template_for_a_group_that_is_not_there_is_a_value_error_that_names_both(template: str) -> None:
    found = re.match("(a)", "a")
    assert found is not None
    with pytest.raises(ValueError, match=re.escape(f"'(a)': {template!r}: ")):
        expand(found, template)
    with pytest.raises(ValueError, match=re.escape(f"'(a)': {template!r}: ")):
        renamed({re.compile("(a)"): template}, "a")
