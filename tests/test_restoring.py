"""A restore that was worked out before does what a new one does, by any way of reading, and all of it or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from damage import flip
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from roundtrip import (
    CHANGES,
    MB,
    SORTS,
    Held,
    Model,
    copies,
    differing,
    random,
    require_round_trip,
    stored,
)
from safetensors.torch import save_file
from torch import nn

import torchsaver as ts
from torchsaver.formats import bulk_read
from torchsaver.formats.regular_file import RegularFile
from torchsaver.restoring.shared_memory import overlapping
from torchsaver.variables.restore_plan import RestorePlan
from torchsaver.variables.var_list import Slots


@pytest.fixture(autouse=True)
def _syncing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # takes most of the time, and changes no byte


# ---- ways of reading


def at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bulk_read, "_FEW_BYTES", 1 << 40)


def in_threads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bulk_read, "_FEW_BYTES", 0)


def no_preadv(patch: pytest.MonkeyPatch) -> None:
    in_threads(patch)
    patch.delattr(os, "preadv", raising=False)


def short_reads(patch: pytest.MonkeyPatch) -> None:
    in_threads(patch)
    preadv = os.preadv
    patch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:4096]], at))


WAYS: list[Any] = [at_once, in_threads, no_preadv, short_reads]


@pytest.mark.parametrize("sort", ["mixed", "many"])
@pytest.mark.parametrize("way", WAYS)
def test_restore_on_any_system_comes_back_bit_for_bit(
    way: Callable[[pytest.MonkeyPatch], None], sort: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    require_round_trip(tmp_path, SORTS[sort]())


# ---- worked out before


@dataclasses.dataclass
class Outcome:
    """What a restore did: its report or its error, and the values after it."""

    report: dict[str, Any]
    error: str
    values: dict[str, torch.Tensor]


def outcome(saver: ts.Saver, model: Model, prefix: str, *, verify: bool, strict: bool = True) -> Outcome:
    """Fill the model with zeros, restore, and return what that did."""
    for tensor in model.tensors().values():
        tensor.zero_()
    report, error = {}, ""
    try:
        report = dataclasses.asdict(saver.restore(prefix, verify=verify, strict=strict))
    except ts.TorchSaverError as caught:
        error = f"{type(caught).__name__}: {caught}"
    report.pop("seconds", None)
    return Outcome(report, error, copies(model.tensors()))


def require_same(one: Outcome, two: Outcome) -> None:
    assert (one.report, one.error) == (two.report, two.error)
    assert differing(one.values, two.values) == []


@pytest.mark.parametrize(("max_shard_bytes", "verify"), [(None, True), (64, False)])
@pytest.mark.parametrize("change", CHANGES)
def test_restore_after_a_change_does_what_a_new_saver_does_and_writes_no_memory_of_before(
    change: str, max_shard_bytes: int | None, verify: bool, tmp_path: Path
) -> None:
    model = Model()
    saver = ts.Saver(model, max_shard_bytes=max_shard_bytes)
    first = saver.save(tmp_path / "first")
    saver.restore(first, verify=verify)
    old = model.memory()
    CHANGES[change](model)
    model.fill(seed=1)
    expected = copies(model.tensors())
    second = ts.Saver(model, max_shard_bytes=max_shard_bytes).save(tmp_path / "second")
    now = {memory.data_ptr() for memory in model.memory()}
    old = [memory.fill_(0xEE) for memory in old if memory.data_ptr() not in now]
    for prefix in (first, second, second, first):
        found = outcome(saver, model, prefix, verify=verify)
        require_same(found, outcome(ts.Saver(model), model, prefix, verify=verify))
        assert prefix == first or (found.error, differing(found.values, expected)) == ("", [])
    assert all(memory.eq(0xEE).all() for memory in old)


def test_restore_of_unchanged_tensors_uses_what_was_worked_out_again(tmp_path: Path) -> None:
    model = Model()
    saver = ts.Saver(model)
    one = saver.save(tmp_path / "one")
    first = copies(model.tensors())
    saver.restore(one)
    before = saver._prepared_restore
    assert before.places is not None
    model.fill(seed=1)
    second = copies(model.tensors())
    two = saver.save(tmp_path / "two")
    for prefix, wanted in ((one, first), (two, second), (one, first)):
        for verify in (True, False):
            model.fill(seed=2)
            saver.restore(prefix, verify=verify)
            assert saver._prepared_restore is before
            assert differing(model.tensors(), wanted) == []
    model.double()
    third = saver.save(tmp_path / "three")
    saver.restore(third)
    assert saver._prepared_restore is not before


def test_restore_of_checkpoints_of_other_layouts_in_turn_does_what_a_new_saver_does(tmp_path: Path) -> None:
    model, other = Model(), Model(seed=5)
    values = model.tensors()
    prefixes = [
        ts.Saver(model).save(tmp_path / "same"),
        ts.Saver(other).save(tmp_path / "other"),
        ts.Saver(model, max_shard_bytes=64).save(tmp_path / "sharded"),
        ts.Saver({**values, "added": torch.ones(3)}).save(tmp_path / "more"),
        ts.Saver({key: value for key, value in values.items() if key != "base"}).save(tmp_path / "less"),
        ts.Saver({**values, "square": torch.ones(3, 2)}).save(tmp_path / "shape"),
        ts.Saver({**values, "square": torch.ones(2, 8)}).save(tmp_path / "reshaped"),
        ts.Saver({**values, "square": torch.ones(4, 4).double()}).save(tmp_path / "dtype"),
        str(tmp_path / "theirs.safetensors"),
        str(tmp_path / "absent"),
    ]
    save_file({key: value.contiguous() for key, value in values.items()}, tmp_path / "theirs.safetensors")
    for reshape in (True, False):
        saver = ts.Saver(model, reshape=reshape)
        for number in range(6 * len(prefixes)):
            prefix = prefixes[number * 7 % len(prefixes)]
            options = {"verify": number % 3 > 0, "strict": number % 4 > 0}
            found = outcome(saver, model, prefix, **options)
            require_same(found, outcome(ts.Saver(model, reshape=reshape), model, prefix, **options))


def test_restore_with_other_options_in_turn_does_as_each_says(tmp_path: Path) -> None:
    prefix = ts.Saver({"a": torch.ones(4)}).save(tmp_path / "m")
    flip(tmp_path / "m.safetensors", -1)
    values = {"a": torch.zeros(4), "b": torch.zeros(2)}
    saver = ts.Saver(values)
    for _ in range(2):
        assert saver.restore(prefix, strict=False, verify=False).missing == ("b",)
        values["a"].zero_()
        with pytest.raises(ts.MismatchError) as caught:
            saver.restore(prefix, strict=True, verify=False)
        assert caught.value.missing == ("b",)
        with pytest.raises(ts.CorruptCheckpointError, match="checksum"):
            saver.restore(prefix, strict=False, verify=True)
        assert not values["a"].any()


def test_restore_of_a_checkpoint_whose_shape_changed_is_a_mismatch_and_changes_nothing(tmp_path: Path) -> None:
    values = {"a": torch.ones(4), "b": torch.ones(2, 3)}
    saver = ts.Saver(values)
    prefix = saver.save(tmp_path / "m")
    saver.restore(prefix)
    ts.Saver({"a": torch.zeros(4), "b": torch.zeros(3, 2)}).save(tmp_path / "m")
    for _ in range(2):
        with pytest.raises(ts.MismatchError) as caught:
            saver.restore(prefix)
        assert caught.value.shapes == (("b", [3, 2], [2, 3]),)
        assert all(value.eq(1).all() for value in values.values())


def test_restore_of_a_checkpoint_with_other_objects_reports_its_own_unused_keys(tmp_path: Path) -> None:
    values = {"w": torch.ones(3)}
    with_object = ts.Saver({**values, "schedule": Held({"n": 1})}).save(tmp_path / "with")
    without = ts.Saver(values).save(tmp_path / "without")
    saver = ts.Saver(values)
    for _ in range(2):
        assert saver.restore(with_object).unused == ("schedule",)
        assert saver.restore(without).unused == ()


def tied_model(*, is_tied: bool) -> nn.Module:
    model = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in "ab"})
    if is_tied:
        model["b"].weight = model["a"].weight
    return model


def test_restore_of_a_tied_value_into_two_tensors_beside_an_object_is_right(tmp_path: Path) -> None:
    tied, untied = tied_model(is_tied=True), tied_model(is_tied=False)
    prefix = ts.Saver({"model": tied, "held": Held({"t": torch.arange(5.0)})}).save(tmp_path / "m")
    held = Held({"t": torch.zeros(5)})
    ts.Saver({"model": untied, "held": held}).restore(prefix)
    assert all(torch.equal(untied[name].weight, tied["a"].weight) for name in "ab")
    assert held.state["t"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("way", [at_once, in_threads])
def test_restore_of_a_tied_value_into_two_tensors_fills_both(
    way: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    tied, untied = tied_model(is_tied=True), tied_model(is_tied=False)
    prefix = ts.Saver(tied).save(tmp_path / "m")
    saver = ts.Saver(untied)
    for verify in (True, False):
        nn.init.zeros_(untied["a"].weight)
        nn.init.zeros_(untied["b"].weight)
        saver.restore(prefix, verify=verify)
        assert all(torch.equal(untied[name].weight, tied["a"].weight) for name in "ab")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_restore_into_a_nested_tensor_is_a_mismatch(tmp_path: Path) -> None:
    prefix = ts.Saver({"x": torch.ones(5)}).save(tmp_path / "m")
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(ts.MismatchError, match="nested"):
        ts.Saver({"x": nested}).restore(prefix)


def test_restore_makes_a_graph_that_used_the_old_values_refuse_each_time(tmp_path: Path) -> None:
    weight = torch.ones(3, requires_grad=True)
    saver = ts.Saver({"w": weight})
    prefix = saver.save(tmp_path / "m")
    for _ in range(3):
        loss = (weight * weight).sum()
        saver.restore(prefix)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# ---- all or nothing

BIG = {f"{name}": random(torch.float32, MB // 2 + 3, seed=ord(name)) for name in "abcd"}  # 2 MiB each
TARGETS: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "dense": lambda: {key: torch.full_like(value, 7) for key, value in BIG.items()},
    "two of them stepped": lambda: {
        key: torch.full((len(value), 2), 7.0)[:, 1] if key in "bd" else torch.full_like(value, 7)
        for key, value in BIG.items()
    },
}


@pytest.mark.parametrize("max_shard_bytes", [None, 4 * MB])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("way", [at_once, in_threads])
def test_restore_with_a_flipped_bit_in_the_last_tensor_changes_nothing(
    way: Callable[[pytest.MonkeyPatch], None],
    targets: str,
    max_shard_bytes: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefix = ts.Saver(BIG, max_shard_bytes=max_shard_bytes).save(tmp_path / "m")
    values = TARGETS[targets]()
    prepared = ts.Saver(values)
    way(monkeypatch)
    prepared.restore(prefix)
    assert differing(values, BIG) == []
    for value in values.values():
        value.fill_(7)
    last = max(tmp_path.glob("*.safetensors"))
    flip(last, -1)
    for saver in (prepared, ts.Saver(values)):
        with pytest.raises(ts.CorruptCheckpointError, match="'d' has the checksum") as caught:
            saver.restore(prefix)
        assert caught.value.path == str(last)
        assert all(value.eq(7).all() for value in values.values())
    prepared.restore(prefix, verify=False)
    assert differing(values, BIG) == ["d"]


@pytest.mark.parametrize("way", [at_once, in_threads])
def test_restore_of_a_file_that_is_cut_while_values_are_filled_in_says_that_some_may_be_new(
    way: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = ts.Saver(BIG).save(tmp_path / "m")
    values = TARGETS["dense"]()
    way(monkeypatch)
    read_chunks = bulk_read.read_chunks

    def cutting(file: RegularFile, *arguments: Any, fill: bool = False, **more: Any) -> list[list[int]]:
        if fill:
            os.truncate(file.path, 3 * MB)
        return read_chunks(file, *arguments, fill=fill, **more)

    monkeypatch.setattr("torchsaver.formats.tensor_file.read_chunks", cutting)
    with pytest.raises(ts.CorruptCheckpointError, match="some tensors may have their new values by now"):
        ts.Saver(values).restore(prefix)


# ---- in any order


# Of these the last ends torch itself where shared memory is resized.
ONLY_ONCE = {"buffer added", "buffer removed", "renamed", "shared with other processes"}


class PreparedAgainstNew(RuleBasedStateMachine):
    """One saver through all that happens to its model, beside a new saver each time."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "fsync", lambda _: None)
        self.model = Model()
        self.saver = ts.Saver(self.model, max_to_keep=0)
        self.prefixes: list[str] = []
        self.seed = 0

    def teardown(self) -> None:
        self.patch.undo()
        self.directory.cleanup()

    @rule(name=st.sampled_from(sorted(CHANGES.keys() - ONLY_ONCE)))
    def change(self, name: str) -> None:
        with contextlib.suppress(RuntimeError, TypeError):  # after another change this one has no meaning
            CHANGES[name](self.model)
        self.seed += 1
        self.model.fill(self.seed)

    @rule(is_sharded=st.booleans())
    def save(self, *, is_sharded: bool) -> None:
        prefix = f"{self.directory.name}/m-{len(self.prefixes)}"
        saver = ts.Saver(self.model, max_shard_bytes=100) if is_sharded else self.saver
        saver.save(prefix, write_state=False)
        self.prefixes.append(prefix)
        assert differing(stored(prefix), self.model.tensors()) == []

    @precondition(lambda self: self.prefixes)
    @rule(data=st.data(), verify=st.booleans(), strict=st.booleans())
    def restore(self, data: Any, *, verify: bool, strict: bool) -> None:
        prefix = data.draw(st.sampled_from(self.prefixes))
        options = {"verify": verify, "strict": strict}
        found = outcome(self.saver, self.model, prefix, **options)
        require_same(found, outcome(ts.Saver(self.model), self.model, prefix, **options))


