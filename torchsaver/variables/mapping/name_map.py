"""Which value of a checkpoint goes into which variable: an assignment map, worked out on the checkpoint's names.

Decides and does nothing: no file is opened, and no tensor is touched.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch

from torchsaver.errors import nearest_keys
from torchsaver.variables.mapping.joins import Concat
from torchsaver.variables.mapping.layouts import Layout, identity
from torchsaver.variables.mapping.name_rules import SCOPE_ENDS, expand, read_function
from torchsaver.variables.mapping.name_tables import (
    ModuleNames,
    Table,
    Target,
    Wanted,
    collection_names,
    own_names,
    tensors_of,
)

AssignmentMap: TypeAlias = "Mapping[Any, Any] | Iterable[tuple[Any, Any]] | torch.nn.Module | ModuleNames"


class Link(NamedTuple):
    """A value of the checkpoint and the variable it goes into.

    Attributes:
        key: What the value is stored under.
        label: What to call the variable: its path in its module, or the name it was given by.
        target: The variable; a Layout if it is laid out otherwise in the checkpoint.
    """

    key: str
    label: str
    target: Target


@dataclass
class Match:
    """An assignment map, worked out; no two labels are the same.

    Attributes:
        links: In the order of the map.
        missing: Variables without a value.
        unused: Keys of the checkpoint that go nowhere.
    """

    links: list[Link] = field(default_factory=list)
    missing: list[Wanted] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


class _Names:
    """The names of a checkpoint, and the collection's variables, looked up once if a name of theirs is wanted."""

    def __init__(self, others: Mapping[str, Sequence[str]]) -> None:
        self.key_of = {name: key for key, names in others.items() for name in names}
        self.key_of.update({key: key for key in others})
        self._others = others

    @cached_property
    def variables(self) -> Table:
        return collection_names()

    def all(self) -> Iterator[tuple[str, str]]:
        """Yield (key, name) for each name of each key, the key itself last."""
        for key, others in self._others.items():
            for name in (*others, key):
                yield key, name


def match_names(names: Mapping[str, Sequence[str]], assignment_map: AssignmentMap) -> Match:
    """Return which value goes where.

    Args:
        names: {key of the checkpoint: the other names it goes by}.
        assignment_map: As `init_from_checkpoint` has it. As in TF, entries are worked through sorted by name, and then
            those that are no names; of several for one variable, the last counts.

    Raises:
        TypeError, ValueError: An entry is none; it is named.
    """
    looked_up = _Names(names)
    links: dict[tuple[int, ...], Link] = {}
    missing: list[Wanted] = []
    for source, target in _pairs(assignment_map):
        found, absent = _entry(source, target, looked_up)
        links |= {tuple(map(id, tensors_of(link.target))): link for link in found}
        missing += absent
    given = _given(links.values())
    missing = [one for one in missing if not _is_given(one.target, given)]
    used = {link.key for link in links.values()}
    labels = Counter[str]()
    return Match(
        [link._replace(label=_numbered(link.label, labels)) for link in links.values()],
        [one._replace(label=_numbered(one.label, labels)) for one in missing],
        [key for key in names if key not in used],
    )


def _pairs(assignment_map: Any) -> list[tuple[Any, Any]]:
    """Return the entries in the order they are worked through."""
    if isinstance(assignment_map, (torch.nn.Module, ModuleNames)):
        return [("/", assignment_map)]
    if isinstance(assignment_map, (str, bytes, torch.Tensor)) or not isinstance(assignment_map, Iterable):
        wanted = "a dict, a list of pairs, a Module or from_tf(module)"
        raise TypeError(f"the assignment map is {wanted}, not a {_kind(assignment_map)}")
    pairs = list(assignment_map.items() if isinstance(assignment_map, Mapping) else assignment_map)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                f"the assignment map has {pair!r} where a pair was wanted: (name in the checkpoint, variable)"
            )
    return sorted(pairs, key=lambda pair: (not isinstance(pair[0], str), pair[0] if isinstance(pair[0], str) else ""))


def _given(links: Iterable[Link]) -> Counter[int]:
    """Return by id how many elements of each tensor links fill: by itself, or by parts of it."""
    given = Counter[int]()
    seen = set()
    for tensor in (tensor for link in links for tensor in tensors_of(link.target)):
        for whole in (tensor, tensor._base):
            if whole is None or torch.nn.parameter.is_lazy(tensor):
                continue
            part = id(whole), tensor.storage_offset(), tensor.shape, tensor.stride()
            if part not in seen:
                seen.add(part)
                given[id(whole)] += tensor.numel()
    return given


def _is_given(target: Target | None, given: Counter[int]) -> bool:
    return target is not None and all(
        id(tensor) in given and given[id(tensor)] >= tensor.numel() for tensor in tensors_of(target)
    )


def _numbered(label: str, labels: Counter[str]) -> str:
    """Return a label that none before has: the second `w` is `w (2)`."""
    free = label
    while free in labels:
        labels[label] += 1
        free = f"{label} ({labels[label]})"
    labels[free] += 1
    return free


