"""How state dicts spell the weight of a ternary layer, and what loads into what.

A file holds ``weight`` (float), ``parametrizations.weight.*`` (trained) or ``weight_packed`` and
``weight_scale`` (packed): any of the three loads into either form.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from .. import packing, quantizers
from ..packing.tensors import code_from_tensors, scale_tensor
from ..quantizers import Quantizer
from .trainable import latent_weight, quantizer_of

__all__ = ["adapt_state"]


def adapt_state(layer: Any, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Load-state-dict hook: any of the three forms of a layer's weight loads into either form.

    A file holds ``weight`` (float), ``parametrizations.weight.*`` (trained) or
    ``weight_packed`` and ``weight_scale`` (packed).
    """
    latent, dense = prefix + "parametrizations.weight.original", prefix + "weight"
    keys = prefix + "weight_packed", prefix + "weight_scale"
    trainable = quantizer_of(layer)
    if keys[0] in state and keys[1] in state:
        shape = layer.weight_shape if trainable is None else latent_weight(layer).shape
        try:
            code = code_from_tensors(state[keys[0]], state[keys[1]], shape)
        except ValueError as error:
            raise ValueError(f"tensor {prefix}{error}") from None
        if trainable is not None:
            del state[keys[0]], state[keys[1]]
            # Not with the layer's own quantizer: it may be on the meta device, or loading fail.
            quantizer = quantizers.create(layer.ternary_config, code.decode())
            state[latent] = quantizer.restore(code)
            _add_quantizer(state, prefix, quantizer)
        else:
            packed = packing.pack_2bit(code.codes.flatten(1)).flatten()
            layer.set_code(packed, state[keys[1]])
            state[keys[0]] = packed
    elif dense in state and trainable is not None:
        _check_shape(dense, state[dense], latent_weight(layer).shape)
        state[latent] = state.pop(dense)
        _add_quantizer(state, prefix, quantizers.create(layer.ternary_config, state[latent]))
    elif trainable is None and (latent in state or dense in state):
        _encode_into(layer, state, prefix, latent if latent in state else dense)


def _check_shape(key: str, weight: Tensor, shape: torch.Size) -> None:
    if weight.shape != shape:
        raise ValueError(
            f"tensor {key} has the shape {tuple(weight.shape)}, the layer needs {tuple(shape)}"
        )


def _add_quantizer(state: MutableMapping[str, Any], prefix: str, quantizer: Quantizer) -> None:
    for key, value in quantizer.state_dict().items():
        state[f"{prefix}parametrizations.weight.0.{key}"] = value.clone()


def _encode_into(layer: Any, state: MutableMapping[str, Any], prefix: str, key: str) -> None:
    """Replace the float or trained weight in `state` by its code under the layer's method."""
    _check_shape(key, state[key], layer.weight_shape)
    weight = state.pop(key)
    quantizer = quantizers.create(layer.ternary_config, weight)
    inner = f"{prefix}parametrizations.weight.0."
    own: Mapping[str, Any] = {k: v for k, v in state.items() if k.startswith(inner)}
    if own:
        quantizer.load_state_dict({k[len(inner) :]: state.pop(k) for k in own})
    code = quantizer.encode(weight)
    packed = packing.pack_2bit(code.codes.flatten(1)).flatten()
    scale = scale_tensor(code)
    layer.set_code(packed, scale)
    state[prefix + "weight_packed"], state[prefix + "weight_scale"] = packed, scale
