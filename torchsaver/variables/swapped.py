"""Averaged weights in the model for the length of a `with` block, and every Saver knows whose values are where."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch

from torchsaver.formats.tensor_bytes import dtype_text, note_new_values, why_not_storable, why_not_writable
from torchsaver.variables.places import Place, named_tensors
from torchsaver.variables.wrappers import clean_names, match_plain

_Key = TypeVar("_Key", bound=Hashable)
_NOT_THERE = "not in ema; to leave it alone, give it itself, as in {**dict(model.named_parameters()), **ema}"


@contextlib.contextmanager
def swapped(model: torch.nn.Module, ema: Any) -> Iterator[None]:
    """Give the model the averaged values inside of the `with` block, and `ema` the model's; after it, all is as before.

        with ts.swapped(model, ema):
            evaluate(model)  # on the averages
            saver.save("run/model.ckpt", step)  # Saver({"model": model, "ema": ema}): each under its own key

    A Saver sees through it: what it saves as the model's are the values to train on, and what it restores as the
    model's is in the model after the block. All else takes the values as they are: `model.state_dict()` has the
    averages. Every parameter is exchanged, and every buffer that both have in one shape and dtype (the statistics of a
    BatchNorm belong to its weights). A tensor that both share is left alone.

    Tensors stay the same objects, so optimizers and compiled models go on. On one device they exchange their memory,
    which copies nothing; between two they exchange contents, one tensor at a time. So what holds addresses (a CUDA
    graph captured by hand, another process that shares the memory) does not see the exchange. As after any change in
    place, autograd refuses a backward pass through values that were exchanged since the forward pass: call backward()
    on the side of the block's edge that its forward pass is on. Do not update the average inside: it would be made of
    itself.

    A tensor that was replaced inside (`module.to()`, `load_state_dict(assign=True)`) is exchanged in the place of the
    one before. The values are exchanged for all threads; enter and leave it while no other thread computes with the
    model or saves it. A generator that is suspended in the block leaves them so until it goes on or is closed.

    Args:
        model: The module that trains; it may be wrapped (DataParallel, torch.compile), and so may `ema`.
        ema: Its average: a module of the same structure, `torch.optim.swa_utils.AveragedModel`, an object with such a
            module as `.module` or `.ema`, or a dict {name of parameter or buffer: tensor}.

    Raises:
        TypeError: `model` or `ema` is none of these.
        ValueError: A parameter has no counterpart of its shape and dtype, or values cannot be exchanged: all of them,
            and nothing was exchanged. For a frozen parameter, a dict may hold the parameter itself.
        RuntimeError: A tensor is in such a block already. At the end: a tensor is gone, or has another shape or dtype;
            the others have been exchanged.
    """
    swap = _Swap(_pairs(model, ema))
    swap.enter()
    try:
        yield
    finally:
        swap.leave()


def where_held(tensors: Mapping[_Key, torch.Tensor], *, or_shared: bool = False) -> dict[_Key, torch.Tensor]:
    """Return for each tensor the one that holds its own values now: its counterpart inside `swapped`, else itself.

    Args:
        tensors: By any key.
        or_shared: Take a tensor that has the very memory of another for that one: state_dict() detaches what it gives.
            Only for tensors that were made inside of the block, as state_dict() does.
    """
    if not _active:
        return dict(tensors)
    with _lock:
        pairs = [pair.now() for swap in _active for pair in swap.pairs]
    holder = {id(tensor): other for one, two in pairs for tensor, other in ((one, two), (two, one))}
    held = {key: holder.get(id(tensor), tensor) for key, tensor in tensors.items()}
    if or_shared:
        at = {_memory(tensor): other for one, two in pairs for tensor, other in ((one, two), (two, one))}
        held = {
            key: at.get(_memory(tensor), tensor) if tensor is tensors[key] and tensor.numel() else tensor
            for key, tensor in held.items()
        }
    return held


def is_any_swapped() -> bool:
    """Return whether some thread is inside of `swapped`; costs nothing."""
    return bool(_active)


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    if why_not_storable(tensor) is not None:
        return (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


class _Item(NamedTuple):
    """A value of a dict of tensors: the one that is there now."""

    mapping: Mapping[str, Any]
    name: str

    def tensor(self) -> torch.Tensor | None:
        value = self.mapping.get(self.name)
        return value if isinstance(value, torch.Tensor) else None


_Where: TypeAlias = "Place | _Item"


@dataclass(frozen=True)
class _Pair:
    """A tensor of the model and its counterpart.

    Attributes:
        name: Its name in the model.
        places: Where they are, in the model and in ema.
        first: Those that were there when they were paired.
        tied: Other names of both, and where those are.
    """

    name: str
    places: tuple[_Where, _Where]
    first: tuple[torch.Tensor, torch.Tensor]
    tied: list[tuple[str, tuple[_Where, _Where]]] = field(default_factory=list)

    def now(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two that are there now; for one that is gone, the one there was."""
        one, two = (place.tensor() for place in self.places)
        return self.first[0] if one is None else one, self.first[1] if two is None else two

    def why_not_now(self) -> Iterator[str]:
        """Yield a line for each reason why not all of this can be as before any more."""
        for place, owner in zip(self.places, ("the model", "ema"), strict=True):
            if place.tensor() is None:
                yield f"{self.name}: is not in {owner} any more"
        if (reason := _why_not_alike(*self.now())) is not None:
            yield f"{self.name}: {reason}"
        for name, places in self.tied:
            if any(one.tensor() is not other.tensor() for one, other in zip(places, self.places, strict=True)):
                yield f"{name}: is not tied to {self.name} any more"


