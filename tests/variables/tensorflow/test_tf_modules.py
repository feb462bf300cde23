"""Modules have their values under TensorFlow's leaf names, in its layouts: checked by what the layers compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from corpus import CORPUS, expected
from torch import nn
from variables import tf_reference as tf
from variables.tf_reference import load, load_all, numbers

from torchsaver.variables.mapping.layouts import Layout
from torchsaver.variables.mapping.transforms import dense, flatten
from torchsaver.variables.tensorflow.modules import basic_lstm_layouts, module_layouts, rnn_layouts


def _described(module: nn.Module) -> dict[str, str]:
    """Return {leaf: "transform(tensor's name)", or the name of a tensor that is stored as it is}."""
    names = {id(tensor): name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    found = {}
    for leaf, value in module_layouts(module).items():
        if isinstance(value, Layout):
            found[leaf] = f"{value.transform}: {'+'.join(names[id(tensor)] for tensor in value.tensors)}"
        else:
            found[leaf] = names[id(value)]
    return found


def _all(leaves: str, value: str) -> dict[str, str]:
    return dict.fromkeys(leaves.split(), value)


BIAS = _all("bias biases b", "bias")
FILTERS = "kernel weights w filters filter"
SHIFT = _all("beta offset bias", "bias")
NORM = {**_all("gamma scale", "weight"), **SHIFT}
MOVING = {"moving_mean": "running_mean", "moving_variance": "running_var"}
POINTWISE = _all("pointwise_kernel pointwise_weights", "conv: weight")
DEPTHWISE = "depthwise_kernel depthwise_weights"


class _Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_buffer("absent", None)
        self.child = nn.Linear(2, 2)


class _ScaledLinear(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 3)
        self.scale = nn.Parameter(torch.ones(1))


class _ScaledNorm(nn.LayerNorm):
    def __init__(self) -> None:
        super().__init__(2)
        self.scale = nn.Parameter(torch.ones(1))


MODULES: dict[str, tuple[nn.Module, dict[str, str]]] = {
    "linear": (nn.Linear(2, 3), {**_all("kernel weights w", "dense: weight"), **BIAS}),
    "linear without bias": (nn.Linear(2, 3, bias=False), _all("kernel weights w", "dense: weight")),
    "conv1d": (nn.Conv1d(2, 4, 3), {**_all(FILTERS, "conv: weight"), **BIAS}),
    "conv2d": (nn.Conv2d(2, 4, 3, bias=False), _all(FILTERS, "conv: weight")),
    "conv3d": (nn.Conv3d(2, 4, 3), {**_all(FILTERS, "conv: weight"), **BIAS}),
    "1x1 conv": (nn.Conv2d(2, 4, 1, bias=False), {**_all(FILTERS, "conv: weight"), **POINTWISE}),
    "grouped": (nn.Conv2d(4, 4, 3, groups=2, bias=False), _all(FILTERS, "conv: weight")),
    "depthwise": (
        nn.Conv2d(4, 8, 3, groups=4, bias=False),
        _all(f"{FILTERS} {DEPTHWISE}", "depthwise(2): weight"),
    ),
    "depthwise 3-D, which TF has as grouped": (
        nn.Conv3d(4, 8, 3, groups=4, bias=False),
        _all(FILTERS, "conv: weight"),
    ),
    "one input channel": (
        nn.Conv2d(1, 8, 3, bias=False),
        {**_all(FILTERS, "conv: weight"), **_all(DEPTHWISE, "depthwise(8): weight")},
    ),
    "transposed": (nn.ConvTranspose2d(2, 4, 3), {**_all(FILTERS, "conv_transpose: weight"), **BIAS}),
    "batch norm": (nn.BatchNorm2d(2), {**NORM, **MOVING}),
    "batch norm without scale": (nn.BatchNorm1d(2, affine=False), MOVING),
    "layer norm": (nn.LayerNorm(2), NORM),
    "group norm": (nn.GroupNorm(1, 2), NORM),
    "instance norm": (nn.InstanceNorm2d(2, affine=True), NORM),
    "rms norm": (nn.RMSNorm(2), _all("gamma scale", "weight")),
    "embedding": (nn.Embedding(2, 3), {**_all("embeddings embedding weights", "weight"), "": "weight"}),
    "prelu": (nn.PReLU(2), {"alpha": "weight"}),
    "attention": (nn.MultiheadAttention(4, 2, add_bias_kv=True), {}),
    "activation": (nn.ReLU(), {}),
    "custom": (_Custom(), {"weight": "weight", "mean": "mean"}),
    "subclass": (
        _ScaledLinear(),
        {**_all("kernel weights w", "dense: weight"), **BIAS, "scale": "scale"},
    ),
    "subclass with a leaf name of its own": (_ScaledNorm(), {"gamma": "weight", "scale": "scale", **SHIFT}),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), BIAS),
    "lazy": (nn.LazyLinear(3, bias=False), _all("kernel weights w", "dense: weight")),
    "lstm": (
        nn.LSTM(2, 3),
        {
            "kernel": "dense: weight_ih_l0",
            "recurrent_kernel": "dense: weight_hh_l0",
            "bias": "identity: bias_ih_l0+bias_hh_l0",
        },
    ),
    "gru cell without bias": (
        nn.GRUCell(2, 3, bias=False),
        {
            "kernel": "gates(1, 0, 2), then dense: weight_ih",
            "recurrent_kernel": "gates(1, 0, 2), then dense: weight_hh",
        },
    ),
    "deep bidirectional rnn": (
        nn.RNN(2, 3, num_layers=2, bidirectional=True, bias=False),
        {
            f"{leaf}{suffix}": f"dense: {name}{suffix}"
            for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse")
            for leaf, name in (("kernel", "weight_ih"), ("recurrent_kernel", "weight_hh"))
        },
    ),
    "lstm with projections, which Keras has not": (nn.LSTM(2, 3, proj_size=1), {}),
}


@pytest.mark.parametrize("name", MODULES)
def test_module_has_its_values_under_tensorflows_names(name: str) -> None:
    module, leaves = MODULES[name]
    assert _described(module) == leaves


def test_old_weight_norm_has_no_kernel() -> None:
    with pytest.warns(FutureWarning):
        module = nn.utils.weight_norm(nn.Linear(2, 3))
    assert _described(module) == BIAS


# ---- what they compute


def _rnn_values(gate_count: int, bias_shape: tuple[int, ...], inputs: int = 3, units: int = 4, seed: int = 0) -> Any:
    return {
        "kernel": numbers(inputs, gate_count * units, seed=seed),
        "recurrent_kernel": numbers(units, gate_count * units, seed=seed),
        "bias": numbers(*bias_shape, seed=seed),
    }


RNNS: dict[str, tuple[Any, Any, int, tuple[int, ...], Any]] = {
    "lstm": (nn.LSTM, nn.LSTMCell, 4, (16,), tf.keras_lstm),
    "gru": (nn.GRU, nn.GRUCell, 3, (2, 12), tf.keras_gru),
    "rnn": (nn.RNN, nn.RNNCell, 1, (4,), tf.keras_simple_rnn),
}


@pytest.mark.parametrize("name", RNNS)
def test_rnn_with_keras_values_computes_as_keras(name: str) -> None:
    kind, cell_kind, gate_count, bias_shape, reference = RNNS[name]
    x, values = numbers(5, 2, 3), _rnn_values(gate_count, bias_shape)
    module, cell = kind(3, 4).double(), cell_kind(3, 4).double()
    load_all(rnn_layouts(module), values)
    load_all(rnn_layouts(cell), values)
    wanted = reference(x, **values)
    np.testing.assert_allclose(module(torch.from_numpy(x))[0].detach().numpy(), wanted)
    first = cell(torch.from_numpy(x[0]))
    np.testing.assert_allclose((first[0] if name == "lstm" else first).detach().numpy(), wanted[0])
    for leaf, layout in rnn_layouts(module).items():
        assert layout.to_stored().tolist() == values[leaf].tolist()


@pytest.mark.parametrize("name", RNNS)
def test_rnn_deep_and_bidirectional_computes_as_kerass_stacked_layers(name: str) -> None:
    kind, _, gate_count, bias_shape, reference = RNNS[name]
    x = hidden = numbers(5, 2, 3)
    module = kind(3, 4, num_layers=2, bidirectional=True).double()
    for layer, inputs in enumerate((3, 8)):
        forward, backward = (_rnn_values(gate_count, bias_shape, inputs, seed=10 * layer + i) for i in range(2))
        load_all(rnn_layouts(module, layer), forward)
        load_all(rnn_layouts(module, layer, reverse=True), backward)
        parts = [reference(hidden, **forward), reference(hidden[::-1], **backward)[::-1]]
        hidden = np.concatenate(parts, axis=-1)
    np.testing.assert_allclose(module(torch.from_numpy(x))[0].detach().numpy(), hidden)


@pytest.mark.parametrize("name", RNNS)
def test_rnn_trained_in_torch_saves_values_with_which_keras_computes_the_same(name: str) -> None:
    kind, _, _, _, reference = RNNS[name]
    x, module = numbers(5, 2, 3), kind(3, 4).double()
    values = {leaf: layout.to_stored().numpy() for leaf, layout in rnn_layouts(module).items()}
    np.testing.assert_allclose(module(torch.from_numpy(x))[0].detach().numpy(), reference(x, **values))


@pytest.mark.parametrize("forget_bias", [1.0, 0.0, 0.3])
def test_basic_lstm_computes_as_tf1s_cell_and_saves_the_same_bits(forget_bias: float) -> None:
    x, module = numbers(5, 2, 3), nn.LSTM(3, 4).double()
    values = {"kernel": numbers(7, 16), "bias": numbers(16)}
    layouts = basic_lstm_layouts(module, forget_bias=forget_bias)
    load_all(layouts, values)
    wanted = tf.basic_lstm_cell(x, **values, forget_bias=forget_bias)
    np.testing.assert_allclose(module(torch.from_numpy(x))[0].detach().numpy(), wanted)
    assert {leaf: layout.to_stored().tolist() for leaf, layout in layouts.items()} == {
        leaf: value.tolist() for leaf, value in values.items()
    }


def test_basic_lstm_trained_in_torch_saves_values_with_which_tf1_computes_the_same() -> None:
    x, module = numbers(5, 2, 3), nn.LSTM(3, 4).double()
    values = {leaf: layout.to_stored().numpy() for leaf, layout in basic_lstm_layouts(module).items()}
    found = module(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(found, tf.basic_lstm_cell(x, **values, forget_bias=1.0))


def test_gru_of_the_other_kind_does_not_fit() -> None:
    bias = rnn_layouts(nn.GRU(3, 4))["bias"]
    with pytest.raises(
        ValueError, match=r"shape \[12\] is stored, and \[2, 12\] was wanted for torch's \[12\], \[12\]"
    ):
        bias.from_stored(torch.empty(12, device="meta"))


@pytest.mark.parametrize("layouts", [rnn_layouts, basic_lstm_layouts])
def test_rnn_without_the_layer_direction_or_kind_says_so(layouts: Any) -> None:
    for layer in (-1, 2):
        with pytest.raises(ValueError, match=f"layer {layer} was wanted, and the LSTM has 2"):
            layouts(nn.LSTM(2, 3, num_layers=2), layer)
    with pytest.raises(ValueError, match="the LSTMCell has 1"):
        layouts(nn.LSTMCell(2, 3), 1)
    with pytest.raises(ValueError, match="not bidirectional"):
        layouts(nn.LSTM(2, 3), reverse=True)
    with pytest.raises(ValueError, match="proj_size=1"):
        layouts(nn.LSTM(2, 3, proj_size=1))
    with pytest.raises(ValueError, match="Linear is no LSTM"):
        layouts(nn.Linear(2, 3))


def test_depthwise_separable_convolution_is_the_layouts_of_its_two_modules() -> None:
    image, depthwise_kernel, pointwise_kernel = numbers(2, 4, 5, 3), numbers(2, 3, 3, 2), numbers(1, 1, 6, 7)
    first, second = nn.Conv2d(3, 6, (2, 3), groups=3, bias=False).double(), nn.Conv2d(6, 7, 1, bias=False).double()
    load(module_layouts(first)["depthwise_kernel"], depthwise_kernel)
    load(module_layouts(second)["pointwise_kernel"], pointwise_kernel)
    found = tf.to_channels_last(second(first(tf.to_channels_first(image))))
    np.testing.assert_allclose(found, tf.conv(tf.depthwise_conv(image, depthwise_kernel), pointwise_kernel))


def test_keras_model_restored_by_leaf_names_computes_what_tensorflow_did() -> None:
    case = "savedmodel_keras2"
    arrays = np.load(CORPUS / case / "expected.npz")
    values = {tensor["key"]: arrays[tensor["npz"]] for tensor in expected(case)["tensors"] if "npz" in tensor}
    layers: list[Any] = [
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4, eps=1e-3),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6, eps=1e-5),
        nn.Linear(150, 7),
        nn.Linear(7, 3),
    ]
    for i, layer in enumerate(layers):
        leaves: dict[str, Any] = module_layouts(layer)
        if i == 4:
            leaves["kernel"] = dense.then(flatten(5, 5, 6))(layer.weight)
        for leaf in ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"):
            key = f"layer_with_weights-{i}/{leaf}/.ATTRIBUTES/VARIABLE_VALUE"
            assert (key in values) == (leaf in leaves and not (leaf == "bias" and "beta" in leaves))
            if key in values:
                load(leaves[leaf], values[key])
    a, b, d, e, h, y = (layer.eval() for layer in layers)
    x = torch.from_numpy(np.load(CORPUS / case / "forward_input.npy")).permute(0, 3, 1, 2)
    x = nn.functional.pad(x, (0, 1, 0, 1))  # SAME, stride 2, even input
    x = e(d(b(a(x)).relu())).relu().flatten(1)
    found = y(h(x).tanh()).detach().numpy()
    np.testing.assert_allclose(found, np.load(CORPUS / case / "forward_output.npy"), atol=1e-5)
