"""Values from other checkpoints into a model: TensorFlow's, and those of torch under other names.

ts.init_from_checkpoint("bert_model.ckpt", {"bert/": transfer.from_tf(model)})
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchsaver.errors import MismatchError, nearest_by_label, nearest_keys
from torchsaver.reader import CheckpointReader, load_checkpoint
from torchsaver.restoring.preparation import PreparedRestore
from torchsaver.restoring.restore import restore_from
from torchsaver.variables.mapping.joins import Concat, Single, Stack, Sum
from torchsaver.variables.mapping.layouts import Layout, Transform, identity
from torchsaver.variables.mapping.name_map import AssignmentMap, Link, Match, match_names
from torchsaver.variables.mapping.name_rules import Rules
from torchsaver.variables.mapping.name_tables import ModuleNames, Target
from torchsaver.variables.mapping.rules_file import ConversionRules, parse_rules
from torchsaver.variables.mapping.transfer_plan import TransferPlan
from torchsaver.variables.mapping.transforms import (
    conv,
    conv_transpose,
    dense,
    depthwise,
    flatten,
    gates,
    heads,
    output_heads,
    parse_transform,
    pointwise,
)
from torchsaver.variables.restore_plan import RestoreReport, plan_restore
from torchsaver.variables.tensorflow.modules import basic_lstm_layouts, module_layouts, rnn_layouts
from torchsaver.variables.var_list import Slots

__all__ = [
    "Concat",
    "ConversionRules",
    "Layout",
    "Single",
    "Stack",
    "Sum",
    "TransferPlan",
    "Transform",
    "basic_lstm_layouts",
    "conv",
    "conv_transpose",
    "dense",
    "depthwise",
    "flatten",
    "from_tf",
    "gates",
    "heads",
    "identity",
    "init_from_checkpoint",
    "map_names",
    "module_layouts",
    "output_heads",
    "parse_rules",
    "parse_transform",
    "plan_transfer",
    "pointwise",
    "rnn_layouts",
]

_MOST_COMPARED = 100  # values that go nowhere, whose likes among the variables are looked for


def from_tf(module: torch.nn.Module, rules: Rules = None) -> ModuleNames:
    r"""Return a module as TensorFlow has it: under TensorFlow's names, each value laid out as TensorFlow does.

    A value is found by the path of its module and TensorFlow's name for it, `layers/0/dense/kernel` for the weight of
    `layers.0.dense`. By the module's type, a kernel is transposed (Linear), permuted (convolutions), or its gates are
    put into torch's order (GRU). `rules` make such names of the checkpoint's, without the scope:

        from_tf(model, {re.compile(r"layer_(\d+)/"): r"layers.\1.", "pooler/dense/": "pooler/"})

    Args:
        module: What is to be restored; it is looked at when the names are.
        rules: A dict or list of renamings, worked through in order, or a function: `name_rules.read_rules` has them.

    Raises:
        TypeError: `module` is no Module, or a rule is none.
    """
    return ModuleNames(module, rules)


def plan_transfer(ckpt_dir_or_file: str | os.PathLike[str], assignment_map: AssignmentMap) -> TransferPlan:
    """Return what `init_from_checkpoint` would do, and change nothing: a dry run. `print` shows all of it.

    Args:
        ckpt_dir_or_file: As there.
        assignment_map: As there.

    Raises:
        TypeError, ValueError, TorchSaverError, OSError: As there; what is missing or does not fit is in the plan.
    """
    with load_checkpoint(ckpt_dir_or_file) as reader:
        names = names_of(reader)
        match = match_names(names, assignment_map)
        mismatch = _mismatch(reader, match.links)
        return TransferPlan(
            save_path=reader.save_path,
            links=tuple(match.links),
            rows=tuple(_row(link, reader) for link in match.links),
            missing=_missing(match, names),
            unused={key: list(reader.describe(key).shape) for key in match.unused},
            alike=_alike(match, names),
            problems={link.label: why for link in match.links if (why := mismatch.why(link.label))},
        )


def _row(link: Link, reader: CheckpointReader) -> tuple[str, str, str, str, str]:
    layout = link.target if isinstance(link.target, Layout) else identity(link.target)
    transform = str(layout.transform) if layout is link.target else ""
    shapes = ", ".join(map(_shape_text, layout.tensors))
    return link.key, str(list(reader.describe(link.key).shape)), transform, link.label, shapes


def _shape_text(tensor: torch.Tensor) -> str:
    return "no shape yet" if torch.nn.parameter.is_lazy(tensor) else str(list(tensor.shape))


def _mismatch(reader: CheckpointReader, links: Sequence[Link]) -> MismatchError:
    """Return the error with all values that do not fit their variables; there may be none."""
    slots, renamed = _slots(links), _Renamed(reader, links)
    try:
        plan_restore(slots, renamed, strict=True, reshape=False)
    except MismatchError as error:
        error.sought = renamed.keys_by_label
        return error
    return MismatchError(reader.save_path)


def _missing(match: Match, names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return for each variable without a value the names that look like the one that was looked for."""
    known = [name for key, others in names.items() for name in (key, *others)]
    none_yet: dict[str, tuple[str, ...]] = {one.label: () for one in match.missing}
    return none_yet | nearest_by_label({one.label: one.name for one in match.missing}, known)


