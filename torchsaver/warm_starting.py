"""Variables started from those of another model's checkpoint: embeddings too, whose vocabulary has changed since.

ts.warm_start("run/model.ckpt-1000", ".*embeddings", {"embeddings": VocabInfo("new.txt", 5000, 1, "old.txt")})
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch

from torchsaver import arguments
from torchsaver.errors import VarListError, nearest_keys, nearest_text
from torchsaver.formats.regular_file import read_regular
from torchsaver.reader import CheckpointReader, load_checkpoint
from torchsaver.storage import paths
from torchsaver.transfer import restore_links
from torchsaver.variables.mapping.joins import cat, reshaped
from torchsaver.variables.mapping.layouts import Layout, Transform, identity
from torchsaver.variables.mapping.name_map import Link
from torchsaver.variables.mapping.name_tables import Target, tensors_of
from torchsaver.variables.restore_plan import RestoreReport
from torchsaver.variables.var_list import Slots, read_var_list, resolve

_MOST_BYTES = 1 << 32  # of a vocabulary file: what is larger is something else


class VocabInfo(NamedTuple):
    r"""How a variable's rows, or columns, follow the lines of vocabulary files: then, and now.

    A line is what stands before "\n" or "\r\n": UTF-8 or any other bytes; spaces count. Lines after the first
    `new_vocab_size` or `old_vocab_size` are not looked at. As in TF, an empty line is an error, and so is one that
    stands twice; in TF, twice in the new file is one only if the old file has it.

    Attributes:
        new_vocab: The file with a line for each entry of the variable.
        new_vocab_size: How many of its lines count.
        num_oov_buckets: How many entries, all new, the variable has after these for words out of the vocabulary.
        old_vocab: The file with a line for each entry of the checkpoint's value; what that has more is left there.
        old_vocab_size: How many of its lines count; -1: all.
        backup_initializer: Gives values of a shape, [new entries, ...] or [rows, new entries, ...]: a tensor, an array
            or lists. None: zeros. Unlike TF, it is asked once, for lines and buckets together.
        axis: Which of the value as the checkpoint has it: 0: rows, 1: columns.
    """

    new_vocab: str | os.PathLike[str]
    new_vocab_size: int
    num_oov_buckets: int
    old_vocab: str | os.PathLike[str]
    old_vocab_size: int = -1
    backup_initializer: Callable[[list[int]], Any] | None = None
    axis: int = 0


def warm_start(
    ckpt_to_initialize_from: str | os.PathLike[str],
    vars_to_warm_start: str | Sequence[Any] | None = ".*",
    var_name_to_vocab_info: Mapping[str, VocabInfo] | None = None,
    var_name_to_prev_var_name: Mapping[str, str] | None = None,
    *,
    var_list: Any = None,
) -> RestoreReport:
    """Fill chosen variables from a checkpoint: all of them, or, with an error, none.

    As in TF, a variable is looked for under its own name or its previous one, two may have the same, and a pattern may
    match nothing: the report says what was restored. Unlike TF, it happens at once, and variables with
    a vocabulary may have any number of dimensions and any dtype.

    Args:
        ckpt_to_initialize_from: As `load_checkpoint`.
        vars_to_warm_start: Which variables. A pattern that names begin with (`re.match`): those of them that require
            gradients; a list of patterns: those of all; a list of tensors: these; None: those that require gradients
            and have a vocabulary.
        var_name_to_vocab_info: For variables that have one.
        var_name_to_prev_var_name: For variables that the checkpoint has under other names.
        var_list: The variables with their names, in any form that `Saver` takes; objects with a state are left alone.
            None: the current collection. For a Layout, a vocabulary's axis is one of the stored value.

    Returns:
        What was restored, by variable, and the values that went nowhere.

    Raises:
        MismatchError: Variables the checkpoint has no value for, other shapes, other dtypes: all of them.
        ValueError: `vars_to_warm_start` is nothing of the above; a name in one of the dicts is not that of a chosen
            variable; a vocabulary file is too short, has a line twice, or is no text.
        VarListError: There are no variables.
        TypeError: An argument has the wrong type.
        CheckpointNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError, OSError: As `Saver.restore`.
    """
    slots = resolve(read_var_list(var_list))
    variables: dict[str, Target] = {**slots.tensors, **slots.layouts}
    if not variables:
        raise VarListError(["there are no variables to warm-start; pass var_list, a Module for example"])
    infos = _by_own_name(slots, var_name_to_vocab_info)
    previous = _by_own_name(slots, var_name_to_prev_var_name)
    chosen = _chosen(variables, slots, vars_to_warm_start, infos)
    for name, info in infos.items():
        _check(name, info)
    _require_used(infos, chosen, "var_name_to_vocab_info")
    _require_used(previous, chosen, "var_name_to_prev_var_name")
    with load_checkpoint(ckpt_to_initialize_from) as reader:
        links = []
        for name in chosen:
            key = _key(reader, name, previous, slots)
            links.append(Link(key, name, _with_vocabulary(reader, key, name, variables[name], infos.get(name))))
        return restore_links(reader, links)


# ---- which variables


def _by_own_name(slots: Slots, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a dict of the user's by variables' first names: a tied one may be called by any."""
    return {slots.aliases.get(name, name): value for name, value in (given or {}).items()}


