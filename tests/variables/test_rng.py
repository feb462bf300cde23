"""A restored run draws the very numbers it would have drawn; a bad state changes no generator."""

from __future__ import annotations

import copy
import logging
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from variables.states import described, round_trip

import torchsaver as ts
from torchsaver.variables import rng
from torchsaver.variables.rng import RNGState

BIT_GENERATORS = ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"]


@pytest.fixture(autouse=True)
def _same_numbers_after_the_test() -> Iterator[None]:
    before = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


def _generators(seed: int) -> dict[str, Any]:
    """Return one generator of every kind, each in the middle of what it has in stock."""
    own: dict[str, Any] = {name: np.random.Generator(getattr(np.random, name)(seed)) for name in BIT_GENERATORS}
    own |= {f"legacy {name}": np.random.RandomState(getattr(np.random, name)(seed)) for name in BIT_GENERATORS}
    own |= {"torch": torch.Generator().manual_seed(seed), "python": random.Random(seed)}
    for name in BIT_GENERATORS:
        own[name].integers(9, dtype=np.uint32)  # half of a 64-bit word is left
        own[f"legacy {name}"].standard_normal()  # the second of a pair is left
    own["python"].gauss(0, 1)
    torch.randn(3, generator=own["torch"])
    return own


def _drawn(own: dict[str, Any]) -> list[Any]:
    """Return the next numbers of every generator, the global ones first."""
    dropout = torch.nn.functional.dropout(torch.ones(20), 0.5)
    loader = torch.utils.data.DataLoader(list(range(20)), batch_size=7, shuffle=True)
    drawn = [
        *(random.gauss(0, 1), random.random(), random.sample(range(50), 9)),
        *(np.random.standard_normal(3).tolist(), np.random.permutation(9).tolist(), np.random.rand()),
        *(torch.randperm(9).tolist(), torch.randn(5).tolist(), dropout.tolist()),
        [batch.tolist() for batch in loader],
    ]
    for generator in own.values():
        if isinstance(generator, torch.Generator):
            drawn += [torch.randn(5, generator=generator).tolist(), torch.randperm(9, generator=generator).tolist()]
        elif isinstance(generator, np.random.Generator):
            drawn += [generator.integers(99, size=3, dtype=np.uint32).tolist(), generator.normal(size=3).tolist()]
        elif isinstance(generator, np.random.RandomState):
            drawn += [generator.standard_normal(3).tolist(), generator.randint(99, size=3).tolist()]
        else:
            drawn += [generator.gauss(0, 1), generator.random()]
    return drawn


def test_restored_generators_draw_what_the_saved_ones_drew(tmp_path: Path) -> None:
    own, other = _generators(1), _generators(2)
    random.gauss(0, 1)
    np.random.standard_normal()
    prefix = ts.Saver({"rng": RNGState(own)}).save(tmp_path / "m")
    wanted = _drawn(own)
    report = ts.Saver({"rng": RNGState(other)}).restore(prefix)
    assert _drawn(other) == wanted
    assert report.unused == ()
    assert _drawn(other) != wanted


FRESH_PROCESS = """
import json, random, sys
import numpy as np, torch
import torchsaver as ts
from torchsaver.variables.rng import RNGState
data = torch.Generator()
ts.Saver({"rng": RNGState({"data": data})}).restore(sys.argv[1])
print(json.dumps([random.gauss(0, 1), np.random.standard_normal(), torch.rand(2).tolist(), data.initial_seed(),
                  torch.rand(2, generator=data).tolist()]))
"""


def test_restored_in_a_fresh_process_draws_what_the_saved_one_drew(tmp_path: Path) -> None:
    data = torch.Generator().manual_seed(5)
    random.gauss(0, 1)
    np.random.standard_normal()
    prefix = ts.Saver({"rng": RNGState({"data": data})}).save(tmp_path / "m")
    wanted = [random.gauss(0, 1), np.random.standard_normal(), torch.rand(2).tolist(), data.initial_seed()]
    wanted.append(torch.rand(2, generator=data).tolist())
    command = [sys.executable, "-c", FRESH_PROCESS, prefix]
    drawn = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert drawn.strip() == str(wanted)