def _entry(source: Any, target: Any, names: _Names) -> tuple[list[Link], list[Wanted]]:
    """Return the links of one entry of the map, and what it could not find."""
    if not _is_source(source):
        raise TypeError(f"{source!r}: a name, a compiled pattern or a function was wanted, not a {_kind(source)}")
    if isinstance(target, str):
        return _named(source, target, names)
    if isinstance(target, torch.nn.Module):
        return _in_scope(source, own_names(target), names)
    if isinstance(target, ModuleNames):
        return _in_scope(source, target.table(), names)
    if isinstance(target, (list, tuple)):
        target = _in_parts(source, target)
    if not isinstance(target, (torch.Tensor, Layout)):
        wanted = "a tensor, a Layout, a list of a variable's parts, a Module, from_tf(module) or a name"
        raise TypeError(f"{_shown(source)}: {wanted} was wanted, not a {_kind(target)}")
    if isinstance(source, str):
        keys = [names.key_of[source]] if source in names.key_of else []
    else:
        rename = _rename(source, whole=True)
        keys = list(dict.fromkeys(key for key, name in names.all() if rename(name) is not None))
    if len(keys) > 1:
        raise ValueError(f"{_shown(source)} stands for several values, and here is one variable: {', '.join(keys[:5])}")
    label = _shown(source)
    return ([Link(keys[0], label, target)], []) if keys else ([], [Wanted(label, label)])


def _is_source(source: Any) -> bool:
    if isinstance(source, re.Pattern):
        return isinstance(source.pattern, str)
    return isinstance(source, str) or (callable(source) and not isinstance(source, torch.nn.Module))


def _in_parts(source: Any, parts: Sequence[Any]) -> Layout:
    try:
        return Layout(tuple(parts), identity, Concat(0))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{_shown(source)}: a list of a variable's parts was wanted; {error}") from error


def _named(source: Any, target: str, names: _Names) -> tuple[list[Link], list[Wanted]]:
    """Return the links of an entry whose target is a name, or a scope, of variables in the current collection."""
    variables = names.variables
    if (hit := variables.find(target)) is not None:
        return _entry(source, hit[1], names)
    if isinstance(source, re.Pattern) and "\\" in target:
        return _by_template(source, target, names)
    if not target.endswith(SCOPE_ENDS):
        labels = [one.label for one in variables.wanted]
        what = f"there is no variable {target!r}{_nearest(target, labels)}"
        raise ValueError(f"{_shown(source)}: {what}; a scope's name ends in a slash")
    if isinstance(source, str) and not source.endswith(SCOPE_ENDS):
        raise ValueError(
            f"{source!r}: between scopes, the checkpoint's name has to end in a slash too: {source + '/'!r}"
        )
    table = collection_names("" if target == "/" else target)
    if not table.wanted:
        scopes = {one.label[: one.label.rfind(target[-1]) + 1] for one in variables.wanted}
        raise ValueError(f"{_shown(source)}: no variable is in {target!r}{_nearest(target, sorted(scopes))}")
    return _in_scope(source, table, names)


def _by_template(pattern: re.Pattern[str], template: str, names: _Names) -> tuple[list[Link], list[Wanted]]:
    """Return the links of names that match all of a pattern, or of one's scope, to what it makes of the template."""
    links: dict[str, Link] = {}
    for key, name in names.all():
        found = pattern.match(name) if template.endswith(SCOPE_ENDS) else pattern.fullmatch(name)
        if found is not None and (hit := names.variables.find(expand(found, template) + name[found.end() :])):
            _add(links, Link(key, *hit))
    return list(links.values()), [] if links else [Wanted(template, pattern.pattern)]


def _in_scope(source: Any, table: Table, names: _Names) -> tuple[list[Link], list[Wanted]]:
    """Return the links of all variables of a table whose names, after what `source` stands for, the checkpoint has."""
    if isinstance(source, str) and not source.endswith(SCOPE_ENDS):
        raise ValueError(f"{source!r}: a module's values are in a scope, whose name ends in a slash: {source + '/'!r}")
    rename = _rename(source, whole=False)
    links: dict[str, Link] = {}
    for key, name in names.all():
        rest = rename(name)
        if rest is not None and (hit := table.find(rest)) is not None:
            _add(links, Link(key, *hit))
    reached = {id(tensor) for link in links.values() for tensor in tensors_of(link.target)}
    scope = source if isinstance(source, str) and source != "/" else ""
    missing = [
        one._replace(name=scope + one.name)
        for one in table.wanted
        if one.target is None or not reached.issuperset(map(id, tensors_of(one.target)))
    ]
    return list(links.values()), missing


def _add(links: dict[str, Link], link: Link) -> None:
    """Add a link by its label.

    Raises:
        ValueError: It has another value already.
    """
    known = links.setdefault(link.label, link)
    if known.key != link.key:
        both = f"{known.key!r} and {link.key!r}"
        raise ValueError(f"{both} both have a value for {link.label!r}; leave one out, by a rule or a function")


def _rename(source: Any, *, whole: bool) -> Callable[[str], str | None]:
    """Return what gives the part of a name that is left after a scope, a pattern or by a function; None: not this."""
    if isinstance(source, re.Pattern):

        def after(name: str) -> str | None:
            found = source.fullmatch(name) if whole else source.match(name)
            return None if found is None else name[found.end() :]

        return after
    if callable(source):
        return read_function(source)
    scope = "" if source == "/" else source
    return lambda name: name[len(scope) :] if name.startswith(scope) else None


def _nearest(name: str, others: Iterable[str]) -> str:
    nearest = nearest_keys(name, others)
    return f" (nearest: {', '.join(map(repr, nearest))})" if nearest else ""


def _shown(source: Any) -> str:
    if isinstance(source, re.Pattern):
        return str(source.pattern)
    return source if isinstance(source, str) else getattr(source, "__name__", repr(source))


def _kind(value: Any) -> str:
    return type(value).__name__
