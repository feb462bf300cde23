"""Where TensorFlow's optimizers keep what torch's keep in their state: names of slot variables, and how they are found.

TensorFlow 1      layer/kernel/Adam, layer/kernel/Adam_1, train/layer/kernel/Momentum, ...
objects, slots    SlotVariable m, v, ... of the graph: tf.compat.v1 run eagerly, Keras up to 2.10
objects, lists    optimizer/_momentums/i: Keras from 2.11 on, where Adam/m/layer/kernel is such a variable's name, and
                  Keras 3, where optimizer/_trainable_variables/i says which variable it is of
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from torchsaver.formats.tensorflow.object_graph import ObjectGraph, SlotVariable

_POWER = re.compile(r"beta([12])_power((?:_\d+)?)")
_RMSPROP = ("RMSProp", "RMSProp_1", "RMSProp_2", "RMSProp_3")


class FieldNames(NamedTuple):
    """What TensorFlow has for one tensor of torch's state.

    Attributes:
        ending: After the variable's name in TensorFlow 1; "" if it has none, or it depends.
        slot: Name of the slot variable in a graph of objects.
        listed: Attribute of a Keras optimizer from 2.11 on.
        named: In the names of its variables, in Keras 2.
        per_lr: What the value is divided by: 0, nothing; 1, the learning rate; -1, its negative. Of TensorFlow 1.
        keras_per_lr: The same for Keras.
    """

    ending: str
    slot: str
    listed: str
    named: str
    per_lr: int = 0
    keras_per_lr: int = 0


Fields = Mapping[str, FieldNames]
_ADAM: Fields = {
    "exp_avg": FieldNames("Adam", "m", "_momentums", "m"),
    "exp_avg_sq": FieldNames("Adam_1", "v", "_velocities", "v"),
    "max_exp_avg_sq": FieldNames("", "vhat", "_velocity_hats", "vhat"),
}
_SGD: Fields = {"momentum_buffer": FieldNames("Momentum", "momentum", "momentums", "m", keras_per_lr=-1)}
_RMSPROP_FIELDS: Fields = {
    "square_avg": FieldNames("RMSProp", "rms", "_velocities", "velocity"),
    "momentum_buffer": FieldNames("", "momentum", "_momentums", "momentum", per_lr=1, keras_per_lr=1),
    "grad_avg": FieldNames("", "mg", "_average_gradients", "average_gradient"),
}
_ADAGRAD: Fields = {"sum": FieldNames("Adagrad", "accumulator", "_accumulators", "accumulator")}
_OPTIMIZERS: dict[type[torch.optim.Optimizer], Fields] = {
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.SGD: _SGD,
    torch.optim.RMSprop: _RMSPROP_FIELDS,
    torch.optim.Adagrad: _ADAGRAD,
}


def optimizer_fields(optimizer: torch.optim.Optimizer) -> Fields:
    """Return what TensorFlow has for each tensor that an optimizer of this type may keep for a parameter.

    Raises:
        TypeError: It is of a type that nothing is known of.
    """
    for kind, fields in _OPTIMIZERS.items():
        if isinstance(optimizer, kind):
            return fields
    known = ", ".join(kind.__name__ for kind in _OPTIMIZERS)
    raise TypeError(f"{type(optimizer).__name__} has no counterpart in TensorFlow that is known here: {known} have")


def group_fields(fields: Fields, group: Mapping[str, Any]) -> Fields:
    """Return what an optimizer keeps for a parameter of this group: some of what its type may.

    Raises:
        ValueError: The group has a setting that TensorFlow's optimizer has not.
    """
    if fields is _SGD and group["dampening"]:
        raise ValueError(f"dampening={group['dampening']}: TensorFlow's momentum has none; use dampening=0")
    switches = {
        "momentum_buffer": group.get("momentum", 0) != 0,
        "max_exp_avg_sq": group.get("amsgrad", False),
        "grad_avg": group.get("centered", False),
    }
    return {name: names for name, names in fields.items() if switches.get(name, True)}


class Slot(NamedTuple):
    """A slot variable.

    Attributes:
        key: Of its value.
        optimizer: Path of its optimizer, or the scope it stands in, in a checkpoint of TensorFlow 1; None: unknown.
        per_lr: As FieldNames.
    """

    key: str
    optimizer: str | None
    per_lr: int


class SlotFinder:
    """The slot variables of a checkpoint.

    Args:
        keys: All of the checkpoint.
        graph: Its objects; None for one of TensorFlow 1.
    """

    def __init__(self, keys: Sequence[str], graph: ObjectGraph | None) -> None:
        self._keys = dict.fromkeys(keys)
        self._graph = graph
        self._endings: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
        self._indexes: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self._named: dict[tuple[str, str], list[Slot]] = defaultdict(list)
        self._full_names: dict[str, int] = defaultdict(int)
        self._slots: dict[str | None, list[SlotVariable]] = defaultdict(list)
        if graph is None:
            self._note_endings()
        else:
            self._note_lists(graph)

    def _note_endings(self) -> None:
        """Note what ends in a slash and a word after a variable's name: of the longest such name."""
        for key in self._keys:
            parts = key.split("/")
            for start in range(len(parts) - 1):
                if (owner := "/".join(parts[start:-1])) in self._keys:
                    self._endings[owner][parts[-1]]["/".join(parts[:start])] = key
                    break

    def _note_lists(self, graph: ObjectGraph) -> None:
        for slot in graph.slots:
            self._slots[slot.variable_key].append(slot)
        optimizers = [
            path.removesuffix("_iterations").rstrip("/")
            for path in (value.path or "" for value in graph.keys.values())
            if path.split("/")[-1] == "_iterations"
        ]
        for optimizer in optimizers:
            trained = _joined(optimizer, "_trainable_variables")
            for index in graph.child_names(trained):
                if (key := graph.find(f"{trained}/{index}")) is not None:
                    self._indexes[key].append((optimizer, index))
        for value in graph.keys.values():
            self._full_names[value.full_name] += 1
            parts = value.full_name.split("/", 2)
            owner = [each for each in optimizers if (value.path or "").startswith(_joined(each, "_variables/"))]
            if owner and len(parts) == 3:
                self._named[parts[1], parts[2]].append(Slot(value.key, owner[0], 0))

    def find(self, key: str, field: str, names: FieldNames, own_name: str | None = None) -> list[Slot]:
        """Return the slot variable that a value has for a tensor of torch's state: none, one, or several that might be.

        Args:
            key: Of the value.
            field: The tensor, "exp_avg".
            names: What TensorFlow has for it.
            own_name: Another name than the usual one.
        """
        if self._graph is None:
            return self._by_ending(key, field, names, own_name)
        return self._in_graph(self._graph, key, names, own_name)

    def _by_ending(self, key: str, field: str, names: FieldNames, own_name: str | None) -> list[Slot]:
        endings = self._endings.get(key, {})
        usual = (names.ending or _rmsprop_ending(field, endings), names.slot)
        for ending in usual if own_name is None else (own_name,):
            scopes = endings.get(ending, {})
            per_lr = names.keras_per_lr if ending == names.slot else names.per_lr
            if "" in scopes:
                return [Slot(scopes[""], "", per_lr)]
            if scopes:
                return [Slot(slot, scope, per_lr) for scope, slot in scopes.items()]
        return []

    def _in_graph(self, graph: ObjectGraph, key: str, names: FieldNames, own_name: str | None) -> list[Slot]:
        found = {}
        for slot in self._slots.get(key, ()):
            own_key = slot.key if (own_name or names.slot) in _spellings(slot) else None
            if own_key is not None and own_key in self._keys:
                per_lr = names.keras_per_lr if self._is_keras(graph, slot.optimizer) else names.per_lr
                found[own_key] = Slot(own_key, slot.optimizer, per_lr)
        for optimizer, index in self._indexes.get(key, ()):
            listed = names.listed if own_name in (None, _joined(optimizer, names.listed)) else own_name
            if (own := graph.find(f"{_joined(optimizer, listed)}/{index}")) in self._keys and own is not None:
                found[own] = Slot(own, optimizer, names.keras_per_lr)
        full_name = graph.keys[key].full_name if key in graph.keys else ""
        if not found and self._full_names[full_name] == 1:
            for slot_of_name in self._named.get((own_name or names.named, full_name), ()):
                found[slot_of_name.key] = slot_of_name._replace(per_lr=names.keras_per_lr)
        return list(found.values())

    @staticmethod
    def _is_keras(graph: ObjectGraph, optimizer: str | None) -> bool:
        return optimizer is not None and graph.find(_joined(optimizer, "iter")) is not None

    def average(self, key: str, name: str) -> list[str]:
        """Return the keys of a value's moving average: none, one, or several that might be."""
        scopes = self._endings.get(key, {}).get(name, {})
        return [scopes[""]] if "" in scopes else list(scopes.values())

    def iterations(self, optimizer: str | None) -> str | None:
        """Return the key of what counts the steps of a Keras optimizer."""
        for path in (_joined(optimizer, "_iterations"), _joined(optimizer, "iter")):
            if self._graph is not None and optimizer is not None and (key := self._graph.find(path)) in self._keys:
                return key
            if self._graph is None and path in self._keys:
                return path
        return None

    def powers(self, optimizer: str | None) -> list[tuple[str, str]]:
        """Return the keys of the pairs beta1_power, beta2_power that may be an optimizer's of TensorFlow 1."""
        if self._graph is not None:
            found = [self._graph.find(_joined(optimizer, f"beta{number}_power")) for number in (1, 2)]
            pair = [key for key in found if key is not None and key in self._keys]
            return [(pair[0], pair[1])] if len(pair) == 2 else []
        scopes = {key.rpartition("/")[0] for key in self._keys if _POWER.fullmatch(key.rpartition("/")[2])}
        return _pairs(self._keys, {optimizer} if optimizer in scopes else scopes)


def _pairs(keys: Iterable[str], scopes: set[str] | set[str | None]) -> list[tuple[str, str]]:
    pairs: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for key in keys:
        scope, _, leaf = key.rpartition("/")
        if scope in scopes and (found := _POWER.fullmatch(leaf)) is not None:
            pairs[scope, found[2]][found[1]] = key
    return [(pair["1"], pair["2"]) for pair in pairs.values() if len(pair) == 2]


def _rmsprop_ending(field: str, endings: Mapping[str, Any]) -> str:
    """Return what TensorFlow 1 adds for a tensor of RMSprop: rms, mg if centered, momentum, numbered in that order."""
    count = sum(ending in endings for ending in _RMSPROP)
    if field == "momentum_buffer" and count in (2, 3):
        return _RMSPROP[count - 1]
    return _RMSPROP[1] if field == "grad_avg" and count == 3 else ""


def _spellings(slot: SlotVariable) -> tuple[str, str]:
    return slot.slot_name, _joined(slot.optimizer, slot.slot_name)


def _joined(scope: str | None, name: str) -> str:
    return f"{scope}/{name}" if scope else name