def test_saving_and_restoring_draw_nothing(tmp_path: Path) -> None:
    own = _generators(1)
    before = described(RNGState(own).state_dict())
    saver = ts.Saver({"rng": RNGState(own)})
    saver.restore(saver.save(tmp_path / "m"))
    assert described(RNGState(own).state_dict()) == before


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 700), st.integers(0, 3))
def test_state_anywhere_in_the_stream_comes_back(seed: int, words: int, normals: int) -> None:
    own, other = _generators(seed), _generators(0)
    for name in BIT_GENERATORS:
        own[name].integers(9, size=words, dtype=np.uint32)
        own[f"legacy {name}"].random_sample(words)
        own[f"legacy {name}"].standard_normal(normals)
    torch.rand(words, generator=own["torch"])
    for _ in range(words):
        own["python"].random()
    state = RNGState(own).state_dict()
    RNGState(other).load_state_dict(round_trip(state))
    assert described(RNGState(other).state_dict()) == described(state)


def test_state_dict_shares_nothing_with_the_generators() -> None:
    own = _generators(1)
    state = RNGState(own).state_dict()
    kept = copy.deepcopy(state)
    _drawn(own)
    assert described(state) == described(kept)


@pytest.mark.parametrize(
    ("generators", "message"),
    [
        ([torch.Generator()], "generators is a dict of a name for each, .*, not list"),
        (torch.Generator(), "generators is a dict of a name for each, .*, not Generator"),
        ({1: torch.Generator()}, "the name 1 is a int"),
        ({"data": None}, "'data' is a NoneType; one of torch.Generator, numpy.random.Generator, .* was wanted"),
        ({"data": random.SystemRandom()}, "'data' is a SystemRandom"),
        ({"data": np.random.PCG64(1)}, "'data' is a PCG64"),
        ({"data": 3}, "'data' is a int"),
    ],
)
def test_generators_that_are_none_are_a_type_error(generators: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        RNGState(generators)


# ---- states that do not fit


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for name in parents:
            state = state[name]
        if value is KeyError:
            del state[last]
        else:
            state[last] = value(state[last]) if callable(value) else value

    return change


BAD = {
    "python/version": 2,
    "python/words": lambda words: words[:-1],
    "python/gauss_next": "1.0",
    "python/kind": "torch.Generator",
    "python": KeyError,
    "more": 1,
    "numpy/state/pos": 625,
    "numpy/state/key": lambda key: np.append(key, key),
    "numpy/has_gauss": None,
    "numpy/bit_generator": "PCG64",
    "torch": 3,
    "torch/state": lambda state: state[:-1],
    "torch/kind": KeyError,
    "cuda": 3,
    "generators": [],
    "generators/torch/state": lambda state: state * 0,
    "generators/python/words": lambda words: words.astype(np.float64) + 0.5,
    "generators/PCG64/bit_generator": "PCG64DXSM",
    "generators/PCG64/state/inc": -1,
    "generators/PCG64/state/state": 1 << 128,
    "generators/MT19937/state/pos": -1,
    "generators/MT19937/state/key": lambda key: key.astype(np.int64),
    "generators/Philox/buffer_pos": 5,
    "generators/Philox/buffer": lambda buffer: buffer[:2],
    "generators/SFC64/state/state": lambda state: state[:3],
    "generators/SFC64/has_uint32": 7.5,
    "generators/legacy SFC64/gauss": "x",
    "generators/legacy MT19937/state/pos": 1 << 40,
    "generators/legacy MT19937": KeyError,
}


@pytest.mark.parametrize("path", BAD)
def test_load_state_dict_of_a_bad_part_is_a_value_error_that_names_it_and_changes_nothing(path: str) -> None:
    state = RNGState(_generators(1)).state_dict()
    _set(path, BAD[path])(state)
    own = _generators(2)
    random.seed(2)
    before = described(RNGState(own).state_dict())
    part, *inside = path.split("/")
    with pytest.raises(ValueError, match="parts" if part == "more" else part) as raised:
        RNGState(own).load_state_dict(state)
    assert len(inside) < 2 or part != "generators" or f"generators[{inside[0]!r}]: " in str(raised.value)
    assert described(RNGState(own).state_dict()) == before


def test_load_state_dict_of_another_bit_generator_names_both() -> None:
    state = RNGState({"data": np.random.default_rng(1)}).state_dict()
    with pytest.raises(ValueError, match=r"generators\['data'\]: on PCG64 in checkpoint, and here on SFC64"):
        RNGState({"data": np.random.Generator(np.random.SFC64(1))}).load_state_dict(state)


def test_load_state_dict_of_another_kind_of_generator_names_both() -> None:
    state = RNGState({"data": random.Random(1)}).state_dict()
    with pytest.raises(ValueError, match=r"'data'\]: a random.Random in checkpoint, and here a torch.Generator"):
        RNGState({"data": torch.Generator()}).load_state_dict(state)


@pytest.mark.parametrize(("stored", "here"), [([], ["data"]), (["data"], []), (["a"], ["b"])])
def test_restore_with_generators_of_other_names_is_an_error_that_has_both(
    tmp_path: Path, stored: list[str], here: list[str]
) -> None:
    prefix = ts.Saver({"rng": RNGState({name: torch.Generator() for name in stored})}).save(tmp_path / "m")
    torch.rand(1)
    before = torch.get_rng_state()
    with pytest.raises(ts.MismatchError) as raised:
        ts.Saver({"rng": RNGState({name: torch.Generator() for name in here})}).restore(prefix)
    assert f"generators: {stored} in checkpoint, and RNGState has {here}" in str(raised.value)
    assert torch.equal(torch.get_rng_state(), before)


# ---- CUDA, which most machines that test do not have


def _devices(monkeypatch: pytest.MonkeyPatch, count: int) -> list[torch.Generator]:
    """Make it look as if there were so many CUDA devices, in use; return their generators."""
    generators = [torch.Generator().manual_seed(index) for index in range(count)]
    monkeypatch.setattr(rng, "_cuda_generators", lambda: generators)
    monkeypatch.setattr(rng, "_is_cuda_in_use", lambda: count > 0)
    return generators


@pytest.mark.parametrize(("stored", "here"), [(2, 2), (2, 1), (1, 2), (0, 2), (2, 0), (0, 0)])
def test_devices_that_both_have_get_their_states_and_a_warning_tells_of_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stored: int, here: int
) -> None:
    saved = _devices(monkeypatch, stored)
    for generator in saved:
        torch.rand(5, generator=generator)
    state = round_trip(RNGState().state_dict())
    found = _devices(monkeypatch, here)
    with caplog.at_level(logging.WARNING, "torchsaver"):
        RNGState().load_state_dict(state)
    alike = min(stored, here)
    equal = [torch.equal(a.get_state(), b.get_state()) for a, b in zip(saved, found, strict=False)]
    assert equal == [True] * alike
    said = [record.getMessage() for record in caplog.records if record.name == "torchsaver"]
    counts = f"RNGState: the checkpoint has the states of {stored} CUDA devices, and this process has {here}"
    assert said == ([] if stored == here else [f"{counts}; the random numbers from cuda:{alike} on will be others"])


