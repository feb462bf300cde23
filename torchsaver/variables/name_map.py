"""Which value of a checkpoint goes into which variable: an assignment map, worked out on the checkpoint's names.

Decides and does nothing: no file is opened, and no tensor is touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch

from torchsaver.errors import nearest_keys
from torchsaver.variables.joins import Concat
from torchsaver.variables.layouts import Layout, identity
from torchsaver.variables.name_rules import SCOPE_ENDS, Rules, read_rules
from torchsaver.variables.tf_modules import module_layouts
from torchsaver.variables.var_list import read_var_list, resolve

Target: TypeAlias = "torch.Tensor | Layout"
AssignmentMap: TypeAlias = "Mapping[Any, Any] | Iterable[tuple[Any, Any]] | torch.nn.Module | ModuleNames"
_NO_TENSORFLOW_NAME = "num_batches_tracked"  # torch's own count, which TensorFlow has nothing for


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
    """An assignment map, worked out.

    Attributes:
        links: In the order of the map.
        missing: (label, name): variables the checkpoint has no value for, and the name it was looked for under.
        unused: Keys of the checkpoint that go nowhere.
    """

    links: list[Link] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


class _Table:
    """Variables by the names a checkpoint may have them under, within a scope.

    Attributes:
        by_name: {name: (label, target)}; several names may mean one variable.
        wanted: {label: name} of all that have to be found.
    """

    by_name: dict[str, tuple[str, Target]]
    wanted: dict[str, str]

    def find(self, name: str) -> tuple[str, Target] | None:
        return self.by_name.get(name)


class ModuleNames(_Table):
    """A module's variables under the names that TensorFlow has for them, laid out as TensorFlow does; see `from_tf`.

    Args:
        module: What is to be restored.
        rules: How names of the checkpoint, without the scope, become paths in the module.
        is_tensorflow: False: torch's own names and layouts.
    """

    def __init__(self, module: torch.nn.Module, rules: Rules = None, *, is_tensorflow: bool = True) -> None:
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"a torch.nn.Module was wanted, not a {type(module).__name__}")
        self._module = module
        self._rename = read_rules(rules)
        self._is_tensorflow = is_tensorflow

    @cached_property
    def _labels(self) -> dict[int, str]:
        """The path of each tensor in the module, by id; tied ones have their first."""
        names: dict[int, str] = {}
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.Tensor):
                names.setdefault(id(tensor), name)
        return names

    @cached_property
    def by_name(self) -> dict[str, tuple[str, Target]]:  # type: ignore[override]
        """By names whose parts are separated by slashes."""
        if not self._is_tensorflow:
            state = self._module.state_dict(keep_vars=True)
            return {
                name.replace(".", "/"): (self._labels[id(t)], t) for name, t in state.items() if id(t) in self._labels
            }
        table = {}
        for path, module in self._module.named_modules():
            for leaf, target in module_layouts(module).items():
                tensors = target.tensors if isinstance(target, Layout) else (target,)
                label = " + ".join(self._labels.get(id(tensor), leaf) for tensor in tensors)
                name = "/".join(part for part in (path.replace(".", "/"), leaf) if part)
                table[name] = label, target
        return table

    @cached_property
    def wanted(self) -> dict[str, str]:  # type: ignore[override]
        """Every parameter and persistent buffer, once, however many Layouts there are of it."""
        names: dict[str, str] = {}
        for name, (label, _) in self.by_name.items():
            names.setdefault(label, name)
        reached = {part for label in names for part in label.split(" + ")}
        names.update({label: label for label in self._labels.values() if label not in reached})
        if self._is_tensorflow:
            return {label: name for label, name in names.items() if not label.endswith(_NO_TENSORFLOW_NAME)}
        return names

    def find(self, name: str) -> tuple[str, Target] | None:
        """Return the variable a name stands for, None without one."""
        renamed = self._rename(name)
        return None if renamed is None else self.by_name.get(renamed.replace(".", "/"))


class _Variables(_Table):
    """The variables of the current collection whose names begin so."""

    def __init__(self, prefix: str) -> None:
        slots = resolve(read_var_list(None))
        named = {name: tensor for name, tensor in slots.tensors.items() if name.startswith(prefix)}
        self.by_name = {name[len(prefix) :]: (name, tensor) for name, tensor in named.items()}
        self.wanted = {label: name for name, (label, _) in self.by_name.items()}


def match_names(names: Mapping[str, Sequence[str]], assignment_map: AssignmentMap) -> Match:
    """Return which value goes where.

    Args:
        names: {key of the checkpoint: the other names it goes by}.
        assignment_map: As `init_from_checkpoint` has it. As in TF, entries are worked through sorted by name, and then
            those that are no names; of several for one variable, the last counts.

    Raises:
        TypeError, ValueError: An entry is none; it is named.
    """
    if isinstance(assignment_map, (torch.nn.Module, ModuleNames)):
        assignment_map = {"/": assignment_map}
    pairs = list(assignment_map.items() if isinstance(assignment_map, Mapping) else assignment_map)
    pairs.sort(key=lambda pair: (not isinstance(pair[0], str), pair[0] if isinstance(pair[0], str) else ""))
    keys_by_name = {name: key for key, others in names.items() for name in others}
    keys_by_name.update({key: key for key in names})
    links: dict[tuple[int, ...], Link] = {}
    match = Match()
    for source, target in pairs:
        found, missing = _entry(source, target, names, keys_by_name)
        links.update({_identity(link.target): link for link in found})
        match.missing += missing
    match.links = list(links.values())
    used = {link.key for link in match.links}
    match.unused = [key for key in names if key not in used]
    return match


def _identity(target: Target) -> tuple[int, ...]:
    return tuple(map(id, target.tensors if isinstance(target, Layout) else (target,)))


def _entry(
    source: Any, target: Any, names: Mapping[str, Sequence[str]], keys_by_name: Mapping[str, str]
) -> tuple[list[Link], list[tuple[str, str]]]:
    """Return the links of one entry of the map, and what it could not find."""
    if not isinstance(source, (str, re.Pattern)) and not callable(source):
        raise TypeError(f"{source!r}: a name, a compiled pattern or a function was wanted, not a {_kind(source)}")
    if isinstance(target, str):
        return _named(source, target, names, keys_by_name)
    if isinstance(target, torch.nn.Module):
        target = ModuleNames(target, is_tensorflow=False)
    if isinstance(target, _Table):
        return _in_scope(source, target, names)
    if isinstance(target, (list, tuple)):
        target = Layout(tuple(target), identity, Concat(0))
    if not isinstance(target, (torch.Tensor, Layout)):
        wanted = "a tensor, a Layout, a list of a variable's parts, a Module, from_tf(module) or a name"
        raise TypeError(f"{_shown(source)}: {wanted} was wanted, not a {_kind(target)}")
    keys = [keys_by_name[source]] if source in keys_by_name else []
    if not isinstance(source, str):
        rename = _rename(source, whole=True)
        keys = [key for key, others in names.items() if any(rename(name) is not None for name in (key, *others))]
    if len(keys) > 1:
        raise ValueError(f"{_shown(source)} stands for several values, and here is one variable: {', '.join(keys[:5])}")
    return ([Link(keys[0], _shown(source), target)], []) if keys else ([], [(_shown(source), _shown(source))])


def _named(
    source: Any, target: str, names: Mapping[str, Sequence[str]], keys_by_name: Mapping[str, str]
) -> tuple[list[Link], list[tuple[str, str]]]:
    """Return the links of an entry whose target is a name, or a scope, of variables in the current collection."""
    variables = _Variables("")
    if isinstance(source, re.Pattern):  # the target is a template for its groups
        links: dict[str, Link] = {}
        for key, others in names.items():
            for name in (key, *others):
                found = source.fullmatch(name)
                if found is not None and (hit := variables.find(found.expand(target))) is not None:
                    links.setdefault(key, Link(key, *hit))
        return list(links.values()), []
    if (hit := variables.find(target)) is not None:
        return _entry(source, hit[1], names, keys_by_name)
    if isinstance(source, str) and not source.endswith(SCOPE_ENDS):
        raise ValueError(
            f"{source!r}: there is no variable {target!r}{_nearest(target, variables)}; "
            "between scopes, the checkpoint's has to end in a slash"
        )
    return _in_scope(source, _Variables(target[: target.rfind("/") + 1]), names)


def _in_scope(
    source: Any, table: _Table, names: Mapping[str, Sequence[str]]
) -> tuple[list[Link], list[tuple[str, str]]]:
    """Return the links of all variables of a table whose names, after what `source` stands for, the checkpoint has."""
    if isinstance(source, str) and not source.endswith(SCOPE_ENDS):
        raise ValueError(f"{source!r}: a module's values are in a scope, whose name ends in a slash: {source + '/'!r}")
    rename = _rename(source, whole=False)
    found: dict[str, Link] = {}
    for key, others in names.items():
        for name in (*others, key):
            rest = rename(name)
            hit = None if rest is None else table.find(rest)
            if hit is None:
                continue
            label, target = hit
            if label in found and found[label].key != key:
                both = f"{found[label].key!r} and {key!r}"
                raise ValueError(f"{both} both have a value for {label!r}; leave one out by a rule")
            found[label] = Link(key, label, target)
            break
    parts = {part for label in found for part in label.split(" + ")}
    scope = source if isinstance(source, str) and source != "/" else ""
    missing = [
        (label, scope + name)
        for label, name in table.wanted.items()
        if label not in found and not set(label.split(" + ")) <= parts
    ]
    return list(found.values()), missing


def _rename(source: Any, *, whole: bool) -> Callable[[str], str | None]:
    """Return what gives the part of a name that is left after a scope, a pattern or by a function; None: not this."""
    if isinstance(source, re.Pattern):
        pattern = source

        def after(name: str) -> str | None:
            found = pattern.fullmatch(name) if whole else pattern.match(name)
            return None if found is None else name[found.end() :]

        return after
    if callable(source):
        return source  # type: ignore[no-any-return]
    scope = "" if source == "/" else source
    return lambda name: name[len(scope) :] if name.startswith(scope) else None


def _nearest(name: str, variables: _Table) -> str:
    nearest = nearest_keys(name, variables.by_name)
    return f"; nearest: {', '.join(nearest)}" if nearest else ""


def _shown(source: Any) -> str:
    if isinstance(source, re.Pattern):
        return str(source.pattern)
    return source if isinstance(source, str) else getattr(source, "__name__", repr(source))


def _kind(value: Any) -> str:
    return type(value).__name__
