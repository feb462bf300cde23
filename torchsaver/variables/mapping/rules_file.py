r"""The rules of a conversion as a TOML file: how keys are renamed, and which values are laid out otherwise.

[[rename]]                    # worked through in order, each on what those before it have made
scope = "bert/"               # or name = "exact", or regex = 'layer_(\d+)/'
to = ""                       # or drop = true

[[layout]]                    # by the key as it is in TensorFlow; the first that matches counts
regex = '.*/kernel'           # all of the key
transform = "dense"           # or several, ["dense", "flatten(7, 7, 64)"], as transforms.py has them
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchsaver.variables.mapping.layouts import Transform
from torchsaver.variables.mapping.name_rules import SCOPE_ENDS, Rule, read_rules
from torchsaver.variables.mapping.transforms import parse_transform

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SOURCES = ("name", "scope", "regex")


@dataclass(frozen=True)
class ConversionRules:
    """What a rules file says.

    Attributes:
        rename: From a key to another, or to None: it is left out.
        layouts: (pattern of the whole key, transform), in order.
    """

    rename: Callable[[str], str | None] = str
    layouts: tuple[tuple[re.Pattern[str], Transform], ...] = ()

    def transform_of(self, key: str) -> Transform | None:
        """Return the transform for the value of a key, by its name in TensorFlow; None without one."""
        return next((transform for pattern, transform in self.layouts if pattern.fullmatch(key)), None)


def parse_rules(text: str) -> ConversionRules:
    """Return the rules in a TOML text.

    Raises:
        ValueError: It is none; the message names the table.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"no TOML: {error}") from error
    unknown = sorted(content.keys() - {"rename", "layout"})
    if unknown:
        raise ValueError(f"unknown table {unknown[0]!r}; [[rename]] and [[layout]] are known")
    renames = [_rename(table, number) for number, table in enumerate(_tables(content, "rename"), 1)]
    layouts = tuple(_layout(table, number) for number, table in enumerate(_tables(content, "layout"), 1))
    return ConversionRules(read_rules(renames), layouts)


def _tables(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    tables = content.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{name} is no list of tables; write [[{name}]]")
    return tables


def _rename(table: dict[str, Any], number: int) -> Rule:
    what = f"[[rename]] {number}"
    sources = [field for field in _SOURCES if field in table]
    is_dropped = table.get("drop", False)
    is_clear = len(sources) == 1 and type(is_dropped) is bool and ("to" in table) is not is_dropped
    if not is_clear or table.keys() - {*_SOURCES, "to", "drop"}:
        raise ValueError(f"{what} wants one of name, scope and regex, and either to or drop = true, not {table}")
    source, to = _text(table, sources[0], what), None if is_dropped else _text(table, "to", what)
    if sources[0] == "regex":
        return _replacement(_pattern(source, what), to, what)
    if (sources[0] == "scope") is not source.endswith(SCOPE_ENDS):
        raise ValueError(f"{what}: a scope ends in a slash or a dot, and a name does not: {source!r}")
    return source, to


def _replacement(pattern: re.Pattern[str], to: str | None, what: str) -> Rule:
    try:
        pattern.sub(to or "", "")  # no match is needed for it to see a group that is not there
    except (re.error, IndexError) as error:
        raise ValueError(f"{what}: {to!r} does not fit {pattern.pattern!r}: {error}") from error
    return pattern, to


def _layout(table: dict[str, Any], number: int) -> tuple[re.Pattern[str], Transform]:
    what = f"[[layout]] {number}"
    if table.keys() != {"regex", "transform"}:
        raise ValueError(f"{what} wants regex and transform, not {table}")
    pattern, given = _pattern(_text(table, "regex", what), what), table["transform"]
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{what}: transform is a text or a list of texts, not {given!r}")
    try:
        return pattern, parse_transform(names)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _pattern(text: str, what: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{what}: {text!r} is no regular expression: {error}") from error


def _text(table: dict[str, Any], field: str, what: str) -> str:
    if not isinstance(table[field], str):
        raise ValueError(f"{what}: {field} is a text, not {table[field]!r}")
    return str(table[field])
