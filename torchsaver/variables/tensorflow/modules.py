"""What TensorFlow calls a module's values, and how it lays them out: for torch's own layers, by their type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from torchsaver.variables.mapping.joins import Concat, Join, Stack, Sum
from torchsaver.variables.mapping.layouts import Layout, Transform, identity
from torchsaver.variables.mapping.transforms import conv, conv_transpose, dense, depthwise, gates

Leaves: TypeAlias = "dict[str, torch.Tensor | Layout]"

# Leaf names of Keras; of tf.layers, slim and contrib; of Sonnet and hand-written models.
_KERNEL = ("kernel", "weights", "w")
_FILTERS = (*_KERNEL, "filters", "filter")
_BIAS = ("bias", "biases", "b")
_DEPTHWISE = ("depthwise_kernel", "depthwise_weights")
_POINTWISE = ("pointwise_kernel", "pointwise_weights")
_SCALE = ("gamma", "scale")
_SHIFT = ("beta", "offset", "bias")

# Own names of the layers below begin so; a subclass' further tensors do not.
_TORCH_NAMES = ("weight", "bias", "running_", "num_batches_tracked", "in_proj_", "q_proj_", "k_proj_", "v_proj_")


def module_layouts(module: nn.Module) -> Leaves:
    """Return what TensorFlow may call the values of one module, its children left aside: {leaf name: value}.

    Names that mean the same value stand side by side: a Linear has kernel, weights and w. "" stands for a value under
    the module's own path. A subclass counts as its base, and its further tensors have their torch names. A module of
    another type has its parameters and persistent buffers under their torch names, as they are. What a module lacks,
    and what is computed from other tensors (weight norm), is left out.
    """
    leaves = next((leaves for kinds, leaves in _LEAVES.items() if isinstance(module, kinds)), None)
    own = _own_tensors(module)
    if leaves is None:
        return dict(own)
    named: Leaves = {**leaves(module)}
    named.update({name: tensor for name, tensor in own.items() if not name.startswith(_TORCH_NAMES)})
    return named


def rnn_layouts(module: nn.RNNBase | nn.RNNCellBase, layer: int = 0, *, reverse: bool = False) -> dict[str, Layout]:
    """Return one layer and direction of an LSTM, GRU or RNN, or a cell, under Keras' names.

    A Keras GRU is torch's with reset_after=True, the default; the other kind computes otherwise, and its bias does not
    fit. Of an LSTM's two biases the first is restored and the second becomes 0; their sum is saved.

    Args:
        module: The module; whether it is batch_first makes no difference.
        layer: Which layer, from 0.
        reverse: The backward direction of a bidirectional one.

    Returns:
        "kernel", "recurrent_kernel" and "bias", as far as the module has them.

    Raises:
        ValueError: There is no such layer or direction, or the module is an LSTM with proj_size, which Keras has not.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = _rnn_tensors(module, layer, reverse)
    order, join = _RNN_KINDS[_rnn_kind(module)]
    kernel = order.then(dense)
    layouts = {}
    if weight_ih is not None:
        layouts["kernel"] = kernel(weight_ih)
    if weight_hh is not None:
        layouts["recurrent_kernel"] = kernel(weight_hh)
    if bias_ih is not None and bias_hh is not None:
        layouts["bias"] = order(bias_ih, bias_hh, join=join)
    return layouts