class _Swap:
    """What one `with` block exchanges."""

    def __init__(self, pairs: list[_Pair]) -> None:
        self.pairs = pairs

    def enter(self) -> None:
        with _lock:
            busy = {id(tensor) for swap in _active for pair in swap.pairs for tensor in pair.now()}
            taken = [pair.name for pair in self.pairs if any(id(tensor) in busy for tensor in pair.first)]
            if taken:
                raise RuntimeError(f"swapped already, by a `with` block that is not over: {', '.join(taken)}")
            _exchange([pair.first for pair in self.pairs])
            _active.append(self)

    def leave(self) -> None:
        with _lock:
            problems = [problem for pair in self.pairs for problem in pair.why_not_now()]
            pairs = [pair for pair in (pair.now() for pair in self.pairs) if _why_not_alike(*pair) is None]
            interrupt = None
            try:
                _exchange(pairs)
            except BaseException as error:  # Ctrl-C: nothing was exchanged, and it must be; for other errors, it raises
                _exchange(pairs)
                interrupt = error
            _active.remove(self)
        if interrupt is not None:
            raise interrupt
        if problems:
            raise RuntimeError("\n  ".join(["changed while swapped, and not swapped back; the others are:", *problems]))


_lock = threading.RLock()
_active: list[_Swap] = []


