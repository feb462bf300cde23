"""Rules of a conversion: what a TOML text says, and what is told of one that says nothing sensible."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from torchsaver.variables.mapping.layouts import identity
from torchsaver.variables.mapping.rules_file import ConversionRules, parse_rules


def renamed(text: str, *names: str) -> list[str | None]:
    rename = parse_rules(text).rename
    return [rename(name) for name in names]


# ---- renaming


def test_text_without_tables_changes_nothing() -> None:
    rules = parse_rules("# nothing\n")
    assert rules.rename("a/b") == "a/b"
    assert rules.transform_of("a/b") is None
    assert ConversionRules().rename("a/b") == "a/b"


def test_name_renames_that_very_one() -> None:
    assert renamed('[[rename]]\nname = "a/b"\nto = "c"', "a/b", "a/bc", "x/a/b") == ["c", "a/bc", "x/a/b"]


@pytest.mark.parametrize("end", ["/", "."])
def test_scope_renames_what_begins_so(end: str) -> None:
    text = f'[[rename]]\nscope = "model{end}"\nto = ""'
    assert renamed(text, f"model{end}fc", "model", f"x{end}model{end}fc") == ["fc", "model", f"x{end}model{end}fc"]


def test_regex_replaces_every_match_with_its_groups() -> None:
    text = "[[rename]]\nregex = 'layer_(\\d+)/'\nto = 'layers.\\1.'"
    assert renamed(text, "e/layer_0/layer_12/w", "layer_x/w") == ["e/layers.0.layers.12.w", "layer_x/w"]


def test_drop_leaves_out_what_matches() -> None:
    text = """
        [[rename]]
        scope = "optimizer."
        drop = true
        [[rename]]
        regex = 'Adam(_1)?$'
        drop = true
        [[rename]]
        name = "step"
        drop = true
    """
    assert renamed(text, "optimizer.m", "w/Adam_1", "step", "steps") == [None, None, None, "steps"]


def test_drop_that_is_false_drops_nothing() -> None:
    assert renamed('[[rename]]\nname = "a"\nto = "b"\ndrop = false', "a") == ["b"]


def test_rules_are_worked_through_in_order_each_on_what_those_before_have_made() -> None:
    text = """
        rename = [
            {scope = "bert/", to = ""},
            {regex = '/', to = "."},
            {name = "a.kernel", to = "a.weight"},
            {name = "bert/a/kernel", to = "never"},
        ]
    """
    assert renamed(text, "bert/a/kernel", "a/bias") == ["a.weight", "a.bias"]


def test_name_of_a_single_empty_path_can_be_renamed() -> None:
    assert renamed('[[rename]]\nname = ""\nto = "w"', "", "x") == ["w", "x"]


def test_surrogates_that_stand_for_bytes_can_be_matched() -> None:
    assert renamed("[[rename]]\nregex = '[\\udc80-\\udcff]'\nto = '_'", "a\udcff\udcfe") == ["a__"]


# ---- layouts


def test_layout_is_of_the_first_pattern_that_matches_all_of_the_key() -> None:
    rules = parse_rules("""
        [[layout]]
        regex = '.*/conv/kernel'
        transform = "conv"
        [[layout]]
        regex = '.*/kernel'
        transform = ["dense", "flatten(7, 7, 64)"]
    """)
    names = {key: str(rules.transform_of(key)) for key in ("a/conv/kernel", "a/kernel", "a/kernel/Adam", "kernel")}
    assert names == {
        "a/conv/kernel": "conv",
        "a/kernel": "dense, then flatten(7, 7, 64)",
        "a/kernel/Adam": "None",
        "kernel": "None",
    }


def test_layout_is_the_transform_both_ways() -> None:
    transform = parse_rules("layout = [{regex = 'k', transform = 'dense'}]").transform_of("k")
    assert transform is not None
    kernel = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(transform.to_torch(kernel), kernel.t())
    assert torch.equal(transform.to_stored(kernel.t()), kernel)


def test_layout_of_nothing_is_the_identity() -> None:
    assert parse_rules("layout = [{regex = 'k', transform = []}]").transform_of("k") == identity


# ---- what is wrong


RENAME_WANTS = "[[rename]] 1 wants one of name, scope and regex, and either to or drop = true, not {"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rename", "no TOML: "),
        ("a = \n", "no TOML: "),
        ("[[rename]]\nname = 'a'\nto = 'b'\nto = 'c'", "no TOML: "),
        ("[[renames]]\nname = 'a'\nto = 'b'", "unknown table 'renames'; [[rename]] and [[layout]] are known"),
        ("[rename]\nname = 'a'\nto = 'b'", "rename is no list of tables; write [[rename]]"),
        ("rename = ['a', 'b']", "rename is no list of tables; write [[rename]]"),
        ("layout = 3", "layout is no list of tables; write [[layout]]"),
        ("[[rename]]", RENAME_WANTS),
        ("[[rename]]\nname = 'a'", RENAME_WANTS),
        ("[[rename]]\nto = 'a'", RENAME_WANTS),
        ("[[rename]]\nname = 'a'\nscope = 'b/'\nto = 'c'", RENAME_WANTS),
        ("[[rename]]\nname = 'a'\nto = 'c'\ndrop = true", RENAME_WANTS),
        ("[[rename]]\nname = 'a'\ndrop = false", RENAME_WANTS),
        ("[[rename]]\nname = 'a'\ndrop = 'yes'\nto = 'b'", RENAME_WANTS),
        ("[[rename]]\nname = 'a'\ndrop = 1", RENAME_WANTS),
        ("[[rename]]\nname = 'a'\nto = 'b'\nwhy = 'c'", RENAME_WANTS),
        ("[[rename]]\nname = 'a'\nto = 'b'\n[[rename]]\nname = 3\nto = 'b'", "[[rename]] 2: name is a text, not 3"),
        ("[[rename]]\nname = 'a'\nto = ['b']", "[[rename]] 1: to is a text, not ['b']"),
        (
            "[[rename]]\nscope = 'a'\nto = 'b'",
            "[[rename]] 1: a scope ends in a slash or a dot, and a name does not: 'a'",
        ),
        ("[[rename]]\nname = 'a/'\nto = 'b'", "[[rename]] 1: a scope ends in a slash or a dot, and a name does not"),
        ("[[rename]]\nregex = '('\nto = 'b'", "[[rename]] 1: '(' is no regular expression: missing )"),
        ("[[rename]]\nregex = 'a'\nto = '\\1'", "[[rename]] 1: '\\\\1' does not fit 'a': invalid group reference"),
        ("[[rename]]\nregex = '(a)'\nto = '\\g<b>'", "[[rename]] 1: '\\\\g<b>' does not fit '(a)': unknown group name"),
        ("[[layout]]\nregex = 'a'", "[[layout]] 1 wants regex and transform, not {'regex': 'a'}"),
        ("[[layout]]\nname = 'a'\ntransform = 'dense'", "[[layout]] 1 wants regex and transform, not {'name': 'a'"),
        ("[[layout]]\nregex = 'a'\ntransform = 'dense'\nto = 'b'", "[[layout]] 1 wants regex and transform"),
        ("[[layout]]\nregex = 3\ntransform = 'dense'", "[[layout]] 1: regex is a text, not 3"),
        ("[[layout]]\nregex = '['\ntransform = 'dense'", "[[layout]] 1: '[' is no regular expression: unterminated"),
        (
            "[[layout]]\nregex = 'a'\ntransform = 'dens'",
            "[[layout]] 1: 'dens' is no transform; known are identity, dense",
        ),
        (
            "[[layout]]\nregex = 'a'\ntransform = 'flatten(7)'",
            "[[layout]] 1: 'flatten(7)': flatten takes another count",
        ),
        ("[[layout]]\nregex = 'a'\ntransform = 'dense(7)'", "[[layout]] 1: 'dense(7)': dense takes no numbers"),
        ("[[layout]]\nregex = 'a'\ntransform = 3", "[[layout]] 1: transform is a text or a list of texts, not 3"),
        (
            "[[layout]]\nregex = 'a'\ntransform = ['dense', 3]",
            "[[layout]] 1: transform is a text or a list of texts, not",
        ),
        (
            "[[layout]]\nregex = 'a'\ntransform = {dense = 1}",
            "[[layout]] 1: transform is a text or a list of texts, not",
        ),
    ],
)
def test_text_that_is_wrong_names_the_table_and_what_was_wanted(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as raised:
        parse_rules(text)
    assert type(raised.value) is ValueError


def test_every_rule_of_the_text_is_read_before_any_is_used() -> None:
    """A wrong second table is told, although the first would do for every key."""
    tables: list[Any] = ["[[rename]]\nregex = '.*'\ndrop = true", "[[rename]]\nregex = 'a'\nto = '\\2'"]
    with pytest.raises(ValueError, match=re.escape("[[rename]] 2: ")):
        parse_rules("\n".join(tables))
