"""The way between the forms of a layer, in place: plain, trainable, packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .. import packing, quantizers
from ..code import TernaryCode
from ..config import TernaryConfig
from ..packing.tensors import PACKED, SCALE, scale_tensor
from ..quantizers import Quantizer
from .packed import PackedWeight, host_class, packed_class
from .state_dict import adapt_state
from .trainable import latent_weight, parametrize_weight, quantizer_of

__all__ = ["layer_code", "make_packed", "make_plain", "make_trainable", "tie"]


def make_trainable(
    layer: nn.Module,
    config: TernaryConfig,
    code: TernaryCode | None = None,
    quantizer: Quantizer | None = None,
) -> None:
    """Put a plain `layer` under the quantizer that `config` asks for, in place.

    Args:
        code: Start from a latent weight that gives this code (default: from the layer's weight).
        quantizer: That of `config`, made from the layer's weight already; layers whose weights are
            tied share one (default: made here).
    """
    weight = layer._parameters["weight"]
    assert weight is not None
    if quantizer is None:
        quantizer = quantizers.create(config, weight)
    if code is not None:
        latent = quantizer.restore(code.to(weight.device))
        with torch.no_grad():
            weight.copy_(latent)
    quantizer.train(layer.training)
    if not weight.requires_grad:
        # A frozen layer stays frozen: its thresholds and scales make its weight, too.
        quantizer.requires_grad_(False)
    parametrize_weight(layer, quantizer)
    _mark(layer, config)


def make_packed(layer: Any, config: TernaryConfig, code: TernaryCode | None = None) -> None:
    """Give a plain `layer` the packed form, in place.

    Args:
        code: What to hold (default: the code of the layer's weight under `config`; on the meta
            device nothing is read, and a state dict is to follow).
    """
    weight = layer._parameters["weight"]
    assert weight is not None
    shape = weight.shape
    if weight.is_meta:
        quantizer = quantizers.create(config, weight)
        bases = quantizer.bases
        size = bases * packing.packed_size(weight.numel())
        packed = weight.new_empty(size, dtype=torch.uint8)
        scale = weight.new_empty(bases, quantizer.scale_rows, quantizer.groups)
    else:
        if code is None:
            code = quantizers.create(config, weight).encode(weight)
        code = code.to(weight.device)
        packed = packing.pack_2bit(code.codes.flatten(1)).flatten()
        # In the layer's dtype, as its other parameters, so that it takes the inputs it took.
        scale = scale_tensor(code).to(weight.dtype)
    del layer._parameters["weight"]
    layer.__class__ = packed_class(type(layer))
    layer.weight_shape = shape
    layer.weight_frozen = not weight.requires_grad
    layer.register_buffer(PACKED, packed)
    layer.register_buffer(SCALE, scale)
    _mark(layer, config)


def tie(first: Any, other: Any, name: str) -> None:
    """Let two packed layers, made of one weight, share their codes and scales if they are equal.

    Args:
        name: Of `first`. Both remember it: buffers of a model that changes its device part.
    """
    if not first.holds_same(other):
        return
    first.tie = other.tie = name
    other.weight_packed, other.weight_scale = first.weight_packed, first.weight_scale


def make_plain(layer: Any) -> None:
    """Turn either form into the host layer in place: latent, or decoded, weight as a parameter."""
    if issubclass(type(layer), PackedWeight):
        weight = nn.Parameter(layer.weight, requires_grad=not layer.weight_frozen)
        host = host_class(type(layer))
        del layer._buffers[PACKED], layer._buffers[SCALE]
        del layer.weight_shape
        vars(layer).pop("weight_frozen", None)
        vars(layer).pop("tie", None)
        layer.__class__ = host
        layer.weight = weight
    else:
        _remove_quantizer(layer)
    layer._ternary_hook.remove()
    del layer._ternary_hook, layer.ternary_config


def _remove_quantizer(layer: Any) -> None:
    """Give `layer` its latent weight back, and its class.

    Not torch's remove_parametrizations where this will do: it deletes the property `weight` of a
    class that deep copies of the layer share.
    """
    lists: Any = layer.parametrizations
    if len(lists) > 1:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        return
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    layer.register_parameter("weight", lists["weight"].original)


def layer_code(layer: nn.Module) -> TernaryCode:
    """The code of a ternary layer in either form.

    Raises:
        ValueError: `layer` is not ternary.
    """
    if isinstance(layer, PackedWeight):
        return layer.weight_code
    quantizer = quantizer_of(layer)
    if quantizer is None:
        raise ValueError(f"{type(layer).__name__} is not ternary; type: ternarize_(model)")
    return quantizer.encode(latent_weight(layer))


def _mark(layer: Any, config: TernaryConfig) -> None:
    layer.ternary_config = config
    layer._ternary_hook = layer.register_load_state_dict_pre_hook(adapt_state)