TestPreparedAgainstNew = PreparedAgainstNew.TestCase
TestPreparedAgainstNew.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)


def test_restore_of_two_checkpoints_in_turn_gives_an_object_its_state_of_each(tmp_path: Path) -> None:
    held = Held({})
    saver = ts.Saver({"w": torch.ones(2), "held": held})
    prefixes = []
    for number in (1, 2):
        held.state = {"n": number}
        prefixes.append(saver.save(tmp_path / f"m{number}"))
    for number in (1, 2, 1):
        saver.restore(prefixes[number - 1])
        assert held.state == {"n": number}


def test_restore_of_a_tensor_over_two_apart_sees_a_conflict_with_the_second(tmp_path: Path) -> None:
    prefix = ts.Saver({"all": torch.zeros(10), "one": torch.zeros(1), "two": torch.ones(1)}).save(tmp_path / "m")
    base = torch.full((10,), 7.0)
    with pytest.raises(ts.MismatchError, match="shares memory"):
        ts.Saver({"all": base, "one": base[1:2], "two": base[5:6]}).restore(prefix)


def test_overlapping_groups_by_device_what_reaches_over_the_same_bytes() -> None:
    def at(device: str, start: int, nbytes: int) -> Any:
        return SimpleNamespace(
            data_ptr=lambda: start,
            nbytes=nbytes,
            numel=lambda: nbytes,
            is_contiguous=lambda: True,
            is_cpu=device == "cpu",
            device=device,
        )

    places = [("cpu", 10, 90), ("cpu", 20, 5), ("cpu", 50, 5), ("cpu", 100, 5), ("cpu", 50, 0)]
    places += [("cuda:0", 60, 5), ("cuda:0", 62, 5), ("cuda:0", 80, 5), ("cuda:1", 63, 1)]
    tensors = {str(number): at(*place) for number, place in enumerate(places)}
    found = overlapping(Slots(tensors), RestorePlan(dict.fromkeys(tensors, "k")))
    assert found == [[("0", 0), ("1", 0), ("2", 0)], [("5", 0), ("6", 0)]]


