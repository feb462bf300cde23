"""Renaming: the rules that turn a checkpoint's names into others, the same for modules, restores and conversions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

Rule: TypeAlias = "tuple[str | re.Pattern[str], str | None]"
# Any: what a user keeps in a variable, {re.compile(..): ..} say, is no Mapping of a union to a type checker.
Rules: TypeAlias = "Mapping[Any, str | None] | Iterable[tuple[Any, str | None]] | Callable[[str], str | None] | None"
SCOPE_ENDS = ("/", ".")


def read_rules(rules: Rules) -> Callable[[str], str | None]:
    r"""Return the function that renames by `rules`; it gives None for a name that is left out.

    Rules are gone through in order, each on what those before it have made:
        - `"a/b": "c"` renames that very name,
        - `"scope/": "other/"` renames what begins so ("" as the other: takes the beginning off),
        - `re.compile(r"layer_(\d+)/"): r"layers.\1."` replaces every match within a name, groups in it,
        - None in place of a name leaves out what matches.
    A function from name to name, or to None, stands for rules of any other kind.

    Args:
        rules: A dict, a list of pairs, a function, or None: names stay as they are.

    Raises:
        TypeError: A rule is none of these; or, by the function returned: one of the user's gives no name.
        ValueError: By the function returned: a replacement refers to a group that its pattern does not have.
    """
    if rules is None:
        return str
    if callable(rules):
        return read_function(rules)
    pairs = _pairs(rules)

    def rename(name: str) -> str | None:
        for pattern, other in pairs:
            renamed = _renamed(name, pattern, other)
            if renamed is None:
                return None
            name = renamed
        return name

    return rename


def read_function(function: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """Return a user's function from name to name or None, which says so when it gives anything else."""

    def rename(name: str) -> str | None:
        renamed = function(name)
        if not isinstance(renamed, (str, type(None))):
            raise TypeError(f"{function!r} gives {renamed!r} for {name!r}; a name or None was wanted")
        return renamed

    return rename


def expand(found: re.Match[str], template: str) -> str:
    r"""Return a template with the groups of a match in it: r"layers.\1.".

    Raises:
        ValueError: It refers to a group that the pattern does not have.
    """
    try:
        return found.expand(template)
    except (re.error, IndexError) as error:
        raise ValueError(f"{found.re.pattern!r}: {template!r}: {error}") from error


def _pairs(rules: Any) -> list[Rule]:
    if isinstance(rules, str) or not isinstance(rules, Iterable):
        raise TypeError(f"rules are a dict, a list of pairs or a function, not a {type(rules).__name__}")
    pairs = list(rules.items() if isinstance(rules, Mapping) else rules)
    for pair in pairs:
        match pair:
            case (str() | re.Pattern(pattern=str()), str() | None):
                pass
            case _:
                raise TypeError(f"a rule is a name or a compiled pattern, and a name or None, not {pair!r}")
    return pairs


def _renamed(name: str, pattern: str | re.Pattern[str], other: str | None) -> str | None:
    if isinstance(pattern, re.Pattern):
        if other is None:
            return None if pattern.search(name) else name
        return pattern.sub(partial(expand, template=other), name)
    if pattern.endswith(SCOPE_ENDS):
        if not name.startswith(pattern):
            return name
        return None if other is None else other + name[len(pattern) :]
    return other if name == pattern else name
