"""`var_list` in all its forms -> entries -> the live tensors and objects under their keys; every problem at once.

An entry is read once, when the Saver is built, and resolved at each save and restore: a place inside a module is looked
up anew, so that `module.to()`, `load_state_dict(assign=True)` or a layer added later leave no saver with stale tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch

from torchsaver.formats.json_text import is_unicode
from torchsaver.variables.collection import Collection, current_collection
from torchsaver.variables.mapping.layouts import Layout
from torchsaver.variables.optimizers.named_optimizer import NamedOptimizer, is_usual
from torchsaver.variables.optimizers.parameter_names import name_parameters
from torchsaver.variables.places import Place, PlacedLayout, PlacedOptimizer, Places, join_key
from torchsaver.variables.problems import Problems
from torchsaver.variables.wrappers import clean_names, owner_of_extra_state, without_parametrization

RESERVED_KEY = "__metadata__"  # safetensors' own: a tensor of that name makes a file nobody can read
_DICT_FORM = 'give it a key: Saver({"my_key": value})'


@runtime_checkable
class Stateful(Protocol):
    """Anything with `state_dict()` and `load_state_dict()`: an optimizer, a scheduler, a sampler."""

    def state_dict(self) -> Any:
        """Its state, as a tree of plain values and tensors."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take the state back."""


@dataclass(frozen=True)
class _ExtraState:
    """A module's get_extra_state() and set_extra_state(), as an object of their own."""

    module: torch.nn.Module

    def state_dict(self) -> Any:
        return self.module.get_extra_state()

    def load_state_dict(self, state: Any, /) -> None:
        self.module.set_extra_state(state)


EntryValue: TypeAlias = "torch.Tensor | Place | Layout | PlacedLayout | PlacedOptimizer | torch.nn.Module | Stateful"


class Entry(NamedTuple):
    """One value of var_list under its key; a module's key is put before its own keys, and may be empty."""

    key: str
    value: EntryValue