def test_restore_after_another_tie_reports_the_new_alias(tmp_path: Path) -> None:
    model = tied_model(is_tied=True)
    saver = ts.Saver(model)
    prefix = saver.save(tmp_path / "m")
    assert list(saver.restore(prefix).aliases) == ["b.weight"]
    model["c"] = model["a"]
    assert list(saver.restore(prefix).aliases) == ["b.weight", "c.weight"]


@pytest.mark.parametrize("key", ["A", "z"])  # in the file before and after what is read twice
def test_restore_of_a_tied_value_into_two_tensors_beside_an_empty_one_is_right(key: str, tmp_path: Path) -> None:
    tied, untied = tied_model(is_tied=True), tied_model(is_tied=False)
    prefix = ts.Saver({"model": tied, key: Held({"t": torch.empty(0)})}).save(tmp_path / "m")
    ts.Saver({"model": untied, key: Held({"t": torch.empty(0)})}).restore(prefix)
    assert all(torch.equal(untied[name].weight, tied["a"].weight) for name in "ab")


def test_restore_reports_the_bytes_of_objects_too_and_keeps_no_value_of_the_checkpoint(tmp_path: Path) -> None:
    saver = ts.Saver({"w": torch.ones(2), "held": Held({"t": torch.ones(5)})})
    assert saver.restore(saver.save(tmp_path / "m")).bytes == 28
    assert saver._prepared_restore.plan.values == {}
