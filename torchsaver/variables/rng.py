"""RNGState: the states of the random number generators, so that a resumed run draws the numbers it would have drawn."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

logger = logging.getLogger("torchsaver")

_PARTS = {"python", "numpy", "torch", "cuda", "generators"}
_BAD_STATE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# numpy takes any position inside these buffers, also one outside of them, where it then reads.
_LARGEST_POSITIONS = {"pos": 624, "buffer_pos": 4}


class RNGState:
    """The states of Python's, numpy's and torch's generators, as an object for a Saver: it holds no state of its own.

    These are `random`, the functions of `numpy.random` (not what `default_rng()` returns), torch on the CPU, and torch
    on each CUDA device once CUDA is in use. Saving and restoring draw no number.

    Examples:
        >>> data = torch.Generator()
        >>> saver = torchsaver.Saver({"model": model, "rng": RNGState({"data": data})})  # doctest: +SKIP

    Args:
        generators: Generators of your own, by a name for each: torch.Generator on any device, numpy.random.Generator
            on any bit generator, numpy.random.RandomState, random.Random.

    Raises:
        TypeError: `generators` is no such dict; the message names what is none.
    """

    def __init__(self, generators: dict[str, Any] | None = None) -> None:
        if generators is not None and not isinstance(generators, dict):
            kind = type(generators).__name__
            raise TypeError(f'generators is a dict of a name for each, {{"data": generator}}, not {kind}')
        self._generators = dict(generators or {})
        for name, generator in self._generators.items():
            if not isinstance(name, str):
                raise TypeError(f"generators: the name {name!r} is a {type(name).__name__}, and names are str")
            if _kind_of(generator) is None:
                kinds = ", ".join(_KINDS)
                raise TypeError(f"generators: {name!r} is a {type(generator).__name__}; one of {kinds} was wanted")

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each generator: dicts, numbers, texts, arrays and CPU tensors, none of them shared."""
        cuda = _cuda_generators() if _is_cuda_in_use() else []
        return {
            "python": _state_of(random),
            "numpy": _state_of(np.random),
            "torch": _state_of(torch.default_generator),
            "cuda": list(map(_state_of, cuda)),
            "generators": {name: _state_of(generator) for name, generator in self._generators.items()},
        }

    def load_state_dict(self, state: Any) -> None:
        """Give each generator its state: all of them, or none if there is an error.

        With fewer or more CUDA devices than the state has, the first ones get theirs and a warning is logged.

        Args:
            state: What `state_dict` gave.

        Raises:
            ValueError: A part is missing, or no state for this generator, or the generators have other names.
        """
        if not isinstance(state, dict) or state.keys() != _PARTS:
            raise ValueError(f"a state of RNGState has the parts {', '.join(sorted(_PARTS))}, and this is none")
        targets = {"python": random, "numpy": np.random, "torch": torch.default_generator}
        pairs = [(part, target, state[part]) for part, target in targets.items()]
        pairs += self._pairs_of_generators(state["generators"]) + _pairs_of_devices(state["cuda"])
        for part, target, own in pairs:
            _require_state(part, target, own)
        for _, target, own in pairs:
            _kind(target).write(target, own)

    def _pairs_of_generators(self, states: Any) -> list[tuple[str, Any, Any]]:
        if not isinstance(states, dict) or states.keys() != self._generators.keys():
            names = sorted(states) if isinstance(states, dict) else states
            wanted = sorted(self._generators)
            raise ValueError(f"generators: {names} in checkpoint, and RNGState has {wanted}; give it the same names")
        return [(f"generators[{name!r}]", generator, states[name]) for name, generator in self._generators.items()]


def _pairs_of_devices(states: Any) -> list[tuple[str, Any, Any]]:
    """Return (part, generator, state) of the CUDA devices that the state and this process both have."""
    if not isinstance(states, list):
        raise ValueError("cuda: a list with a state for each device was wanted")
    devices = _cuda_generators() if states or _is_cuda_in_use() else []
    if len(devices) != len(states):
        alike = min(len(devices), len(states))
        counts = f"the checkpoint has the states of {len(states)} CUDA devices, and this process has {len(devices)}"
        logger.warning("RNGState: %s; the random numbers from cuda:%d on will be others", counts, alike)
    pairs = zip(devices, states, strict=False)
    return [(f"cuda[{index}]", device, state) for index, (device, state) in enumerate(pairs)]


def _cuda_generators() -> list[torch.Generator]:
    """Return the generator of each CUDA device, after having CUDA initialised; none where there is no CUDA."""
    if not torch.cuda.is_available():
        return []
    torch.cuda.init()  # type: ignore[no-untyped-call]
    return list(torch.cuda.default_generators)


