"""Copies of values in host memory: bit for bit, in memory that is used again, of any tensor that can be stored."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from roundtrip import MB, SORTS, differing, random
from torch.multiprocessing.reductions import StorageWeakRef

from torchsaver.formats.tensor_bytes import DTYPE_NAMES, footprint, is_dense
from torchsaver.saving import host_copies
from torchsaver.saving.host_copies import HostCopies

DTYPES = sorted([*DTYPE_NAMES, torch.complex128], key=str)


def every_layout(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return random bits in every way a tensor can be laid out."""
    square = random(dtype, 6, 8, seed=1)
    tensors = {
        "dense": random(dtype, 3, 4),
        "transposed": square.t(),
        "every other": square[::2, 1::3],
        "expanded": square[:1].expand(5, 8),
        "one of many": square[:, 3:4],
        "empty": random(dtype, 0, 3),
    }
    if dtype != getattr(torch, "float4_e2m1fn_x2", None):
        tensors["scalar"] = random(dtype)
    if dtype.is_complex:
        tensors |= {"conjugated": square.conj(), "imaginary, negated": square.conj().imag}
    if dtype in (torch.float32, torch.int16, torch.float64):
        tensors["negated"] = torch._neg_view(square)
    return tensors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copies_are_dense_and_the_same_bit_for_bit_of_every_dtype_and_layout(dtype: torch.dtype) -> None:
    tensors = every_layout(dtype)
    copies = HostCopies()
    for _ in range(2):
        found = copies.take(tensors, footprint(tensors.values()))
        assert differing(found, tensors) == []
        assert all(map(is_dense, found.values()))
        for tensor in tensors.values():  # the second time: other values
            torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).bitwise_not_()


@pytest.mark.parametrize("large", [1, 1 << 20, 1 << 40])
@pytest.mark.parametrize("sort", SORTS)
def test_copies_by_pieces_or_one_by_one_are_the_same(sort: str, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copies, "_LARGE_BYTES", large)
    monkeypatch.setattr(host_copies, "_PIECE_BYTES", 100_003)
    tensors = SORTS[sort]()
    assert differing(HostCopies().take(tensors, footprint(tensors.values())), tensors) == []


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    strides=st.lists(st.integers(0, 9), min_size=4, max_size=4),
    offset=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.bool, torch.complex128, torch.bfloat16]),
)
def test_copies_of_any_strides_are_what_a_clone_is(
    shape: list[int], strides: list[int], offset: int, dtype: torch.dtype
) -> None:
    tensor = random(dtype, 200).as_strided(shape, strides[: len(shape)], offset)
    assert differing(HostCopies().take({"x": tensor}, footprint([tensor])), {"x": tensor}) == []


@pytest.mark.parametrize("gives_places", [True, False])
def test_memory_is_used_again_for_other_values_and_other_tensors_of_the_same_kinds(gives_places: bool) -> None:
    def take(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return copies.take(tensors, footprint(tensors.values()) if gives_places else None)

    copies = HostCopies()
    tensors = SORTS["mixed"]()
    first = {key: tensor.data_ptr() for key, tensor in take(tensors).items()}
    generation = copies.generation
    tensors["large"].zero_()
    for others in (tensors, SORTS["mixed"](seed=1), tensors):
        found = take(others)
        assert differing(found, others) == []
        assert {key: tensor.data_ptr() for key, tensor in found.items()} == first
    assert copies.generation == generation


CHANGES: dict[str, Any] = {
    "another dtype": lambda tensors: tensors | {"large": tensors["large"].view(torch.int32)},
    "another shape": lambda tensors: tensors | {"large": tensors["large"].reshape(2, -1)},
    "one more": lambda tensors: tensors | {"new": torch.ones(3)},
    "one less": lambda tensors: {key: tensor for key, tensor in tensors.items() if key != "large"},
    "another key": lambda tensors: {key.upper(): tensor for key, tensor in tensors.items()},
}


@pytest.mark.parametrize("change", CHANGES)
def test_memory_is_made_anew_for_other_kinds_and_the_old_one_is_given_back_first(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, tensors = HostCopies(), SORTS["mixed"]()
    block = StorageWeakRef(copies.take(tensors)["large"].untyped_storage())
    generation = copies.generation
    allocated = host_copies._allocated

    def noting(wanted: Any) -> Any:
        assert block.expired()
        return allocated(wanted)

    monkeypatch.setattr(host_copies, "_allocated", noting)
    changed = CHANGES[change](tensors)
    assert differing(copies.take(changed, footprint(changed.values())), changed) == []
    assert copies.generation != generation


def test_keys_that_change_places_get_their_own_values() -> None:
    one, two = torch.zeros(4), torch.ones(4)
    copies, places = HostCopies(), footprint([one, two])
    copies.take({"a": one, "b": two}, places)
    assert differing(copies.take({"b": one, "a": two}, places), {"b": one, "a": two}) == []


def test_memory_is_given_back_by_free_and_made_anew_afterwards() -> None:
    copies, tensors = HostCopies(), SORTS["dense"]()
    block = StorageWeakRef(copies.take(tensors, footprint(tensors.values()))["a"].untyped_storage())
    generation = copies.generation
    copies.free()
    assert block.expired()
    assert differing(copies.take(tensors, footprint(tensors.values())), tensors) == []
    assert copies.generation != generation


def test_copies_keep_no_tensor_alive() -> None:
    copies, tensors = HostCopies(), {"x": torch.ones(4), "large": torch.ones(MB), "turned": torch.ones(3, 4).t()}
    copies.take(tensors, footprint(tensors.values()))
    weak = [weakref.ref(tensor) for tensor in tensors.values()]
    memory = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors.values()]
    del tensors
    gc.collect()
    assert [ref() for ref in weak] == [None] * 3
    assert all(ref.expired() for ref in memory)


def test_copies_of_tensors_that_ask_for_gradients_have_none_and_leave_no_graph() -> None:
    tensor = torch.nn.Parameter(torch.randn(5, 4))
    turned = tensor.t() * 1
    found = HostCopies().take({"p": tensor, "r": turned.t()})
    assert differing(found, {"p": tensor, "r": turned.t()}) == []
    assert not any(each.requires_grad for each in found.values())
    assert turned._version == 0


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_copies_taken_in_inference_mode_and_out_of_it_share_the_memory(order: tuple[bool, bool]) -> None:
    copies, tensors = HostCopies(), {"w": torch.ones(3, 4), "c": torch.ones(3, dtype=torch.complex64).conj()}
    for mode in (*order, *order):
        with torch.inference_mode(mode):
            assert differing(copies.take(tensors, footprint(tensors.values())), tensors) == []


def test_copies_of_nothing_are_nothing() -> None:
    copies = HostCopies()
    assert copies.take({}, footprint([])) == {}
    assert differing(copies.take({"x": torch.ones(2)}), {"x": torch.ones(2)}) == []
    assert copies.take({}, footprint([])) == {}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda copies: pickle.loads(pickle.dumps(copies))])