@dataclass
class Slots:
    """What there is to save or restore now: live tensors and objects by key, tied tensors once."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)  # {another name of a tied tensor: its key in `tensors`}
    objects: dict[str, Stateful] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)  # values that are laid out otherwise in the checkpoint

    def __bool__(self) -> bool:
        return bool(self.tensors or self.objects or self.layouts)


def read_var_list(var_list: Any, names_from: torch.nn.Module | None = None) -> list[Entry]:
    """Return the entries of a var_list in any of its forms (the Saver's docstring lists them).

    Args:
        var_list: As given to Saver; None stands for the current collection. A generator is used up here.
        names_from: A module whose parameters and buffers are known by their paths.

    Raises:
        VarListError: Keys or values that cannot be saved, all of them; VarListTypeError if a type is among them. Unlike
            TF, an empty key is one of them and does not end the process, and so is safetensors' own `__metadata__`.
    """
    problems = Problems()
    places = Places(names_from)
    if var_list is None:
        pairs: Iterable[tuple[Any, Any]] = current_collection().members()
    elif isinstance(var_list, torch.nn.Module):
        pairs = [("", var_list)]
    elif isinstance(var_list, Mapping):
        pairs = var_list.items()
    else:
        pairs = _named_elements(var_list, places, problems)
    entries = []
    for key, value in pairs:
        if _is_good_key(key, value, problems) and _is_good_value(key, value, problems):
            entries.append(Entry(key, _placed(value, places)))
    problems.raise_if_any()
    return entries


def _placed(value: Any, places: Places) -> EntryValue:
    """Return where a tensor, or those of a Layout or an optimizer, are; where that is not known, the value itself."""
    place: Place | PlacedLayout | PlacedOptimizer | None = None
    if isinstance(value, torch.Tensor):
        place = places.of(value)
    elif not isinstance(value, (torch.nn.Module, Layout)) and _is_like_optimizer(value):
        place = places.of_optimizer(value)
    elif isinstance(value, Layout):
        place = places.of_layout(value)
    return place or value


def _is_like_optimizer(value: Any) -> bool:
    """Return whether a value is an optimizer, or wraps one and has its groups."""
    groups = getattr(value, "param_groups", None)
    return isinstance(value, torch.optim.Optimizer) or (
        isinstance(groups, list)
        and bool(groups)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
        and all(isinstance(each, torch.Tensor) for group in groups for each in group["params"])
    )


def resolve(entries: Iterable[Entry]) -> Slots:
    """Return the live tensors and objects of `entries`.

    Raises:
        VarListError: A key stands twice, one tensor stands under two keys of the user's, or a module's value is a copy.
    """
    entries = list(entries)
    if (tensors := tensors_alone(entries)) is not None:
        return Slots(tensors)
    resolution = _Resolution()
    # Tensors given by themselves come first: a module that has one of them too adds another name, whatever the order.
    for entry in sorted(entries, key=lambda entry: isinstance(entry.value, torch.nn.Module)):
        resolution.add(entry)
    resolution.name_optimizers()
    resolution.problems.raise_if_any()
    return resolution.slots


def tensors_alone(entries: Sequence[Entry]) -> dict[str, torch.Tensor] | None:
    """Return the tensors of entries that are nothing else, each under one key: what `resolve` will always find."""
    tensors = {entry.key: entry.value for entry in entries if isinstance(entry.value, torch.Tensor)}
    return tensors if len(tensors) == len(entries) == len(set(map(id, tensors.values()))) else None


class _Resolution:
    """Slots in the making: entries are added one by one, optimizers get their names at the end."""

    def __init__(self) -> None:
        self.slots = Slots()
        self.problems = Problems()
        self._keys: dict[int, str] = {}  # the key of each tensor, by id
        self._laid_out: dict[int, str] = {}  # the same of those in layouts: what is stored is not the tensor's value
        self._optimizers: dict[str, PlacedOptimizer] = {}

    def add(self, entry: Entry) -> None:
        value = _value_now(entry, self.problems)
        if value is None:
            self.problems.add(f"{entry.key!r} is not in its module any more; build a new Saver")
        elif isinstance(value, torch.Tensor):
            self._add_tensor(entry.key, value)
        elif isinstance(value, torch.nn.Module):
            _resolve_module(entry.key, value, self.slots, self._keys, self.problems)
        elif isinstance(value, Layout):
            self._add_layout(entry.key, value)
        elif _is_free(entry.key, self.slots, self.problems):
            if isinstance(value, PlacedOptimizer):
                self._optimizers[entry.key], value = value, NamedOptimizer(value.optimizer, [])
            self.slots.objects[entry.key] = value

    def _add_tensor(self, key: str, tensor: torch.Tensor) -> None:
        if (other := self._keys.get(id(tensor), self._laid_out.get(id(tensor)))) is not None:
            self.problems.add(f"{key!r} and {other!r} are the same tensor; save it under one key")
        elif _is_free(key, self.slots, self.problems):
            self.slots.tensors[key] = tensor
        self._keys.setdefault(id(tensor), key)

    def _add_layout(self, key: str, layout: Layout) -> None:
        for tensor in layout.tensors:
            if (other := self._keys.get(id(tensor), self._laid_out.setdefault(id(tensor), key))) != key:
                self.problems.add(f"{key!r} and {other!r} have the same tensor; save it under one key")
        if _is_free(key, self.slots, self.problems):
            self.slots.layouts[key] = layout

    def name_optimizers(self) -> None:
        """Give the parameters of optimizers the names they have in the slots, or elsewhere."""
        single = {key for key, layout in self.slots.layouts.items() if len(layout.tensors) == 1}
        keys = {**{tensor: key for tensor, key in self._laid_out.items() if key in single}, **self._keys}
        tied: dict[str, list[str]] = {}
        for alias, name in self.slots.aliases.items():
            tied.setdefault(without_parametrization(name), []).append(without_parametrization(alias))
        for key, placed in self._optimizers.items():
            names, reasons = name_parameters(placed, keys)
            if reasons and not isinstance(placed.optimizer, torch.optim.Optimizer):  # its parameters are copies
                self.slots.objects[key] = placed.optimizer
                continue
            self.slots.objects[key] = NamedOptimizer(placed.optimizer, names, tied)
            if reasons and is_usual(placed.optimizer.state_dict()):  # a state of another form does without names
                for reason in reasons:
                    self.problems.add(f"{key!r} {reason}")


def _value_now(entry: Entry, problems: Problems) -> Any:
    """Return the value of an entry as it is now, None when it is gone; adds a problem if its shapes do not fit now."""
    if isinstance(entry.value, Place):
        return entry.value.tensor()
    if isinstance(entry.value, PlacedLayout):
        try:
            return entry.value.now()
        except ValueError as error:
            problems.add(f"{entry.key!r} cannot be laid out any more: {error}")
            return entry.value.layout
    return entry.value


def _resolve_module(
    prefix: str, module: torch.nn.Module, slots: Slots, keys: dict[int, str], problems: Problems
) -> None:
    """Add a module's state_dict() entries; a tensor with several names in modules is tied, and gets aliases."""
    parts = [tensors for part in module.modules() for tensors in (part._parameters, part._buffers)]
    live = {id(tensor) for tensors in parts for tensor in tensors.values()}
    values = module.state_dict(keep_vars=True)
    clean = clean_names(module, values)
    for name, value in values.items():
        key = join_key(prefix, clean[name])
        if slots.tensors.get(key) is value:  # given by itself too, under the very name it has in the module
            continue
        if not _is_good_key(key, value, problems) or not _is_free(key, slots, problems):
            continue
        if name.rpartition(".")[2] == "_extra_state":
            slots.objects[key] = _ExtraState(owner_of_extra_state(module, name.rpartition(".")[0]))
        elif id(value) not in live:
            problems.add(
                f"{key!r}: state_dict() gives a copy, so a restore would change nothing; save its tensors by key"
            )
        elif id(value) in keys:
            slots.aliases[key] = keys[id(value)]
        else:
            keys[id(value)] = key
            slots.tensors[key] = value


def _named_elements(var_list: Any, places: Places, problems: Problems) -> Iterator[tuple[Any, Any]]:
    """Yield (key, value) for the elements of an iterable: named variables, (name, value) pairs, lists of them."""
    if isinstance(var_list, (str, bytes, torch.Tensor, Stateful)) or not isinstance(var_list, Iterable):
        kind = type(var_list).__name__
        problems.add(f"it is a {kind}; give a dict, a list, a Module, or nothing: {_DICT_FORM}", wrong_type=True)
        return
    for element in var_list:
        match element:
            case (str() as key, value):
                yield key, value
            case list() | tuple() | set() | frozenset():
                yield from _named_elements(element, places, problems)
            case torch.Tensor():
                if (name := places.name_of(element)) is None:
                    shape = list(element.shape)
                    problems.add(
                        f"a tensor of shape {shape} has no name; {_DICT_FORM}, or names_from=model", wrong_type=True
                    )
                else:
                    yield name, element
            case _:
                problems.add(f"a list element is a {type(element).__name__}; {_DICT_FORM}", wrong_type=True)


def _is_good_key(key: Any, value: Any, problems: Problems) -> bool:
    if not isinstance(key, str):
        problems.add(f"key {key!r} is a {type(key).__name__}; keys are str", wrong_type=True)
    elif key == "" and not isinstance(value, torch.nn.Module):
        problems.add("a key is empty; give it a name")
    elif key == RESERVED_KEY:
        problems.add(f"{RESERVED_KEY!r} is safetensors' own key; choose another")
    elif not is_unicode(key):
        problems.add(f"key {key!r} holds a lone surrogate, which UTF-8 cannot hold; choose another")
    else:
        return True
    return False


def _is_good_value(key: str, value: Any, problems: Problems) -> bool:
    if value is None:
        problems.add(f"{key!r} is None; leave it out")
    elif isinstance(value, Mapping):
        problems.add(f"{key!r} is a nested dict; give its values keys of their own", wrong_type=True)
    elif isinstance(value, Layout):
        return True
    elif isinstance(value, (Collection, type)) or not isinstance(value, (torch.Tensor, torch.nn.Module, Stateful)):
        remedy = "a tensor, a Module or an object with state_dict() and load_state_dict() was wanted"
        if isinstance(value, (bool, int, float, str)):
            remedy += "; wrap a number as torch.tensor(..), or give it to save() as metadata"
        problems.add(f"{key!r} is a {type(value).__name__}; {remedy}", wrong_type=True)
    else:
        return True
    return False


def _is_free(key: str, slots: Slots, problems: Problems) -> bool:
    if key in slots.tensors or key in slots.aliases or key in slots.objects or key in slots.layouts:
        problems.add(f"{key!r} is the key of two values; name one of them otherwise")
        return False
    return True