def _chosen(variables: Mapping[str, Target], slots: Slots, given: Any, infos: Mapping[str, Any]) -> list[str]:
    trainable = [name for name, target in variables.items() if any(one.requires_grad for one in tensors_of(target))]
    if given is None or (isinstance(given, str) and not given):  # in TF, an empty pattern is none
        return [name for name in trainable if name in infos]
    if isinstance(given, str):
        return _matching(trainable, slots, [given])
    if isinstance(given, list) and all(isinstance(one, str) for one in given):
        return _matching(variables, slots, given)
    if isinstance(given, list) and all(isinstance(one, torch.Tensor) for one in given):
        return _names_of(variables, given)
    kinds = f"a list of {', '.join(type(one).__name__ for one in given)}" if isinstance(given, list) else repr(given)
    raise ValueError(f"vars_to_warm_start is a pattern, a list of patterns, a list of tensors or None, not {kinds}")


def _matching(names: Iterable[str], slots: Slots, patterns: Sequence[str]) -> list[str]:
    """Return the names that one of the patterns matches, also by another name of a tied tensor."""
    spellings: dict[str, list[str]] = {name: [name] for name in names}
    for alias, name in slots.aliases.items():
        if name in spellings:
            spellings[name].append(alias)
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise ValueError(f"vars_to_warm_start: {error.pattern!r} is no pattern: {error}") from error
    return [name for name, others in spellings.items() if any(one.match(other) for one in compiled for other in others)]


def _names_of(variables: Mapping[str, Target], tensors: Sequence[torch.Tensor]) -> list[str]:
    names = {id(tensor): name for name, target in variables.items() for tensor in tensors_of(target)}
    unknown = [list(tensor.shape) for tensor in tensors if id(tensor) not in names]
    if unknown:
        raise ValueError(f"vars_to_warm_start has tensors of shapes {unknown} that are not among the variables")
    return list(dict.fromkeys(names[id(tensor)] for tensor in tensors))


def _require_used(given: Mapping[str, Any], chosen: Sequence[str], argument: str) -> None:
    unused = [name for name in given if name not in chosen]
    if unused:
        nearest = sorted({near for name in unused for near in nearest_keys(name, chosen)})
        raise ValueError(
            f"{argument}: {', '.join(map(repr, unused))} are no variables that are warm-started{nearest_text(nearest)}"
        )


def _key(reader: CheckpointReader, name: str, previous: Mapping[str, str], slots: Slots) -> str:
    """Return the key of a variable's value, or the name to look for in vain."""
    if name in previous:
        if not isinstance(previous[name], str) or not previous[name]:
            raise ValueError(f"var_name_to_prev_var_name: {name!r}: a name was wanted, not {previous[name]!r}")
        return previous[name]
    spellings = [name, *(alias for alias, own in slots.aliases.items() if own == name)]
    return next((one for one in spellings if reader.has_tensor(one)), name)


# ---- vocabularies


def _with_vocabulary(reader: CheckpointReader, key: str, name: str, target: Target, info: VocabInfo | None) -> Target:
    """Return a variable as the value that is stored for it has to be laid out; itself, without a vocabulary."""
    if info is None or (found := reader.find(key)) is None or any(map(torch.nn.parameter.is_lazy, tensors_of(target))):
        return target  # which is refused, unless there is no vocabulary
    layout = target if isinstance(target, Layout) else identity(target)
    try:
        vocabulary = _vocabulary(info, found[1].shape, layout.stored_shape(), layout.dtype)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return Layout(layout.tensors, vocabulary.then(layout.transform), layout.join)


