"""Tensors become their row-major bytes and come back, for every dtype, every kind of view and any window."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from formats.builders import ALL_DTYPES, EXPANDED, VIEWS, base_bytes, base_tensor, elements, raw
from torch._subclasses.fake_tensor import FakeTensorMode

from torchsaver.formats import staging, tensor_bytes
from torchsaver.formats.tensor_bytes import (
    byte_view,
    dtype_text,
    footprint,
    is_dense,
    row_major_bytes,
    row_major_targets,
    stored_spec,
    why_not_storable,
    why_not_writable,
)

WINDOWS = [1, 7, 16, 50, 1 << 20]  # bytes: less than an item, some items, some rows, everything
LAZY_BITS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "conj": lambda z: z.conj(),
    "conj_transposed": lambda z: z.mT.conj(),
    "imag_of_conj": lambda z: z.conj().imag,
    "imag_of_conj_transposed": lambda z: z.conj().imag.mT,
    "neg_of_conj": lambda z: torch._neg_view(z.conj()),
    "neg_stepped": lambda z: torch._neg_view(z.real)[:, ::2],
    "neg_scalar": lambda z: torch._neg_view(z.real)[1, 2],
}


def fill(target: torch.Tensor, data: bytes) -> None:
    """Write `data` into a tensor the way a file is read into it."""
    done = 0
    for buffer in row_major_targets(target):
        buffer[:] = data[done : done + len(buffer)]
        done += len(buffer)
    assert done == len(data)


def items(data: bytes, indices: list[int]) -> bytes:
    """Return the bytes of these elements of a base."""
    size = len(data) // 96
    return b"".join(data[index * size : (index + 1) * size] for index in indices)


@pytest.mark.parametrize("view", [*VIEWS, *EXPANDED])
@pytest.mark.parametrize("name", ALL_DTYPES)
def test_row_major_bytes_any_view_and_window_gives_its_elements_in_order(
    name: str, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = {**VIEWS, **EXPANDED}[view]
    data = base_bytes(ALL_DTYPES[name])
    tensor = show(base_tensor(data, ALL_DTYPES[name]))
    for window in WINDOWS:
        monkeypatch.setattr(staging, "WINDOW_BYTES", window)
        pieces = [bytes(piece) for piece in row_major_bytes(tensor)]
        assert b"".join(pieces) == items(data, elements(show))
        assert is_dense(tensor) or all(len(piece) <= max(window, tensor.element_size()) for piece in pieces)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ALL_DTYPES)
def test_row_major_targets_any_view_and_window_fills_its_elements_and_no_others(
    name: str, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = base_bytes(ALL_DTYPES[name], 1), base_bytes(ALL_DTYPES[name], 2)
    indices, size = elements(VIEWS[view]), len(old) // 96
    wanted = bytearray(old)
    for place, index in enumerate(indices):
        wanted[index * size : (index + 1) * size] = new[place * size : (place + 1) * size]
    for window in WINDOWS:
        monkeypatch.setattr(staging, "WINDOW_BYTES", window)
        base = base_tensor(old, ALL_DTYPES[name])
        fill(VIEWS[view](base), new[: len(indices) * size])
        assert bytes(byte_view(base)) == wanted


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("view", LAZY_BITS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_row_major_lazy_conj_or_neg_view_is_read_and_filled_by_its_values(
    dtype: torch.dtype, view: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "WINDOW_BYTES", window)
    source = LAZY_BITS[view](torch.randn(3, 4, dtype=dtype, generator=torch.Generator().manual_seed(1)))
    target = LAZY_BITS[view](torch.zeros(3, 4, dtype=dtype))
    assert not is_dense(source)
    data = b"".join(bytes(piece) for piece in row_major_bytes(source))
    assert data == raw(source)
    fill(target, data)
    assert target.tolist() == source.tolist()


def test_row_major_bytes_dense_tensor_is_its_own_memory() -> None:
    tensor = torch.zeros(3)
    (piece,) = row_major_bytes(tensor)
    piece[:] = raw(torch.ones(3))
    assert tensor.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (torch.zeros(2, 3), True),
        (torch.zeros(()), True),
        (torch.zeros(0, 3).T, True),
        (torch.zeros(4, 3)[1:3], True),
        (torch.zeros(1, 3).T, True),
        (torch.zeros(2, 3).T, False),
        (torch.zeros(1).expand(2), False),
        (torch.zeros(2, dtype=torch.complex64).conj(), False),
        (torch._neg_view(torch.zeros(2)), False),
        (torch.zeros(2, device="meta"), False),
    ],
)
def test_is_dense_only_for_row_major_cpu_memory(tensor: torch.Tensor, dense: bool) -> None:
    assert is_dense(tensor) is dense


@pytest.mark.parametrize("strides", [lambda t: t, lambda t: t.T], ids=["dense", "transposed"])
def test_row_major_targets_saved_for_backward_makes_backward_refuse(
    strides: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    weight = strides(torch.ones(2, 2)).detach().requires_grad_()
    loss = (weight * weight).sum()
    fill(weight, raw(torch.full((2, 2), 3.0)))
    assert weight.tolist() == [[3, 3], [3, 3]]
    assert weight.is_leaf
    assert weight.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_row_major_bytes_saved_for_backward_leaves_backward_alone() -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    loss = (weight * weight).sum()
    list(row_major_bytes(weight))
    list(row_major_bytes(weight.T))
    loss.backward()
    assert weight.grad is not None


@pytest.mark.parametrize("made_inside", [True, False])
@pytest.mark.parametrize("filled_inside", [True, False])
def test_row_major_targets_dense_tensor_in_or_out_of_inference_mode_is_filled(
    made_inside: bool, filled_inside: bool
) -> None:
    with torch.inference_mode(made_inside):
        tensor = torch.zeros(3)
    with torch.inference_mode(filled_inside):
        fill(tensor, raw(torch.ones(3)))
    assert tensor.tolist() == [1, 1, 1]


def quietly(make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Make a tensor of a kind that torch warns is experimental or on its way out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.zeros(2)


def inference(*, transposed: bool) -> torch.Tensor:
    with torch.inference_mode():
        return torch.zeros(2, 3).T if transposed else torch.zeros(2, 3)


class Wrapper(torch.Tensor):
    """As DTensor and quantized tensors are: the values are somewhere else."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        raise NotImplementedError


