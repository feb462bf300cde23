"""What a checkpoint may call variables: those of a module, by torch's names or TensorFlow's, and of a collection."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch

from torchsaver.variables.mapping.layouts import Layout
from torchsaver.variables.mapping.name_rules import Rules, read_rules
from torchsaver.variables.tensorflow.modules import module_layouts
from torchsaver.variables.var_list import Slots, read_var_list, resolve

Target: TypeAlias = "torch.Tensor | Layout"
_NO_TENSORFLOW_NAME = "num_batches_tracked"  # torch's own count, which TensorFlow has nothing for


class Wanted(NamedTuple):
    """A variable that has to get a value.

    Attributes:
        label: What to call it: its path in its module, or the name it was given by.
        name: The most likely name of its value in the checkpoint.
        target: The variable, where it will do that another entry of the map gives it a value.
    """

    label: str
    name: str
    target: Target | None = None


class Table(NamedTuple):
    """Variables by the names a checkpoint may have them under, within a scope.

    Attributes:
        find: From such a name, of which a variable may have several, to (label, variable).
        wanted: All variables.
    """

    find: Callable[[str], tuple[str, Target] | None]
    wanted: list[Wanted]


class ModuleNames:
    """A module's variables under the names that TensorFlow has for them, laid out as TensorFlow does; see `from_tf`.

    Args:
        module: What is to be restored.
        rules: How names of the checkpoint, without the scope, become paths in the module.
    """

    def __init__(self, module: torch.nn.Module, rules: Rules = None) -> None:
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"a torch.nn.Module was wanted, not a {type(module).__name__}")
        self._module = module
        self._rename = read_rules(rules)

    def table(self) -> Table:
        """Return the module's parameters and persistent buffers as they are now, tied ones once."""
        own = _own_tensors(self._module)
        labels = {id(tensor): path for path, tensor in own.items()}
        by_name: dict[str, tuple[str, Target]] = {}
        for path, module in self._module.named_modules(remove_duplicate=False):
            for leaf, target in module_layouts(module).items():
                name = "/".join(part for part in (path.replace(".", "/"), leaf) if part)
                by_name[name] = " + ".join(labels.get(id(tensor), name) for tensor in tensors_of(target)), target
        wanted: dict[str, Wanted] = {}
        for name, (label, target) in by_name.items():
            wanted.setdefault(label, Wanted(label, name, target))
        reached = {id(tensor) for _, target in by_name.values() for tensor in tensors_of(target)}
        wanted |= {path: Wanted(path, path, tensor) for path, tensor in own.items() if id(tensor) not in reached}

        def find(name: str) -> tuple[str, Target] | None:
            renamed = self._rename(name)
            return None if renamed is None else by_name.get(renamed.replace(".", "/"))

        return Table(find, [one for one in wanted.values() if not one.label.endswith(_NO_TENSORFLOW_NAME)])


def _own_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a module's state_dict() by their paths, tied ones by their first."""
    tensors: dict[int, tuple[str, torch.Tensor]] = {}
    for path, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor):
            tensors.setdefault(id(value), (path, value))
    return dict(tensors.values())


def own_names(module: torch.nn.Module) -> Table:
    """Return a module's variables under their own names, whose parts a checkpoint may separate by slashes.

    Raises:
        VarListError: A value of its state_dict() is a copy.
    """
    slots = resolve(read_var_list(module))
    by_name = {name.replace(".", "/"): variable for name, variable in _variables(slots).items()}
    wanted = [Wanted(label, label, tensor) for label, tensor in slots.tensors.items()]
    return Table(lambda name: by_name.get(name.replace(".", "/")), wanted)


def collection_names(scope: str = "") -> Table:
    """Return the variables of the current collection whose names begin so, by what comes after that."""
    slots = resolve(read_var_list(None))
    start = len(scope)
    by_name = {name[start:]: variable for name, variable in _variables(slots).items() if name.startswith(scope)}
    wanted = [
        Wanted(label, label[start:], tensor) for label, tensor in slots.tensors.items() if label.startswith(scope)
    ]
    return Table(by_name.get, wanted)


def _variables(slots: Slots) -> dict[str, tuple[str, Target]]:
    """Return (label, tensor) by name, tied tensors under each of theirs."""
    names = {**{name: name for name in slots.tensors}, **slots.aliases}
    return {name: (label, slots.tensors[label]) for name, label in names.items()}


def tensors_of(target: Target) -> tuple[torch.Tensor, ...]:
    """Return the tensors of the model that a variable is."""
    return target.tensors if isinstance(target, Layout) else (target,)