def _check(name: str, info: VocabInfo) -> None:
    if not isinstance(info, VocabInfo):
        raise TypeError(f"{name}: a VocabInfo was wanted, not a {type(info).__name__}")
    if info.axis not in (0, 1):
        raise ValueError(f"{name}: axis is 0 or 1, not {info.axis!r}")
    for field, least in (("new_vocab_size", 1), ("num_oov_buckets", 0), ("old_vocab_size", -1)):
        if arguments.whole_number(getattr(info, field), f"{name}: {field}", least=least) is None:
            raise TypeError(f"{name}: {field} is an integer, not None")
    if info.old_vocab_size == 0:
        raise ValueError(f"{name}: old_vocab_size is -1, for all lines, or 1 at least, not 0")
    if info.backup_initializer is not None and not callable(info.backup_initializer):
        kind = type(info.backup_initializer).__name__
        raise TypeError(f"{name}: backup_initializer is a function of a shape, not a {kind}")


def _vocabulary(info: VocabInfo, old_shape: Sequence[int], new_shape: Sequence[int], dtype: torch.dtype) -> Transform:
    """Return what moves a stored value's entries to where the variable has them, and puts new ones between."""
    axis, size = info.axis, info.new_vocab_size + info.num_oov_buckets
    if len(new_shape) <= axis or new_shape[axis] != size:
        wanted = f"new_vocab_size {info.new_vocab_size} and num_oov_buckets {info.num_oov_buckets} come to {size}"
        raise ValueError(f"{wanted}, and the variable, as it is stored, has shape {list(new_shape)}: axis {axis}")
    new = _lines(info.new_vocab, info.new_vocab_size, "new_vocab")
    old = {line: number for number, line in enumerate(_lines(info.old_vocab, info.old_vocab_size, "old_vocab"))}
    stored = old_shape[axis] if len(old_shape) > axis else len(old)
    if stored < len(old):
        raise ValueError(f"{os.fspath(info.old_vocab)!r} has {len(old)} lines, and the checkpoint {stored} entries")
    added = count(stored)
    places = [old[line] if line in old else next(added) for line in new]
    places += [next(added) for _ in range(info.num_oov_buckets)]
    fresh = _fresh(info, _with_size(new_shape, axis, next(added) - stored), dtype)
    return Transform(
        f"vocabulary of {os.path.basename(os.fspath(info.new_vocab))!r}",
        partial(_moved, axis, places, fresh),
        partial(_shaped, axis, stored),
    )


def _fresh(info: VocabInfo, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return the values of new entries."""
    if info.backup_initializer is None or not shape[info.axis]:
        return torch.zeros(*shape, dtype=dtype, device="cpu")
    values = torch.as_tensor(info.backup_initializer(list(shape))).detach().to(dtype=dtype, device="cpu")
    if list(values.shape) != list(shape):
        raise ValueError(f"backup_initializer gave shape {list(values.shape)}, and {list(shape)} was wanted")
    return values


def _with_size(shape: Sequence[int], axis: int, size: int) -> list[int]:
    return [*shape[:axis], size, *shape[axis + 1 :]]


def _moved(axis: int, places: Sequence[int], fresh: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the entries at these places of the stored ones and, after these, the fresh ones; bit for bit."""
    if value.is_meta or not value.numel():
        return value.new_empty(_with_size(value.shape, axis, len(places)))
    entries = cat([value, fresh], axis).movedim(axis, 0)
    rows = reshaped(entries, (len(entries), math.prod(entries.shape[1:]))).contiguous().view(torch.uint8)
    moved = rows.index_select(0, torch.tensor(places, device="cpu")).view(value.dtype)
    return reshaped(moved, (len(places), *entries.shape[1:])).movedim(0, axis)


def _shaped(axis: int, stored: int, value: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the shape that is stored; what was left of the old values is not known any more."""
    return value.new_empty(_with_size(value.shape, axis, stored))


def _lines(path: str | os.PathLike[str], size: int, what: str) -> list[bytes]:
    """Return the first lines of a vocabulary file, all of them for -1."""
    name = paths.path_text(path, what)
    content = read_regular(name, _MOST_BYTES)
    if b"\0" in content:
        raise ValueError(f"{what} {name!r} is no text file")
    lines = [line.removesuffix(b"\r") for line in content.removesuffix(b"\n").split(b"\n")] if content else []
    if len(lines) < max(size, 1):
        raise ValueError(f"{what} {name!r} has {len(lines)} lines, and {max(size, 1)} were wanted")
    lines = lines if size == -1 else lines[:size]
    seen: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            raise ValueError(f"{what} {name!r}: line {number} is empty")
        if seen.setdefault(line, number) != number:
            raise ValueError(
                f"{what} {name!r}: lines {seen[line]} and {number} are both {line.decode(errors='replace')!r}"
            )
    return lines