def test_copied_or_pickled_one_has_memory_of_its_own(copied: Any) -> None:
    copies, tensors = HostCopies(), SORTS["dense"]()
    own = copies.take(tensors)
    other = copied(copies).take(tensors)
    assert own["a"].data_ptr() != other["a"].data_ptr()


def test_copies_after_an_error_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    copies, tensors = HostCopies(), SORTS["mixed"]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_copies, "copy_values", lambda *_: pytest.fail("no more memory"))
        with pytest.raises(pytest.fail.Exception):
            copies.take(tensors, footprint(tensors.values()))
    assert differing(copies.take(tensors, footprint(tensors.values())), tensors) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.parametrize("huge", [1, 1 << 40])
def test_memory_is_not_shared_with_a_forked_child(huge: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copies, "_HUGE_BYTES", huge)
    copies = HostCopies()
    found = copies.take({"x": torch.ones(100_000)})["x"]
    pid = os.fork()
    if pid == 0:
        found[:3] = 2
        os._exit(0)
    os.waitpid(pid, 0)
    assert found.unique().tolist() == [1]


def test_memory_is_had_where_the_system_has_no_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copies, "_HUGE_BYTES", 1)
    monkeypatch.setattr(host_copies.mmap, "MADV_HUGEPAGE", 12345)  # an error of the system's
    tensors = SORTS["mixed"]()
    assert differing(HostCopies().take(tensors), tensors) == []
    monkeypatch.delattr(host_copies.mmap, "MADV_HUGEPAGE")
    assert differing(HostCopies().take(tensors), tensors) == []


# ---- devices


def on_cuda(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors on a CUDA device, some of them laid out otherwise."""
    moved = {key: tensor.cuda() for key, tensor in tensors.items()}
    moved["turned"] = moved["large"].reshape(512, -1).t()
    return moved


def on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors' values as they are now."""
    return {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_from_a_device_are_pinned_and_used_again() -> None:
    copies, tensors = HostCopies(), on_cuda(SORTS["mixed"]()) | {"on the cpu": torch.arange(5)}
    found = copies.take(tensors, footprint(tensors.values()))
    assert differing(found, on_cpu(tensors)) == []
    assert {key for key, tensor in found.items() if tensor.numel() and not tensor.is_pinned()} == {"on the cpu"}
    first = {key: tensor.data_ptr() for key, tensor in found.items()}
    for tensor in tensors.values():
        tensor.zero_()
    found = copies.take(tensors, footprint(tensors.values()))
    assert differing(found, on_cpu(tensors)) == []
    assert {key: tensor.data_ptr() for key, tensor in found.items()} == first


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("own_stream", [False, True])
def test_copies_from_a_device_are_the_values_of_the_current_stream_whatever_comes_next(own_stream: bool) -> None:
    stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
    tensor = torch.zeros(64 * MB, device="cuda")
    torch.cuda.synchronize()
    copies = HostCopies()
    with torch.cuda.stream(stream):
        for turn in range(1, 6):
            for _ in range(50):
                tensor.add_(1)  # long under way when the copy is asked for
            found = copies.take({"x": tensor}, footprint([tensor]))
            tensor.fill_(-1)
            assert found["x"].unique().tolist() == [50 if turn == 1 else 49]
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_of_a_module_that_moves_to_a_device_are_in_other_memory() -> None:
    module, copies = torch.nn.Linear(8, 8), HostCopies()
    for device in ("cpu", "cuda", "cpu"):
        tensors = {key: tensor.detach() for key, tensor in module.to(device).named_parameters()}
        found = copies.take(tensors, footprint(tensors.values()))
        assert differing(found, on_cpu(tensors)) == []
        assert all(tensor.is_pinned() == (device == "cuda") for tensor in found.values())