def basic_lstm_layouts(
    module: nn.LSTM | nn.LSTMCell, layer: int = 0, *, reverse: bool = False, forget_bias: float = 1.0
) -> dict[str, Layout]:
    """Return one layer and direction of an LSTM under the names of TF1's BasicLSTMCell and LSTMCell.

    These have one kernel for inputs and state, gates i c f o, and add forget_bias at run time: a restore puts that into
    bias_hh, and a save takes it out of the sum.

    Args:
        module: The module.
        layer: Which layer, from 0.
        reverse: The backward direction of a bidirectional one.
        forget_bias: As the cell was made with; 1.0 is TF's default.

    Returns:
        "kernel" and "bias", as far as the module has them.

    Raises:
        ValueError: As rnn_layouts() does.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = _rnn_tensors(module, layer, reverse)
    order = gates(0, 2, 1, 3)
    layouts = {}
    if weight_ih is not None and weight_hh is not None:
        layouts["kernel"] = order.then(dense)(weight_ih, weight_hh, join=Concat(1))
    if bias_ih is not None and bias_hh is not None:
        layouts["bias"] = order(bias_ih, bias_hh, join=Sum((0.0, forget_bias, 0.0, 0.0)))
    return layouts


_RNN_KINDS: Mapping[str, tuple[Transform, Join]] = {
    "LSTM": (identity, Sum()),  # i f c o is torch's i f g o
    "GRU": (gates(1, 0, 2), Stack()),  # z r h, and torch's r z n
    "RNN": (identity, Sum()),
}


def _rnn_kind(module: nn.Module) -> str:
    kinds = {"LSTM": (nn.LSTM, nn.LSTMCell), "GRU": (nn.GRU, nn.GRUCell), "RNN": (nn.RNN, nn.RNNCell)}
    for kind, classes in kinds.items():
        if isinstance(module, classes):
            return kind
    raise ValueError(f"{type(module).__name__} is no LSTM, GRU or RNN")


def _rnn_tensors(module: nn.RNNBase | nn.RNNCellBase, layer: int, reverse: bool) -> list[torch.Tensor | None]:
    """Return weight_ih, weight_hh, bias_ih and bias_hh of a layer and direction; None for what is not there."""
    _rnn_kind(module)
    if getattr(module, "proj_size", 0):
        raise ValueError(f"the {type(module).__name__} has proj_size={module.proj_size}, which Keras' layer has not")
    layers = getattr(module, "num_layers", 1)
    if not 0 <= layer < layers:
        raise ValueError(f"layer {layer} was wanted, and the {type(module).__name__} has {layers}, counted from 0")
    if reverse and not getattr(module, "bidirectional", False):
        raise ValueError(f"the {type(module).__name__} is not bidirectional and has no reverse direction")
    suffix = f"_l{layer}{'_reverse' * reverse}" if isinstance(module, nn.RNNBase) else ""
    own = _own_tensors(module)
    return [own.get(name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the module's own parameters and persistent buffers: those that are there, not those computed from them."""
    buffers = {
        name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set
    }
    return {name: tensor for name, tensor in {**module._parameters, **buffers}.items() if tensor is not None}


def _named(module: nn.Module, name: str, leaves: tuple[str, ...], transform: Transform | None = None) -> Leaves:
    """Return the module's tensor `name` under each leaf name, laid out by `transform`; nothing if it is not there."""
    tensor = _own_tensors(module).get(name)
    if tensor is None:
        return {}
    return dict.fromkeys(leaves, tensor if transform is None else transform(tensor))


def _linear(module: Any) -> Leaves:
    return {**_named(module, "weight", _KERNEL, dense), **_named(module, "bias", _BIAS)}


def _conv(module: Any) -> Leaves:
    leaves = {**_named(module, "weight", _FILTERS, conv), **_named(module, "bias", _BIAS)}
    if module.groups == module.in_channels and len(module.kernel_size) < 3:  # TF has no depthwise one in 3-D
        own_kernel = _FILTERS if module.groups > 1 else ()
        transform = depthwise(max(1, module.out_channels // module.in_channels))
        leaves |= _named(module, "weight", (*own_kernel, *_DEPTHWISE), transform)
    if set(module.kernel_size) == {1}:
        leaves |= _named(module, "weight", _POINTWISE, conv)
    return leaves


def _conv_transpose(module: Any) -> Leaves:
    return {**_named(module, "weight", _FILTERS, conv_transpose), **_named(module, "bias", _BIAS)}


def _norm(module: Any) -> Leaves:
    return {
        **_named(module, "weight", _SCALE),
        **_named(module, "bias", _SHIFT),
        **_named(module, "running_mean", ("moving_mean",)),
        **_named(module, "running_var", ("moving_variance",)),
    }


def _embedding(module: Any) -> Leaves:
    return _named(module, "weight", ("embeddings", "embedding", "weights", ""))


def _prelu(module: Any) -> Leaves:
    return _named(module, "weight", ("alpha",))


def _rnn(module: Any) -> Leaves:
    if getattr(module, "proj_size", 0):
        return {}
    if getattr(module, "num_layers", 1) == 1 and not getattr(module, "bidirectional", False):
        return {**rnn_layouts(module)}
    return {
        f"{name}_l{layer}{'_reverse' * reverse}": layout
        for layer in range(module.num_layers)
        for reverse in (False, True)[: 1 + module.bidirectional]
        for name, layout in rnn_layouts(module, layer, reverse=reverse).items()
    }


def _none(module: Any) -> Leaves:  # noqa: ARG001
    return {}


_NormBase = nn.modules.batchnorm._NormBase  # BatchNorm*, SyncBatchNorm and InstanceNorm*
_LEAVES: dict[tuple[type[nn.Module], ...], Callable[[Any], Leaves]] = {
    (nn.Linear,): _linear,
    (nn.Conv1d, nn.Conv2d, nn.Conv3d): _conv,
    (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d): _conv_transpose,
    (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm): _norm,
    (nn.Embedding, nn.EmbeddingBag): _embedding,
    (nn.PReLU,): _prelu,
    (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell): _rnn,
    (nn.MultiheadAttention,): _none,  # its projections are chosen by hand: heads() or parts of in_proj_weight
}
