"""A layout gives its tensors' stored value and takes it apart again, or says what does not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from variables.tf_reference import DTYPES, any_bits, content

from torchsaver.formats.tensor_bytes import byte_view
from torchsaver.variables.mapping.joins import Concat, Join, Single, Stack, Sum
from torchsaver.variables.mapping.layouts import Layout, identity
from torchsaver.variables.mapping.transforms import conv, dense, gates

JOINS: dict[str, tuple[Join, list[tuple[int, ...]], tuple[int, ...]]] = {
    "single": (Single(), [(2, 3)], (2, 3)),
    "concat": (Concat(0), [(2, 3), (0, 3), (4, 3)], (6, 3)),
    "concat last": (Concat(-1), [(2, 3), (2, 1)], (2, 4)),
    "stack": (Stack(), [(3,), (3,)], (2, 3)),
    "sum": (Sum(), [(4,), (4,)], (4,)),
    "sum of blocks": (Sum((0.0, 1.0)), [(4,), (4,)], (4,)),
}


def _blank(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


def _restore(layout: Layout, value: torch.Tensor) -> None:
    for tensor, part in zip(layout.tensors, layout.from_stored(value), strict=True):
        assert (tensor.shape, tensor.dtype) == (part.shape, part.dtype)
        byte_view(tensor)[:] = content(part)[2]


@settings(deadline=None)
@given(name=st.sampled_from(list(JOINS)), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 9))
def test_layout_restored_and_saved_gives_the_same_bits(name: str, dtype: torch.dtype, seed: int) -> None:
    join, shapes, stored_shape = JOINS[name]
    layout = Layout(tuple(_blank(shapes, dtype)), identity, join)
    stored = any_bits(stored_shape, dtype, seed)
    _restore(layout, stored)
    assert content(layout.to_stored()) == content(stored)
    assert (layout.stored_shape(), layout.dtype) == (stored_shape, dtype)


@pytest.mark.parametrize("name", JOINS)
def test_layout_of_a_meta_value_gives_shapes_without_reading(name: str) -> None:
    join, shapes, stored_shape = JOINS[name]
    parts = Layout(tuple(_blank(shapes, torch.float8_e4m3fn)), identity, join).from_stored(
        torch.empty(stored_shape, dtype=torch.bfloat16, device="meta")
    )
    assert [(part.is_meta, tuple(part.shape), part.dtype) for part in parts] == [
        (True, shape, torch.bfloat16) for shape in shapes
    ]


def test_layout_of_a_meta_value_imports_no_more_of_torch() -> None:
    program = """
import sys, torch
from torchsaver.variables.tensorflow.modules import basic_lstm_layouts, rnn_layouts
from torchsaver.variables.mapping.transforms import dense, flatten
layouts = [dense.then(flatten(2, 2, 1))(torch.zeros(3, 4)), *rnn_layouts(torch.nn.GRU(2, 3)).values()]
layouts += basic_lstm_layouts(torch.nn.LSTM(2, 3)).values()
before = set(sys.modules)
for layout in layouts:
    layout.from_stored(torch.empty(layout.stored_shape(), device="meta"))
assert set(sys.modules) == before, set(sys.modules) - before
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])


def test_layout_of_one_tensor_is_a_view_both_ways() -> None:
    layer = torch.nn.Linear(3, 4)
    layout = dense(layer.weight)
    assert layout.to_stored().data_ptr() == layer.weight.data_ptr()
    assert (layout.to_stored().shape, layout.stored_shape()) == ((3, 4), (3, 4))
    assert not layout.to_stored().requires_grad
    stored = torch.rand(3, 4)
    assert layout.from_stored(stored)[0].data_ptr() == stored.data_ptr()


def test_layout_of_a_fused_kernel_gives_views_of_the_stored_value() -> None:
    tensors = _blank([(2, 4), (3, 4)], torch.float32)
    stored = torch.rand(4, 5)
    first, second = dense(*tensors, join=Concat(0)).from_stored(stored)
    assert torch.equal(first, stored[:, :2].t())
    assert torch.equal(second, stored[:, 2:].t())
    assert first.data_ptr() == stored.data_ptr()


def test_layout_follows_its_tensors() -> None:
    weight = torch.zeros(2, 3)
    layout = dense(weight)
    weight += 1
    assert layout.to_stored().tolist() == torch.ones(3, 2).tolist()


# ---- a sum


def test_sum_gives_the_first_the_value_and_the_second_the_offsets_of_its_blocks() -> None:
    first, second = Sum((0.0, 1.5)).split(torch.tensor([1.0, 2.0, 3.0, 4.0]), [(4,), (4,)])
    assert (first.tolist(), second.tolist()) == ([1, 2, 3, 4], [0, 0, 1.5, 1.5])