def test_bad_state_of_a_device_is_a_value_error_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _devices(monkeypatch, 2)
    state = RNGState().state_dict()
    state["cuda"][1]["state"] = torch.zeros(3, dtype=torch.uint8)
    random.random()
    before = described(RNGState().state_dict())
    with pytest.raises(ValueError, match=r"cuda\[1\]: not a state of this generator"):
        RNGState().load_state_dict(state)
    assert described(RNGState().state_dict()) == before


def test_rng_state_without_cuda_in_use_does_not_initialise_it() -> None:
    was_in_use = torch.cuda.is_initialized()
    state = RNGState().state_dict()
    RNGState().load_state_dict(state)
    assert torch.cuda.is_initialized() == was_in_use
    assert len(state["cuda"]) == (torch.cuda.device_count() if was_in_use else 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_generators_through_a_checkpoint_draw_what_the_saved_ones_drew(tmp_path: Path) -> None:
    own, other = (torch.Generator("cuda").manual_seed(seed) for seed in (1, 2))
    torch.rand(5, device="cuda")
    torch.rand(5, device="cuda", generator=own)
    prefix = ts.Saver({"rng": RNGState({"data": own})}).save(tmp_path / "m")
    assert ts.load_variable(prefix, "rng.cuda.0.state").device.type == "cpu"
    wanted = [torch.rand(5, device="cuda"), torch.rand(5, device="cuda", generator=own)]
    ts.Saver({"rng": RNGState({"data": other})}).restore(prefix)
    found = [torch.rand(5, device="cuda"), torch.rand(5, device="cuda", generator=other)]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