def _alike(match: Match, names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return for values that go nowhere the variables without one that were looked for under names like theirs."""
    labels = {one.name: one.label for one in match.missing}
    alike = {}
    for key in match.unused[:_MOST_COMPARED] if labels else ():
        found = next((near for name in (*names[key], key) if (near := nearest_keys(name, labels))), ())
        if found:
            alike[key] = tuple(labels[name] for name in found)
    return alike


def names_of(reader: CheckpointReader) -> dict[str, list[str]]:
    """Return for each key of a checkpoint the other names it goes by: aliases, and an object graph's path and name."""
    names: dict[str, list[str]] = {key: [] for key in reader.keys()}
    for alias, key in reader.aliases.items():
        names[key].append(alias)
    graph = reader.object_graph()
    for key, value in ({} if graph is None else graph.keys).items():
        if key in names and value.attribute == "VARIABLE_VALUE":
            unique = value.full_name if graph is not None and graph.find(value.full_name) == key else ""
            names[key] += [name for name in (unique, value.path) if name]
    return names


def map_names(ckpt_dir_or_file: str | os.PathLike[str], assignment_map: AssignmentMap) -> dict[str, Target]:
    """Return the var_list that an assignment map comes to: `Saver(map_names(...))` restores it, and saves it back.

    Args:
        ckpt_dir_or_file: As `init_from_checkpoint`.
        assignment_map: As `init_from_checkpoint`.

    Raises:
        ValueError: One value goes into several variables, for which a var_list has no words.
        MismatchError, TypeError, TorchSaverError, OSError: As `init_from_checkpoint`.
    """
    with load_checkpoint(ckpt_dir_or_file) as reader:
        links = _links(reader, assignment_map)
    by_key: dict[str, Link] = {}
    for link in links:
        if link.key in by_key:
            raise ValueError(f"{link.key!r} goes into {by_key[link.key].label!r} and {link.label!r}")
        by_key[link.key] = link
    return {key: link.target for key, link in by_key.items()}


def _links(reader: CheckpointReader, assignment_map: AssignmentMap) -> list[Link]:
    """Return the links of a map that has a value for everything it names.

    Raises:
        MismatchError: Not everything; with what does not fit besides.
    """
    names = names_of(reader)
    match = match_names(names, assignment_map)
    if match.missing:
        error = _mismatch(reader, match.links)
        error.missing = tuple(one.label for one in match.missing)
        error.nearest = _missing(match, names)
        error.sought |= {one.label: one.name for one in match.missing}
        raise error
    return match.links


def init_from_checkpoint(
    ckpt_dir_or_file: str | os.PathLike[str], assignment_map: AssignmentMap, *, verify: bool = True
) -> RestoreReport:
    r"""Fill variables from a checkpoint whose names, and layouts, are others: all of them, or, with an error, none.

        ts.init_from_checkpoint("bert_model.ckpt", {"bert/": transfer.from_tf(model.bert)})

    What may be on the checkpoint's side, and on the variables':
        - `"dense/kernel": tensor`: one value; `transfer.dense(tensor)` for one that is laid out otherwise.
        - `"scope/": module`: all values of the module, under its own names; `"scope/": transfer.from_tf(module)`: under
          TensorFlow's. "/" is no scope at all.
        - `"scope/": "other/"` and `"name": "other"`: variables of the current collection, by their names.
        - `re.compile(r"tower_\d+/")` for a scope, or, with a template such as r"layer\1/w", for names.
        - a function from a name of the checkpoint to what is left of it after the scope, or to None.
        - `"emb": [part_0, part_1]`: a variable in parts, along its first dimension.

    As in TF, a scope takes whole parts of names, other values of the checkpoint are left alone, and a list of pairs
    lets one value go into several variables. Unlike TF, it happens at once, shapes and dtypes are checked before, and a
    misspelled scope is an error.

    Args:
        ckpt_dir_or_file: As `load_checkpoint`; torchsaver's, TensorFlow's or anyone's safetensors.
        assignment_map: A dict, a list of pairs, or just a module or `from_tf(module)`.
        verify: As `Saver.restore`.

    Returns:
        What was restored, by variable, and the values that went nowhere.

    Raises:
        MismatchError: Variables the checkpoint has no value for, other shapes, other dtypes: all of them.
        TypeError, ValueError: An entry of the map is none; it is named.
        CheckpointNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError, OSError: As `Saver.restore`.
    """
    with load_checkpoint(ckpt_dir_or_file) as reader:
        return restore_links(reader, _links(reader, assignment_map), verify=verify)


def restore_links(reader: CheckpointReader, links: Sequence[Link], *, verify: bool = True) -> RestoreReport:
    """Fill the variables of links from an open checkpoint: all, or, with an error, none.

    No two labels may be the same, and a key that the checkpoint lacks is missing; it raises as `Saver.restore`.
    """
    slots, renamed = _slots(links), _Renamed(reader, links)
    try:
        report, _ = restore_from(
            reader, slots, strict=True, reshape=False, verify=verify, before=PreparedRestore(), names=renamed
        )
    except MismatchError as error:
        error.sought = renamed.keys_by_label
        raise
    return report


def _slots(links: Sequence[Link]) -> Slots:
    return Slots(
        tensors={link.label: link.target for link in links if not isinstance(link.target, Layout)},
        layouts={link.label: link.target for link in links if isinstance(link.target, Layout)},
    )


class _Renamed:
    """A checkpoint whose values are found by the labels of variables."""

    def __init__(self, reader: CheckpointReader, links: Sequence[Link]) -> None:
        self.save_path = reader.save_path
        self.object_trees: Mapping[str, Any] = {}
        self.keys_by_label = {link.label: link.key for link in links}
        self._reader = reader

    def keys(self) -> list[str]:
        """Return the checkpoint's keys."""
        return self._reader.keys()

    def find(self, label: str) -> Any:
        """Return the key and the place of the value for a variable, None when there is none."""
        return self._reader.find(self.keys_by_label[label])
