"""What a file of torch.save holds, sorted by what can be done with it: tensors, states of objects, plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from torchsaver.errors import VarListError
from torchsaver.formats.json_text import require_json
from torchsaver.formats.tensor_bytes import why_not_storable
from torchsaver.formats.torch_file import MOST_DEPTH, TorchFile, children
from torchsaver.variables.optimizers.named_optimizer import is_usual
from torchsaver.variables.problems import Problems
from torchsaver.variables.state_tree import flatten

NOTHING = object()
_ALONE = "optimizer"  # the path of an optimizer's state that is all there is
_EXTRA_STATE = "_extra_state"  # torch's name for what a module's get_extra_state() gives
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Content:
    """What a file holds, by paths: the keys and numbers that lead there, joined by dots.

    Attributes:
        whole: All of it.
        tensors: (path, tensor) of all tensors, those in the states of objects too, in the order of the file.
        state_dicts: {path of a dict of tensors: the paths of these tensors, in its order}.
        optimizers: {path: an optimizer's state_dict()}.
        objects: {path: the state of something else}, which may have tensors.
        metadata: {key: number, text, bool or None} of those at the top.
    """

    whole: Any
    tensors: Sequence[tuple[str, torch.Tensor]]
    state_dicts: dict[str, list[str]] = field(default_factory=dict)
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def at(self, path: str) -> Any:
        """Return what a path leads to, or NOTHING."""
        return _at(self.whole, path)


class Tied(NamedTuple):
    """One of several tensors, by its number, and the numbers of those that are the same memory read the same way.

    Attributes:
        first: The first of them.
        others: The rest.
        problem: Why nothing can be made of it, or "".
    """

    first: int
    others: list[int]
    problem: str


def sort_content(found: TorchFile) -> Content:
    """Return the content of a file, sorted.

    What holds the state of an optimizer is taken apart, as the file itself is; a dict of tensors is a module's state;
    all else is the state of one object. An optimizer's state that is all there is stands under "optimizer".
    """
    if is_optimizer(found.content):
        tensors = [(f"{_ALONE}.{path}", tensor) for path, tensor in found.tensors]
        found = TorchFile(tensors, found.others, {_ALONE: found.content})
    content = Content(found.content, found.tensors)
    _Sorting(content).visit("", found.content, ())
    return content


class _Sorting:
    """Goes through a file from the top, and puts each thing into a content."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._has_optimizer: dict[int, bool] = {}  # by id
        self._has_tensors_alone: dict[int, bool] = {}

    def visit(self, path: str, value: Any, within: tuple[int, ...]) -> None:
        """Sort a value; `within` are the values around it."""
        if isinstance(value, torch.Tensor) or id(value) in within or len(within) == MOST_DEPTH:
            return
        is_top = not within
        if not is_top and _is_extra_state(path):
            self._content.objects.setdefault(path, value)
        elif not is_top and is_optimizer(value):
            self._content.optimizers.setdefault(path, value)
        elif (
            is_top
            or _are_schedulers(value)
            or self._holds_optimizer(value, within)
            or self._is_of_tensors(value, within)
        ):
            tensors = [_join(path, key, is_top) for key, child in children(value) if isinstance(child, torch.Tensor)]
            if tensors and isinstance(value, Mapping):
                self._content.state_dicts.setdefault(path, tensors)
            for key, child in children(value):
                self.visit(_join(path, key, is_top), child, (*within, id(value)))
        elif len(within) == 1 and isinstance(self._content.whole, Mapping) and _is_plain(path, value):
            self._content.metadata.setdefault(path, value)
        else:
            self._content.objects.setdefault(path, value)

    def _holds_optimizer(self, value: Any, within: tuple[int, ...]) -> bool:
        if id(value) in within or len(within) == MOST_DEPTH:
            return False
        if id(value) not in self._has_optimizer:
            around = (*within, id(value))
            self._has_optimizer[id(value)] = is_optimizer(value) or any(
                self._holds_optimizer(child, around) for _, child in children(value)
            )
        return self._has_optimizer[id(value)]

    def _is_of_tensors(self, value: Any, within: tuple[int, ...]) -> bool:
        """Return whether a dict or list holds tensors alone, but for the extra states of modules."""
        if isinstance(value, torch.Tensor):
            return True
        if id(value) in within or len(within) == MOST_DEPTH:
            return False
        if id(value) not in self._has_tensors_alone:
            own = [child for key, child in children(value) if not _is_extra_state(key)]
            around = (*within, id(value))
            self._has_tensors_alone[id(value)] = bool(own) and all(self._is_of_tensors(each, around) for each in own)
        return self._has_tensors_alone[id(value)]


def _join(path: str, key: str, is_top: bool) -> str:
    return key if is_top or not path else f"{path}.{key}"


def _are_schedulers(value: Any) -> bool:
    """Return whether a value is a list of the states of learning rate schedulers, each an object, as of Lightning."""
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) and "last_epoch" in x for x in value)


def _is_extra_state(key: str) -> bool:
    return key.rpartition(".")[2] == _EXTRA_STATE


def _is_plain(key: str, value: Any) -> bool:
    """Return whether a value can stand in a checkpoint's metadata."""
    if type(value) not in _PLAIN:
        return False
    try:
        require_json({key: value})
    except (TypeError, ValueError):
        return False
    return True


def is_optimizer(value: Any) -> bool:
    """Return whether a value is what torch's optimizers give as their state_dict(), with a group at least."""
    if not is_usual(value) or not value["param_groups"]:
        return False
    indexes = [index for group in value["param_groups"] for index in group["params"]]
    return all(type(index) is int for index in indexes) and len(set(indexes)) == len(indexes)


def _at(value: Any, path: str) -> Any:
    """Return what a path leads to from a value; a key may have dots of its own."""
    for key, child in children(value):
        if key == path:
            return child
        if path.startswith(f"{key}.") and (found := _at(child, path[len(key) + 1 :])) is not NOTHING:
            return found
    return NOTHING


def encode(path: str, state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the JSON tree of the state at a path, and its tensors by key, as a Saver writes them.

    Raises:
        ValueError: It holds what has no place there.
    """
    problems = Problems()
    tree, tensors = flatten(path, state, problems)
    try:
        problems.raise_if_any()
    except VarListError as error:
        raise ValueError(error.problems[0]) from error
    return tree, tensors


def tie(tensors: Sequence[tuple[str, torch.Tensor]]) -> list[Tied]:
    """Return (path, tensor) pairs, by their numbers, those together that are one tensor under several paths."""
    counts = Counter(path for path, _ in tensors)
    groups: dict[Any, list[int]] = {}
    for number, (path, tensor) in enumerate(tensors):
        is_one = counts[path] == 1 and not why_not_storable(tensor) and tensor.numel() > 0
        groups.setdefault(_place(tensor) if is_one else number, []).append(number)
    tied = []
    for first, *others in groups.values():
        path, tensor = tensors[first]
        problem = why_not_storable(tensor) or ""
        if counts[path] > 1:
            problem = "stands twice in it, as a key and as keys within each other; save it under other ones"
        tied.append(Tied(first, others, problem))
    return tied


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what is equal for two tensors that are the same memory, read the same way."""
    kind = tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg()
    return (tensor.data_ptr(), *kind)
