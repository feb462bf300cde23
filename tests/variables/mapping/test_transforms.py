"""Transforms lose no bit, work without values, refuse what they are not for, and mean what TensorFlow means."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from variables import tf_reference as tf
from variables.tf_reference import DTYPES, any_bits, content, load, numbers, to_channels_first, to_channels_last

from torchsaver.variables.mapping.joins import Concat
from torchsaver.variables.mapping.layouts import Transform, identity
from torchsaver.variables.mapping.transforms import (
    TRANSFORMS,
    conv,
    conv_transpose,
    dense,
    depthwise,
    flatten,
    gates,
    heads,
    output_heads,
    parse_transform,
    pointwise,
)

sizes = st.integers(0, 4)
counts = st.integers(1, 3)
kernels = st.lists(sizes, min_size=3, max_size=5).map(tuple)


@st.composite
def cases(draw: Any) -> tuple[Transform, tuple[int, ...]]:  # noqa: PLR0911 -- a table of transforms
    """Draw a transform and a stored shape it is for."""
    name = draw(st.sampled_from([*TRANSFORMS, "composed"]))
    a, b, m = draw(sizes), draw(sizes), draw(counts)
    if name in {"identity", "dense"}:
        return parse_transform(name), (a, b)
    if name in {"conv", "conv_transpose"}:
        return parse_transform(name), draw(kernels)
    if name == "depthwise":
        return depthwise(m), (*draw(st.lists(sizes, min_size=1, max_size=2)), a, m)
    if name == "pointwise":
        return pointwise(m), ((1,) * m + (a, b))
    if name in {"gates", "composed"}:
        order = draw(st.permutations(range(m)))
        lead = draw(st.lists(sizes, max_size=2)) if name == "gates" else [b]
        transform = gates(*order) if name == "gates" else gates(*order).then(dense)
        return transform, (*lead, m * a)
    if name == "flatten":
        h, w, c = draw(counts), draw(counts), draw(counts)
        return flatten(h, w, c), (*draw(st.lists(sizes, max_size=1)), h * w * c)
    if name == "heads":
        return heads(m), (*draw(st.lists(sizes, max_size=1)), m, a)
    assert name == "output_heads"
    return output_heads(m), (m, a, *draw(st.lists(sizes, max_size=1)))


# ---- exact, and without values


@settings(deadline=None)
@given(case=cases(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 9))
def test_transform_there_and_back_gives_the_same_bits_both_ways(case: Any, dtype: torch.dtype, seed: int) -> None:
    transform, shape = case
    stored = any_bits(shape, dtype, seed)
    there = transform.to_torch(stored)
    assert content(transform.to_stored(there)) == content(stored)
    other = any_bits(tuple(there.shape), dtype, seed + 1)
    assert content(transform.to_torch(transform.to_stored(other))) == content(other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transform", [gates(2, 0, 1), dense.then(flatten(2, 2, 3)), flatten(3, 2, 2)])
def test_transform_that_copies_keeps_the_bits_of_every_dtype(transform: Transform, dtype: torch.dtype) -> None:
    stored = any_bits((12, 12), dtype)
    assert content(transform.to_stored(transform.to_torch(stored))) == content(stored)


@settings(deadline=None)
@given(case=cases(), dtype=st.sampled_from(DTYPES))
def test_transform_of_a_meta_tensor_gives_the_shape_without_values(case: Any, dtype: torch.dtype) -> None:
    transform, shape = case
    real, meta = any_bits(shape, dtype), torch.empty(shape, dtype=dtype, device="meta")
    there = transform.to_torch(meta)
    assert (there.is_meta, there.shape, there.dtype) == (True, transform.to_torch(real).shape, dtype)
    back = transform.to_stored(there)
    assert (back.is_meta, tuple(back.shape), back.dtype) == (True, shape, dtype)


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (identity, (2, 3)),
        (dense, (2, 3)),
        (conv, (2, 3, 4, 5)),
        (conv_transpose, (2, 3, 4, 5)),
        (depthwise(2), (3, 3, 4, 2)),
        (pointwise(2), (1, 1, 4, 5)),
        (heads(2), (4, 2, 3)),
        (output_heads(2).then(dense), (2, 3, 4)),
    ],
)
def test_transform_that_needs_no_copy_gives_a_view_both_ways(transform: Transform, shape: tuple[int, ...]) -> None:
    stored = torch.rand(shape)
    there = transform.to_torch(stored)
    parameter = torch.nn.Parameter(there.contiguous())
    back = transform.to_stored(parameter)
    assert there.data_ptr() == stored.data_ptr()
    assert back.data_ptr() == parameter.data_ptr()
    assert not back.requires_grad


def test_transform_of_a_value_that_was_conjugated_gives_the_values_as_seen() -> None:
    value = torch.tensor([[1 + 2j, 3 - 4j]], dtype=torch.complex64).conj()
    assert gates(1, 0).to_torch(value).tolist() == [[3 + 4j, 1 - 2j]]
    assert gates(1, 0).to_torch(value.imag).tolist() == [[4, -2]]


# ---- what a transform is not for


@pytest.mark.parametrize(
    ("transform", "shape", "reason"),
    [
        (dense, (3,), r"a dense kernel has 2 dimensions, this has shape \[3\]"),
        (dense, (3, 3, 2, 4), "a dense kernel has 2 dimensions"),
        (conv, (3, 4), "a conv kernel has 3 to 5 dimensions"),
        (conv_transpose, (1,) * 6, "a conv_transpose kernel has 3 to 5 dimensions"),
        (depthwise(), (3, 3), "a depthwise kernel has 3 to 4 dimensions"),
        (depthwise(2), (3, 3, 4, 1), "2 in dimension 3"),
        (pointwise(2), (3, 4), "a pointwise kernel has 4 dimensions"),
        (pointwise(2), (1, 3, 4, 5), "1 in dimension 1"),
        (gates(1, 0, 2), (2, 8), "3 equal gates"),
        (gates(0), (), "1 to 64 dimensions"),
        (flatten(2, 3, 4), (23,), "24 in dimension 0"),
        (flatten(2, 3, 4), (24, 5), "24 in dimension 1"),
        (heads(2), (3, 4), "2 in dimension 0"),
        (output_heads(2), (4,), "2 to 64 dimensions"),
    ],
)
def test_transform_of_a_stored_shape_it_is_not_for_says_why(transform: Transform, shape: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        transform.to_torch(torch.empty(shape, device="meta"))


@pytest.mark.parametrize(
    ("transform", "shape", "reason"),
    [
        (dense, (3, 3, 1, 1), "a dense weight has 2 dimensions"),
        (conv, (3, 4), "a conv weight has 3 to 5 dimensions"),
        (conv_transpose, (4,), "a conv_transpose weight has 3 to 5 dimensions"),
        (depthwise(1), (4, 2, 3, 3), "1 in dimension 1"),
        (depthwise(3), (4, 1, 3, 3), "3 outputs for each input"),
        (pointwise(2), (4, 5, 1, 1), "a pointwise weight has 2 dimensions"),
        (heads(3), (4,), "3 equal heads"),
        (output_heads(3), (4, 3), "3 equal heads"),
    ],
)
def test_transform_of_a_torch_shape_it_is_not_for_says_why(transform: Transform, shape: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        transform.to_stored(torch.empty(shape, device="meta"))


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no float4")
@pytest.mark.parametrize("text", ["dense", "gates(1, 0)", "flatten(1, 1, 2)", "heads(2)"])
def test_transform_of_packed_values_is_refused_and_identity_is_not(text: str) -> None:
    packed = torch.zeros(2, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    assert identity.to_torch(packed).dtype == packed.dtype
    for change in (parse_transform(text).to_torch, parse_transform(text).to_stored):
        with pytest.raises(ValueError, match="two values a byte"):
            change(packed)


# ---- what TensorFlow means


def test_dense_kernel_multiplies_from_the_right() -> None:
    x, kernel, layer = numbers(2, 3), numbers(3, 4), torch.nn.Linear(3, 4, bias=False).double()
    load(dense(layer.weight), kernel)
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach().numpy(), x @ kernel)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv_kernel_gives_tensorflows_convolution_in_every_dimension_and_grouping(dims: int, groups: int) -> None:
    kind = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[dims - 1]
    window = (2, 3, 1)[:dims]
    layer = kind(4, 6, window, groups=groups, bias=False).double()
    image, kernel = numbers(2, *(5, 4, 3)[:dims], 4), numbers(*window, 4 // groups, 6)
    load(conv(layer.weight), kernel)
    np.testing.assert_allclose(to_channels_last(layer(to_channels_first(image))), tf.conv(image, kernel, groups))


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_kernel_gives_tensorflows_depthwise_convolution(dims: int, multiplier: int) -> None:
    kind = (torch.nn.Conv1d, torch.nn.Conv2d)[dims - 1]
    layer = kind(4, 4 * multiplier, (2, 3)[:dims], groups=4, bias=False).double()
    image, kernel = numbers(2, *(5, 4)[:dims], 4), numbers(*(2, 3)[:dims], 4, multiplier)
    load(depthwise(multiplier)(layer.weight), kernel)
    np.testing.assert_allclose(to_channels_last(layer(to_channels_first(image))), tf.depthwise_conv(image, kernel))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_conv_transpose_kernel_gives_the_gradient_of_a_convolution(dims: int) -> None:
    kind = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)[dims - 1]
    layer = kind(4, 5, (2, 3, 1)[:dims], stride=2, bias=False).double()
    image, kernel = numbers(2, *(3, 4, 2)[:dims], 4), numbers(*(2, 3, 1)[:dims], 5, 4)
    load(conv_transpose(layer.weight), kernel)
    np.testing.assert_allclose(to_channels_last(layer(to_channels_first(image))), tf.conv_transpose(image, kernel, 2))


def test_pointwise_kernel_in_a_linear_gives_the_convolution_of_every_pixel() -> None:
    image, kernel, layer = numbers(2, 3, 3, 4), numbers(1, 1, 4, 5), torch.nn.Linear(4, 5, bias=False).double()
    load(pointwise()(layer.weight), kernel)
    np.testing.assert_allclose(layer(torch.from_numpy(image)).detach().numpy(), tf.conv(image, kernel))
    as_conv = conv(layer.weight[:, :, None, None])  # a weight with dimensions of one is a tensor too
    assert as_conv.to_stored().tolist() == kernel.tolist()


def test_flatten_puts_inputs_of_a_flattened_image_in_torchs_order() -> None:
    image, kernel = numbers(2, 3, 4, 5), numbers(60, 7)
    layer = torch.nn.Linear(60, 7, bias=False).double()
    load(dense.then(flatten(3, 4, 5))(layer.weight), kernel)
    found = layer(to_channels_first(image).flatten(1))
    np.testing.assert_allclose(found.detach().numpy(), image.reshape(2, -1) @ kernel)


def test_flatten_of_a_vector_orders_what_a_norm_after_the_flattening_has() -> None:
    image, gamma = numbers(2, 3, 4, 5), numbers(60)
    found = to_channels_first(image).flatten(1) * flatten(3, 4, 5).to_torch(torch.from_numpy(gamma))
    expected = to_channels_first((image.reshape(2, -1) * gamma).reshape(image.shape)).flatten(1)
    assert found.tolist() == expected.tolist()


def test_fused_kernel_restores_query_key_and_value_in_stored_order() -> None:
    x, kernel = numbers(2, 4), numbers(4, 12)
    layers = [torch.nn.Linear(4, 4, bias=False).double() for _ in range(3)]
    load(dense(*(layer.weight for layer in layers), join=Concat(0)), kernel)
    found = [layer(torch.from_numpy(x)).detach().numpy() for layer in layers]
    np.testing.assert_allclose(np.concatenate(found, axis=1), x @ kernel)


def test_parts_of_a_weight_restore_three_stored_kernels() -> None:
    x, kernels, attention = numbers(2, 4), [numbers(4, 4, seed=i) for i in range(3)], torch.nn.MultiheadAttention(4, 2)
    weight = attention.double().in_proj_weight
    for i, kernel in enumerate(kernels):
        load(dense(weight[i * 4 : (i + 1) * 4]), kernel)
    found = functional.linear(torch.from_numpy(x), weight).detach().numpy()
    np.testing.assert_allclose(found, np.concatenate([x @ kernel for kernel in kernels], axis=1))


def test_heads_give_keras_attention_projections() -> None:
    x, query, bias, output = numbers(2, 5, 6), numbers(6, 3, 4), numbers(3, 4), numbers(3, 4, 6)
    q, o = torch.nn.Linear(6, 12).double(), torch.nn.Linear(12, 6, bias=False).double()
    load(heads(3).then(dense)(q.weight), query)
    load(heads(3)(q.bias), bias)
    load(output_heads(3).then(dense)(o.weight), output)
    hidden = np.einsum("btd,dhk->bthk", x, query) + bias
    found = q(torch.from_numpy(x))
    np.testing.assert_allclose(found.detach().numpy().reshape(hidden.shape), hidden)
    np.testing.assert_allclose(o(found).detach().numpy(), np.einsum("bthk,hkd->btd", hidden, output), atol=1e-12)


# ---- names


@settings(deadline=None)
@given(case=cases())
def test_transform_is_read_back_from_its_name_pickled_and_copied_as_an_equal_one(case: Any) -> None:
    transform, _ = case
    assert str(transform) == repr(transform) == transform.name
    twins = [parse_transform(str(transform)), pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)]
    assert {transform, *twins} == {transform}


def test_then_names_what_follows_and_leaves_identity_out() -> None:
    composed = gates(1, 0, 2).then(dense).then(flatten(7, 7, 64))
    assert str(composed) == "gates(1, 0, 2), then dense, then flatten(7, 7, 64)"
    assert identity.then(dense) is dense
    assert dense.then(identity) is dense
    assert dense != conv


def test_parse_transform_takes_spaces_defaults_and_lists() -> None:
    assert parse_transform(" flatten(7,7, 64) ") == flatten(7, 7, 64)
    assert parse_transform("depthwise") == parse_transform("depthwise()") == depthwise(1)
    assert parse_transform(["gates(1, 0, 2)", "dense, then flatten(1, 1, 2)"]) == parse_transform(
        "gates(1, 0, 2), then dense, then flatten(1, 1, 2)"
    )
    assert parse_transform([]) == identity


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dens", "'dens' is no transform; known are identity, dense, conv,"),
        ("", "known are"),
        ("dense, then", "known are"),
        ("dense(", "known are"),
        ("__class__", "known are"),
        ("dense(2)", "dense takes no numbers"),
        ("flatten", "flatten takes another count"),
        ("flatten(1, 2)", "flatten takes another count"),
        ("flatten(1, 2, 3, 4)", "flatten takes another count"),
        ("flatten(1,, 3)", "whole numbers were wanted"),
        ("flatten(1, x, 3)", "whole numbers were wanted"),
        ("flatten(1, 0, 3)", r"flatten\(1, 0, 3\): whole numbers above 0"),
        ("depthwise(-1)", "above 0"),
        ("heads(0)", "above 0"),
        ("output_heads(0)", "above 0"),
        ("pointwise(0)", "above 0"),
        ("gates", "each of 0 to n - 1"),
        ("gates(1, 2)", r"gates\(1, 2\): each of 0 to n - 1"),
        ("gates(0, 0)", "each of 0 to n - 1"),
    ],
)
def test_parse_transform_of_text_it_cannot_read_says_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_transform(text)