NOT_STORABLE: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "meta": (lambda: torch.zeros(2, device="meta"), r"meta device.*to_empty\(\)"),
    "coo": (lambda: torch.eye(2).to_sparse(), r"sparse_coo.*to_dense\(\)"),
    "csr": (lambda: torch.eye(2).to_sparse_csr(), r"sparse_csr.*to_dense\(\)"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8), "dtype qint8.*convert"),
    "complex32": (lambda: torch.zeros(2, dtype=torch.complex32), "dtype complex32.*convert"),
    "mkldnn": (lambda: torch.zeros(2, 2).to_mkldnn(), r"_mkldnn.*to_dense\(\)"),
    "lazy_parameter": (lambda: torch.nn.LazyLinear(2).weight, "lazy.*forward pass"),
    "lazy_buffer": (lambda: torch.nn.LazyBatchNorm1d().running_mean, "lazy.*forward pass"),
    "rank_65": (lambda: torch.zeros([1] * 65), "dimensions"),
    "rank_64_of_pairs": (lambda: torch.zeros([1] * 64, dtype=torch.complex128), "dimensions"),
    "fake": (fake, "FakeTensor.*plain tensor"),
    "wrapper": (lambda: torch.Tensor._make_wrapper_subclass(Wrapper, (2,)), "Wrapper.*plain tensor"),
}

if "F4" in ALL_DTYPES:  # a pair of values, which has a last dimension in the file
    NOT_STORABLE["float4_scalar"] = (lambda: torch.empty((), dtype=ALL_DTYPES["F4"]), "float4")


@pytest.mark.parametrize("kind", NOT_STORABLE)
def test_why_not_storable_tensor_without_bytes_says_why_and_what_to_do(kind: str) -> None:
    make, pattern = NOT_STORABLE[kind]
    tensor = quietly(make)
    reason = why_not_storable(tensor)
    assert reason is not None
    assert why_not_writable(tensor) == reason
    with pytest.raises(AssertionError, match=pattern):
        raise AssertionError(reason)


NOT_WRITABLE: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "expanded": (lambda: torch.zeros(1, 2).expand(3, 2), "is expanded"),
    "expanded_scalar": (lambda: torch.zeros(()).expand(2), "is expanded"),
    "sliding_window": (lambda: torch.zeros(5).as_strided((3, 3), (1, 1)), "is expanded"),
    "unfolded": (lambda: torch.zeros(8).unfold(0, 4, 2), "is expanded"),
    "inference_transposed": (lambda: inference(transposed=True), "inference_mode"),
}


@pytest.mark.parametrize("kind", NOT_WRITABLE)
def test_why_not_writable_readable_tensor_that_takes_no_values_says_why(kind: str) -> None:
    tensor = NOT_WRITABLE[kind][0]()
    assert why_not_storable(tensor) is None
    assert NOT_WRITABLE[kind][1] in str(why_not_writable(tensor))


def test_why_not_writable_inference_tensor_inside_inference_mode_is_none() -> None:
    tensor = inference(transposed=True)
    with torch.inference_mode():
        assert why_not_writable(tensor) is None
        fill(tensor, raw(torch.ones(3, 2)))
    assert tensor.tolist() == [[1, 1]] * 3


@pytest.mark.parametrize(
    "tensor",
    [
        *(view(torch.zeros(2, 3, 4, 4)) for view in VIEWS.values()),
        *(view(torch.zeros(3, 4, dtype=torch.complex128)) for view in LAZY_BITS.values()),
        torch.zeros(2, 0).expand(2, 0),
        torch.zeros(1).expand(1, 1),
        torch.zeros(20).as_strided((3, 2), (2, 1)),
        torch.zeros(20).as_strided((3, 2), (3, 2)),
        torch.nn.Parameter(torch.zeros(2)),
        inference(transposed=False),
        *(torch.zeros(2, dtype=torch.uint8).view(dtype) for dtype in ALL_DTYPES.values() if dtype.itemsize < 2),
    ],
)
def test_why_not_writable_any_tensor_of_places_of_its_own_is_none(tensor: torch.Tensor) -> None:
    assert why_not_storable(tensor) is None
    assert why_not_writable(tensor) is None


