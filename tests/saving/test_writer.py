"""A save that was worked out before is right again, whatever has happened to the tensors since, and keeps none of them."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from roundtrip import CHANGES, MB, SORTS, Model, differing, many, require_round_trip, stored
from safetensors.torch import load_file
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import torchsaver as ts
from torchsaver.formats.regular_file import MOST_BUFFERS
from torchsaver.saving.writer import PreparedSave


@pytest.fixture(autouse=True)
def _syncing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # takes most of the time, and changes no byte


def saved(saver: ts.Saver, path: Path) -> dict[str, torch.Tensor]:
    """Save, and return what is there now."""
    prefix = saver.save(path, write_state=False)
    assert prefix is not None
    return stored(prefix)


@pytest.mark.parametrize("sort", SORTS)
def test_save_comes_back_bit_for_bit_by_every_reader(sort: str, tmp_path: Path) -> None:
    require_round_trip(tmp_path, SORTS[sort]())


@pytest.mark.parametrize("max_shard_bytes", [None, 64])
@pytest.mark.parametrize("change", CHANGES)
def test_save_after_a_change_has_the_new_values_and_is_the_file_a_new_saver_writes(
    change: str, max_shard_bytes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    model = Model()
    saver = ts.Saver(model, max_shard_bytes=max_shard_bytes)
    assert differing(saved(saver, tmp_path / "m"), model.tensors()) == []
    old = model.memory()
    CHANGES[change](model)
    model.fill(seed=1)
    now = {memory.data_ptr() for memory in model.memory()}
    for memory in old:
        if memory.data_ptr() not in now:
            memory.fill_(0xEE)  # what nobody must read any more
    for name in ("one", "two"):
        assert differing(saved(saver, tmp_path / name / "m"), model.tensors()) == []
        model.fill(seed=2)
    saved(saver, tmp_path / "prepared" / "m")
    saved(ts.Saver(model, max_shard_bytes=max_shard_bytes), tmp_path / "new" / "m")
    prepared, new = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("prepared", "new")
    )
    assert prepared == new


def test_save_of_unchanged_tensors_uses_the_plans_again_and_of_changed_ones_makes_new_ones(tmp_path: Path) -> None:
    model = Model()
    saver = ts.Saver(model)
    saved(saver, tmp_path / "m")
    before = saver._writer._prepared
    assert before.basis is not None
    model.fill(seed=1)
    saved(saver, tmp_path / "n")
    assert saver._writer._prepared is before
    model.half()
    saved(saver, tmp_path / "m")
    after = saver._writer._prepared
    assert after is not before
    saved(saver, tmp_path / "m")
    assert saver._writer._prepared is after


def test_save_of_a_dict_follows_its_tensors_and_not_what_a_module_has_instead(tmp_path: Path) -> None:
    module = nn.Linear(4, 4)
    weight = module.weight
    saver = ts.Saver({"w": weight, "b": module.bias})
    saved(saver, tmp_path / "m")
    module.weight = nn.Parameter(torch.full((4, 4), 7.0))
    with torch.no_grad():
        weight.fill_(3)
    assert saved(saver, tmp_path / "m")["w"].unique().tolist() == [3]
    weight.data = torch.full((2, 2), 5.0)
    assert saved(saver, tmp_path / "m")["w"].tolist() == [[5, 5], [5, 5]]


def test_save_of_an_object_whose_state_is_made_anew_each_time_has_the_new_state(tmp_path: Path) -> None:
    class Counter:
        count = 0

        def state_dict(self) -> dict[str, Any]:
            self.count += 1
            return {"count": self.count, "tensor": torch.full((3,), self.count)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

    counter, values = Counter(), {"w": torch.zeros(3)}
    saver = ts.Saver({**values, "counter": counter})
    for _ in range(4):
        values["w"].add_(1)
        found = saved(saver, tmp_path / "m")
        assert found.pop("w").tolist() == values["w"].tolist()
        assert [tensor.tolist() for tensor in found.values()] == [[counter.count] * 3]
        ts.Saver({"counter": counter}).restore(tmp_path / "m")


def test_save_of_tensors_that_cannot_be_stored_any_more_is_refused(tmp_path: Path) -> None:
    values = {"a": torch.ones(4), "b": torch.ones(4)}
    saver = ts.Saver(values)
    saved(saver, tmp_path / "m")
    values["b"].untyped_storage().resize_(0)
    with pytest.raises(ts.VarListError, match="freed"):
        saver.save(tmp_path / "m")
    assert stored(str(tmp_path / "m"))["b"].tolist() == [1, 1, 1, 1]


def test_save_of_a_storage_cut_short_at_the_same_place_is_refused(tmp_path: Path) -> None:
    tensor = torch.zeros(4096, dtype=torch.uint8)
    saver = ts.Saver({"x": tensor})
    saved(saver, tmp_path / "m")
    place = tensor.data_ptr()
    for nbytes in [8, 16] * 2000:
        tensor.untyped_storage().resize_(nbytes)
        if tensor.data_ptr() == place:
            break
    else:
        pytest.skip("this allocator does not give the place again")
    with pytest.raises(ts.VarListError, match="freed"):
        saver.save(tmp_path / "m")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_save_of_a_nested_tensor_is_a_var_list_error(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(ts.VarListError, match="nested"):
        ts.Saver({"x": nested}).save(tmp_path / "m")


# ---- what a prepared save keeps


@pytest.mark.parametrize("change", ["half", "data replaced", "assigned", "buffer replaced", "memory given anew"])
def test_prepared_save_keeps_no_memory_of_a_tensor_alive(change: str, tmp_path: Path) -> None:
    model = Model()
    saver = ts.Saver(model)
    prefix = saver.save(tmp_path / "m")
    saver.restore(prefix)
    old = {key: StorageWeakRef(tensor.untyped_storage()) for key, tensor in model.tensors().items()}
    CHANGES[change](model)
    gc.collect()
    now = {tensor.untyped_storage()._cdata for tensor in model.tensors().values()}
    gone = {key for key, weak in old.items() if weak.cdata not in now}
    assert gone
    assert [key for key in gone if not old[key].expired()] == []


def test_prepared_save_keeps_no_tensor_alive_nor_its_module(tmp_path: Path) -> None:
    model = Model()
    saver = ts.Saver(model)
    saver.restore(saver.save(tmp_path / "m"))
    old = weakref.ref(model.square)
    model.square = nn.Parameter(torch.zeros(4, 4))
    gc.collect()
    assert old() is None
    prepared, module = (saver._writer._prepared, saver._prepared_restore), weakref.ref(model)
    del saver, model
    gc.collect()
    assert module() is None
    assert prepared[0].plans


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda saver: pickle.loads(pickle.dumps(saver))])
def test_copy_of_a_saver_that_has_saved_saves_and_restores_its_own_tensors(copied: Any, tmp_path: Path) -> None:
    saver = ts.Saver(nn.Linear(4, 4))
    prefix = saver.save(tmp_path / "m")
    saver.restore(prefix)
    other = copied(saver)
    assert other._writer._prepared.basis is None
    (entry,), (own,) = saver._variables._entries, other._variables._entries
    assert own.value is not entry.value
    with torch.no_grad():
        own.value.weight.fill_(3)
        entry.value.weight.fill_(7)
    assert saved(other, tmp_path / "n")["weight"].unique().tolist() == [3]
    assert saved(saver, tmp_path / "m")["weight"].unique().tolist() == [7]
    other.restore(tmp_path / "m")
    assert own.value.weight.unique().tolist() == [7]
    saver.restore(tmp_path / "n")
    assert entry.value.weight.unique().tolist() == [3]


def test_prepared_save_that_is_empty_is_like_nothing() -> None:
    assert pickle.loads(pickle.dumps(PreparedSave((1,), [], frozenset("x")))) == PreparedSave()


# ---- many, and large


def test_save_of_twenty_thousand_tiny_tensors_beside_large_ones_comes_back(tmp_path: Path) -> None:
    numbers = torch.arange(20_000, dtype=torch.int32)
    values = {f"layer.{number}": numbers[number : number + 1].clone() for number in range(20_000)}
    tiny, large = list(values.values()), torch.randn(9 * MB // 4)
    values |= {"large": large, "odd": torch.zeros(3, dtype=torch.int8)}
    expected = large.clone()
    saver = ts.Saver(values)
    prefix = saver.save(tmp_path / "m")
    (plan,) = saver._writer._prepared.plans
    assert max(len(chunk.sizes) for chunk in plan._chunks) == MOST_BUFFERS
    found = load_file(f"{prefix}.safetensors")
    assert torch.equal(torch.cat([found.pop(f"layer.{number}") for number in range(20_000)]), numbers)
    assert differing(found, {"large": large, "odd": values["odd"]}) == []
    for verify in (True, False):
        for value in values.values():
            value.zero_()
        report = saver.restore(prefix, verify=verify)
        assert report.bytes == 80_000 + 9 * MB + 3
        assert torch.equal(torch.cat(tiny), numbers)
        assert torch.equal(large, expected)
    values["layer.19999"].fill_(5)
    assert saver.save(tmp_path / "m") == prefix
    assert ts.load_variable(prefix, "layer.19999").tolist() == [5]


@pytest.mark.parametrize("sort", SORTS)
def test_save_and_restore_leave_no_thread_and_no_descriptor(sort: str, tmp_path: Path) -> None:
    def held() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    saver = ts.Saver(SORTS[sort]())
    before = held()
    prefix = saver.save(tmp_path / "m")
    assert held() == before
    saver.restore(prefix)
    assert held() == before


def test_save_that_fails_while_checksums_are_taken_leaves_no_thread_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwritev, calls, before = os.pwritev, iter(range(1000)), threading.active_count()

    def failing(*arguments: Any) -> int:
        if next(calls) == 3:
            raise OSError(5, "Input/output error")
        return pwritev(*arguments)

    saver = ts.Saver(many())
    monkeypatch.setattr(os, "pwritev", failing)
    with pytest.raises(OSError, match="Input/output error"):
        saver.save(tmp_path / "m")
    assert os.listdir(tmp_path) == []
    assert threading.active_count() == before


def test_save_whose_checksums_cannot_be_taken_raises_that_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: object) -> list[int]:
        raise MemoryError

    before = threading.active_count()
    monkeypatch.setattr("torchsaver.formats.safetensors_writer._checksums", failing)
    with pytest.raises(MemoryError):
        ts.Saver(many()).save(tmp_path / "m")
    assert os.listdir(tmp_path) == []
    assert threading.active_count() == before


@pytest.mark.parametrize("sort", ["dense", "many"])
@pytest.mark.parametrize(("few", "pieces"), [(0, 0), (0, 1 << 20), (1 << 20, 16)])
def test_save_checksummed_before_or_alongside_or_after_its_writes_gives_the_same_file(
    sort: str, few: int, pieces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    tensors = SORTS[sort]()
    saved(ts.Saver(tensors), tmp_path / "m")
    whole = (tmp_path / "m.safetensors").read_bytes()
    monkeypatch.setattr("torchsaver.formats.safetensors_writer._MANY_CHUNKS", few)
    monkeypatch.setattr("torchsaver.formats.safetensors_writer.FEW_PIECES", pieces)
    saved(ts.Saver(tensors), tmp_path / "m")
    assert (tmp_path / "m.safetensors").read_bytes() == whole