def _is_cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


class _Kind(NamedTuple):
    """How one kind of generator is read and set; the modules `random` and `numpy.random` are generators here too.

    Attributes:
        read: Return its state, plain data.
        write: Set its state; raise for what is none.
        twin: Return another generator like it, to try a state on.
    """

    read: Callable[[Any], dict[str, Any]]
    write: Callable[[Any, dict[str, Any]], None]
    twin: Callable[[Any], Any]


def _kind_of(generator: Any) -> str | None:
    """Return the name of a generator's kind, None for anything else."""
    if isinstance(generator, torch.Generator):
        return "torch.Generator"
    if isinstance(generator, np.random.Generator):
        return "numpy.random.Generator"
    if generator is np.random or isinstance(generator, np.random.RandomState):
        return "numpy.random.RandomState"
    is_python = isinstance(generator, random.Random) and not isinstance(generator, random.SystemRandom)
    return "random.Random" if generator is random or is_python else None


def _kind(generator: Any) -> _Kind:
    return _KINDS[_kind_of(generator) or ""]


def _state_of(generator: Any) -> dict[str, Any]:
    return {"kind": _kind_of(generator), **_kind(generator).read(generator)}


def _require_state(part: str, generator: Any, state: Any) -> None:
    """Check that a generator can take a state, on another one like it.

    Raises:
        ValueError: It cannot, or would make something else of it.
    """
    found = state.get("kind") if isinstance(state, dict) else type(state).__name__
    if found != _kind_of(generator):
        raise ValueError(f"{part}: a {found} in checkpoint, and here a {_kind_of(generator)}; use the same kind")
    here = _kind(generator).read(generator).get("bit_generator")
    if state.get("bit_generator") != here:
        raise ValueError(f"{part}: on {state.get('bit_generator')} in checkpoint, and here on {here}; use the same")
    try:
        _require_positions(state)
        twin = _kind(generator).twin(generator)
        _kind(generator).write(twin, state)
        is_taken = _equal(_state_of(twin), state)
    except _BAD_STATE as error:
        raise ValueError(f"{part}: not a state of this generator: {error}") from error
    if not is_taken:
        raise ValueError(f"{part}: not a state of this generator, which would make another one of it")


def _require_positions(state: dict[str, Any]) -> None:
    inner = state.get("state")
    for items in (state, inner if isinstance(inner, dict) else {}):
        for name, largest in _LARGEST_POSITIONS.items():
            if name in items and not 0 <= items[name] <= largest:
                raise ValueError(f"{name} is {items[name]}, and {largest} at most")


def _equal(one: Any, other: Any) -> bool:
    """Return whether two states are the same in types and values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def _read_python(generator: random.Random) -> dict[str, Any]:
    version, words, gauss_next = generator.getstate()
    return {"version": version, "words": np.array(words, np.uint32), "gauss_next": gauss_next}


def _write_python(generator: random.Random, state: dict[str, Any]) -> None:
    gauss_next = state["gauss_next"]
    gauss_next = None if gauss_next is None else float(gauss_next)
    generator.setstate((state["version"], tuple(state["words"].tolist()), gauss_next))


def _read_generator(generator: np.random.Generator) -> dict[str, Any]:
    return dict(generator.bit_generator.state)


def _write_generator(generator: np.random.Generator, state: dict[str, Any]) -> None:
    generator.bit_generator.state = _without_kind(state)


def _read_legacy(generator: np.random.RandomState) -> dict[str, Any]:
    return dict(generator.get_state(legacy=False))


def _legacy_twin(generator: np.random.RandomState) -> np.random.RandomState:
    return np.random.RandomState(getattr(np.random, _read_legacy(generator)["bit_generator"])(0))


def _without_kind(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != "kind"}


_KINDS = {
    "torch.Generator": _Kind(
        lambda generator: {"state": generator.get_state()},
        lambda generator, state: generator.set_state(state["state"]),
        lambda generator: torch.Generator(generator.device),
    ),
    "numpy.random.Generator": _Kind(
        _read_generator,
        _write_generator,
        lambda generator: np.random.Generator(type(generator.bit_generator)(0)),
    ),
    "numpy.random.RandomState": _Kind(
        _read_legacy, lambda generator, state: generator.set_state(_without_kind(state)), _legacy_twin
    ),
    "random.Random": _Kind(_read_python, _write_python, lambda _: random.Random(0)),  # noqa: S311
}