@pytest.mark.parametrize("name", tensor_bytes.TORCH_DTYPES)
def test_stored_spec_dtype_with_a_name_of_its_own_keeps_shape(name: str) -> None:
    last = 4 if name == "F4" else 2  # float4 counts values, and torch counts pairs
    assert stored_spec(torch.empty(3, 2, dtype=ALL_DTYPES[name])) == (name, (3, last))


def test_stored_spec_complex128_is_pairs_of_f64() -> None:
    assert stored_spec(torch.empty(3, dtype=torch.complex128)) == ("F64", (3, 2))
    assert stored_spec(torch.empty((), dtype=torch.complex128)) == ("F64", (2,))


def test_dtype_text_is_the_name_without_torch() -> None:
    assert dtype_text(torch.float8_e4m3fn) == "float8_e4m3fn"


# Each is of the same memory, and differs from [2, 3, 4] complex64, row-major but for the first two dimensions, in one respect.
OTHERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "itself": lambda z: z,
    "another_place": lambda z: z[1:].as_strided(z.shape, z.stride()),
    "shape": lambda z: z[:1],
    "strides": lambda z: z.as_strided(z.shape, (4, 8, 1)),
    "dtype": lambda z: z.view(torch.float64),
    "conj": torch.Tensor.conj,
    "neg": torch._neg_view,
    "type": torch.nn.Parameter,
}


def test_footprint_is_another_one_wherever_a_tensor_differs_and_in_inference_mode() -> None:
    base = torch.zeros(4, 3, 4, dtype=torch.complex64)
    tensor = base[:2].as_strided((2, 3, 4), (4, 12, 1))
    found = {name: footprint([other(tensor)]) for name, other in OTHERS.items()}
    assert None not in found.values()
    assert [name for name, places in found.items() if places == footprint([tensor])] == ["itself"]
    with torch.inference_mode():
        assert footprint([tensor]) != found["itself"]
    base.untyped_storage().resize_(base.nbytes - 1)
    assert footprint([tensor]) != found["itself"]


def test_footprint_is_the_very_one_of_before_as_long_as_nothing_has_changed() -> None:
    base = torch.zeros(4, 3, 4, dtype=torch.complex64)
    tensors = [torch.ones(3), base[:2].as_strided((2, 3, 4), (4, 12, 1))]
    before = footprint(tensors)
    assert footprint(tensors, before) is before
    for other in (tensors[:1], tensors[::-1], [*tensors, tensors[0]], [tensors[0], tensors[1].conj()], []):
        found = footprint(other, before)
        assert found != before
        assert found == footprint(other)
    with torch.inference_mode():
        assert footprint(tensors, before) != before


def test_footprint_that_has_not_changed_leaves_the_garbage_collector_nothing_to_look_at() -> None:
    tensors = [torch.ones(3) for _ in range(1000)]
    before = footprint(tensors)
    gc.collect()
    gc.disable()
    try:
        counted = gc.get_count()[0]
        assert footprint(tensors, before) is before
        assert gc.get_count()[0] - counted < 100
    finally:
        gc.enable()


def test_footprint_of_an_empty_tensor_on_another_device_is_another_one() -> None:
    assert footprint([torch.empty(0)]) != footprint([torch.empty(0, device="meta")])  # both at the address 0


@pytest.mark.parametrize(
    "tensor", [torch.eye(3).to_sparse(), torch.nn.UninitializedParameter()], ids=["sparse", "lazy"]
)
def test_footprint_with_a_tensor_that_has_no_plain_memory_is_none(tensor: torch.Tensor) -> None:
    assert footprint([torch.ones(2), tensor]) is None


def test_why_not_storable_storage_that_ends_before_the_last_element_of_a_strided_tensor_says_so() -> None:
    base = torch.zeros(10)
    stepped = base[::3]
    assert why_not_storable(stepped) is None
    base.untyped_storage().resize_(9 * base.element_size())
    assert "has no memory any more" in str(why_not_storable(stepped))


def test_footprint_of_the_same_memory_with_a_shorter_storage_is_another_one() -> None:
    base = np.zeros(10, np.float32)
    long, short = (torch.from_numpy(part)[:5] for part in (base, base[:5]))
    assert long.data_ptr() == short.data_ptr()
    assert footprint([long]) != footprint([short])


def test_footprint_on_another_card_is_another_one() -> None:
    class OnCard(torch.Tensor):
        is_cpu = False
        device = torch.device("cuda:0")

    tensor = torch.zeros(2).as_subclass(OnCard)
    before = footprint([tensor])
    assert before is not None
    OnCard.device = torch.device("cuda:1")
    assert footprint([tensor], before) != before