def test_sum_of_other_pairs_is_their_sum_less_the_offsets() -> None:
    pair = [torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.25])]
    assert Sum().join(pair).tolist() == [1.5, 2.25]
    assert Sum((0.0, 1.0)).join(pair).tolist() == [1.5, 1.25]


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype not in (torch.bool, torch.float8_e8m0fnu)])
def test_sum_is_taken_in_every_dtype(dtype: torch.dtype) -> None:
    pair = [torch.tensor([1.0, 2.0]).to(dtype), torch.tensor([2.0, 0.0]).to(dtype)]
    total = Sum().join(pair)
    assert (total.dtype, total.to(torch.complex128).tolist()) == (dtype, [3, 2])


def test_sum_keeps_a_negative_zero() -> None:
    layout = Layout(tuple(_blank([(1,), (1,)], torch.float32)), join=Sum())
    _restore(layout, torch.tensor([-0.0]))
    assert str(layout.to_stored().item()) == "-0.0"


# ---- what does not fit


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_layout_of_a_stored_value_of_another_shape_names_all_shapes(device: str) -> None:
    layout = dense(torch.zeros(2, 4), torch.zeros(3, 4), join=Concat(0))
    message = r"^dense: shape \[5, 4\] is stored, and \[4, 5\] was wanted for torch's \[2, 4\], \[3, 4\]$"
    with pytest.raises(ValueError, match=message):
        layout.from_stored(torch.empty(5, 4, device=device))


def test_layout_of_a_tensor_its_transform_is_not_for_says_so_when_asked() -> None:
    layout = dense(torch.zeros(4))
    for ask in (layout.stored_shape, layout.to_stored, lambda: layout.from_stored(torch.zeros(4))):
        with pytest.raises(ValueError, match=r"a dense weight has 2 dimensions, this has shape \[4\]"):
            ask()


@pytest.mark.parametrize(
    ("shapes", "join", "reason"),
    [
        ([], Concat(0), "there are no tensors"),
        ([(2,), (2,)], None, "2 tensors are one value; say how"),
        ([(2, 3), (2, 4)], Concat(0), "differ in more than the axis 0"),
        ([(2, 3), (2,)], Concat(0), "differ in more than the axis 0"),
        ([(2, 3), (3, 3)], Concat(-1), "differ in more than the axis -1"),
        ([(2,), (2,)], Concat(1), "do not all have an axis 1"),
        ([(2,), (3,)], Stack(), "differ"),
        ([(2,)], Sum(), "are not two of one shape"),
        ([(2,), (3,)], Sum(), "are not two of one shape"),
        ([(2,), (2,), (2,)], Sum(), "are not two of one shape"),
        ([(3,), (3,)], Sum((0.0, 1.0)), "not 2 equal blocks"),
        ([(), ()], Sum((0.0, 1.0)), "not 2 equal blocks"),
    ],
)
def test_layout_of_tensors_that_cannot_be_joined_is_refused_at_once(shapes: Any, join: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^identity: .*{reason}"):
        identity(*_blank(shapes, torch.float32), join=join)


def test_layout_of_tensors_of_two_dtypes_or_of_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"dtypes \['torch.float16', 'torch.float32'\]"):
        dense(torch.zeros(2, 2), torch.zeros(2, 2).half(), join=Concat(0))
    wrong: Any = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="dense: a tensor was wanted, not a Linear"):
        dense(wrong)


def test_layout_of_a_lazy_parameter_waits_for_its_shape() -> None:
    layer = torch.nn.LazyConv2d(4, 3)
    layout = conv(layer.weight)
    assert repr(layout) == "Layout(conv: no shape yet)"
    layer(torch.zeros(1, 2, 5, 5))
    assert repr(layout) == "Layout(conv: [4, 2, 3, 3])"
    assert layout.stored_shape() == (3, 3, 2, 4)
    query, key = torch.nn.LazyLinear(2), torch.nn.LazyLinear(3)
    fused = dense(query.weight, key.weight, join=Concat(0))
    query(torch.zeros(1, 4)), key(torch.zeros(1, 4))
    assert fused.stored_shape() == (4, 5)


def test_layout_is_equal_to_itself_only_and_can_be_a_key() -> None:
    weight = torch.zeros(2, 2)
    one, other = dense(weight), dense(weight)
    assert one != other
    assert len({one, other, one}) == 2
    assert repr(gates(1, 0)(weight, weight, join=Stack())) == "Layout(gates(1, 0): [2, 2], [2, 2])"