def _exchange(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Exchange the values of each pair; with an error, of none."""
    tensors = [tensor for pair in pairs for tensor in pair]
    torch.clear_autocast_cache()  # it would go on using what it has cast, and looks at no version
    # Memory is held here until all is done: each assignment can be made again, in either direction, at any point.
    memories = [(one, two, one.data, two.data) for one, two in pairs if _can_exchange_memory(one, two)]
    copied: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for one, two, of_one, of_two in memories:
            one.data, two.data = of_two, of_one
        for pair in pairs:
            if not _can_exchange_memory(*pair):
                _exchange_contents(*pair)
                copied.append(pair)
        note_new_values(tensors)
    except BaseException:
        for one, two, of_one, of_two in memories:
            one.data, two.data = of_one, of_two
        for pair in copied:
            _exchange_contents(*pair)
        note_new_values(tensors)
        raise


def _can_exchange_memory(one: torch.Tensor, two: torch.Tensor) -> bool:
    # With its memory, a tensor would also take over that it is an inference tensor, and be none that can be trained.
    return one.device == two.device and one.is_inference() == two.is_inference()


def _exchange_contents(one: torch.Tensor, two: torch.Tensor) -> None:
    """Exchange the values of two tensors by copying, bit for bit; with an error, they are as before."""
    with torch.inference_mode():  # where inference tensors may be written to, and so may all others
        of_one, of_two = one.clone(), two.clone()
        try:
            one.copy_(of_two)
            two.copy_(of_one)
        except BaseException:
            one.copy_(of_one)
            two.copy_(of_two)
            raise


def _pairs(model: torch.nn.Module, ema: Any) -> list[_Pair]:
    """Return the tensors of the model with their counterparts, tied ones once, shared ones not at all."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}")
    ours, theirs = _in_module(model), _in_ema(ema)
    parameters = {id(parameter) for parameter in model.parameters()}  # that are still to be found in ema
    counterparts = _counterparts(ours, theirs)
    pairs: dict[tuple[int, int], _Pair] = {}
    problems: dict[int, str] = {}  # of a parameter; of two names for one, the second may have a counterpart
    for name, place in ours.items():
        one, two = place.tensor(), theirs[counterparts[name]].tensor() if name in counterparts else None
        assert one is not None  # it has just been found there
        if (reason := _NOT_THERE if two is None else _why_not_alike(one, two)) is not None:
            problems.setdefault(id(one), f"{name}: {reason}")
            continue
        assert two is not None
        parameters.discard(id(one))
        places = place, theirs[counterparts[name]]
        if (pair := pairs.get((id(one), id(two)))) is not None:
            pair.tied.append((name, places))
        elif one is not two and _memory(one) != _memory(two):
            pairs[id(one), id(two)] = _Pair(name, places, (one, two))
    missing = [problem for key, problem in problems.items() if key in parameters]
    _require_no_problems(missing + _why_not_exchanged(pairs.values()))
    return list(pairs.values())


def _counterparts(ours: Mapping[str, _Where], theirs: Mapping[str, _Where]) -> dict[str, str]:
    """Return {name in the model: name in ema}: names as they are, or all without what may be of a wrapper."""
    if all(name in theirs for name, place in ours.items() if isinstance(place.tensor(), torch.nn.Parameter)):
        return {name: name for name in ours if name in theirs}
    return match_plain(ours, theirs)


def _require_no_problems(problems: list[str]) -> None:
    if problems:
        raise ValueError("\n  ".join(["ema does not fit the model; nothing was swapped:", *problems]))


def _why_not_exchanged(pairs: Iterable[_Pair]) -> list[str]:
    """Return a line for each tensor that cannot be exchanged, or would be twice."""
    problems = []
    names: dict[int, str] = {}
    for pair in pairs:
        one, two = pair.first
        why_not = why_not_storable if _can_exchange_memory(one, two) else why_not_writable
        with torch.inference_mode():  # as the contents are exchanged
            problems += [f"{pair.name}: {reason}" for tensor in (one, two) if (reason := why_not(tensor))]
        for tensor, tied, untied in ((one, "the model", "ema"), (two, "ema", "the model")):
            if (other := names.setdefault(id(tensor), pair.name)) != pair.name:
                problems.append(f"{pair.name}: the same tensor as {other} in {tied}, and another one in {untied}")
    return problems


def _why_not_alike(one: torch.Tensor, two: torch.Tensor) -> str | None:
    if torch.nn.parameter.is_lazy(one) or torch.nn.parameter.is_lazy(two):
        return "is a lazy parameter without a shape yet; run one forward pass first"
    if one.shape != two.shape:
        return f"shape {list(one.shape)} in the model, {list(two.shape)} in ema"
    if one.dtype != two.dtype:
        return f"dtype {dtype_text(one.dtype)} in the model, {dtype_text(two.dtype)} in ema"
    return None


def _in_ema(ema: Any) -> dict[str, _Where]:
    if isinstance(ema, Mapping):
        return {str(name): _Item(ema, name) for name in ema}
    for module in (ema, getattr(ema, "module", None), getattr(ema, "ema", None)):
        if isinstance(module, torch.nn.Module):
            return _in_module(module)
    kind = type(ema).__name__
    raise TypeError(
        f"ema is a {kind}; a Module, an object with one as .module or .ema, or a dict of tensors was wanted"
    )


def _in_module(module: torch.nn.Module) -> dict[str, _Where]:
    names = clean_names(module, [name for name, _ in named_tensors(module)])
    return {clean: Place(module, name) for name, clean in names.items()}
