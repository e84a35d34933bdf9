"""How state dicts spell the weight of a ternary layer, and what loads into what.

Of a layer ``conv1`` they hold

- ``conv1.weight``: float, or the decoded weight;
- ``conv1.parametrizations.weight.original``: the latent weight of a trained one, and beside it
  ``conv1.parametrizations.weight.0.<name>``: parameters and buffers of its quantizer;
- ``conv1.weight_packed`` and ``conv1.weight_scale``: codes and scales of a packed one.

Any of the three loads into either form. No other file spells these names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from .. import packing, quantizers
from ..packing.tensors import PACKED, SCALE, code_from_tensors, scale_tensor
from ..quantizers import Quantizer
from .trainable import latent_weight, quantizer_of

__all__ = [
    "adapt_state",
    "is_code_key",
    "is_packed_key",
    "latent_layer",
    "own_prefixes",
    "packed_key",
    "quantizer_parameter",
    "readable_name",
    "scale_key",
    "weight_key",
]

_WEIGHT = "weight"
_PARAMETRIZED = "parametrizations."
_LATENT = f"{_PARAMETRIZED}{_WEIGHT}.original"
_QUANTIZER = f"{_PARAMETRIZED}{_WEIGHT}.0."


def weight_key(layer: str) -> str:
    """The key of the float weight of the layer of that name."""
    return f"{layer}.{_WEIGHT}"


def packed_key(layer: str) -> str:
    """The key of the layer's codes."""
    return f"{layer}.{PACKED}"


def scale_key(layer: str) -> str:
    """The key of the layer's scales."""
    return f"{layer}.{SCALE}"


def is_packed_key(key: str) -> bool:
    """Whether `key` is that of a layer's codes."""
    return key.endswith(f".{PACKED}")


def is_code_key(key: str) -> bool:
    """Whether `key` is that of a layer's codes or scales."""
    return key.endswith((f".{PACKED}", f".{SCALE}"))


def latent_layer(key: str) -> str | None:
    """The layer whose latent weight `key` is; None for any other key."""
    layer, found, rest = key.rpartition(f".{_LATENT}")
    return layer if found and not rest else None


def quantizer_parameter(key: str) -> tuple[str, str] | None:
    """The layer, and the name within its quantizer, that `key` is of; None for any other key."""
    layer, found, name = key.partition(f".{_QUANTIZER}")
    return (layer, name) if found else None


def own_prefixes(layers: Iterable[str]) -> tuple[str, ...]:
    """How the keys begin that are of the weights of these ternary layers, in either form."""
    parts = (_PARAMETRIZED, PACKED, SCALE)
    return tuple(f"{layer}.{part}" for layer in layers for part in parts)


def readable_name(key: str) -> str:
    """A parameter as its users call it: ``conv1.threshold``, and ``conv1.weight`` of a latent one.

    Args:
        key: As ``model.named_parameters()`` and state dicts spell it.
    """
    return key.replace(f".{_QUANTIZER}", ".").replace(f".{_LATENT}", f".{_WEIGHT}")


def adapt_state(layer: Any, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Load-state-dict hook: any of the three forms of a layer's weight loads into either form.

    Args:
        layer: A ternary layer in either form.
        state: Of the whole model; what is of `layer` is replaced by what its form holds.
        prefix: The layer's name with a dot, as torch gives it; empty for the model itself.

    Raises:
        ValueError: A tensor has another shape than the layer's, or packed ones hold no code.
    """
    latent, dense = prefix + _LATENT, prefix + _WEIGHT
    keys = prefix + PACKED, prefix + SCALE
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
        state[f"{prefix}{_QUANTIZER}{key}"] = value.clone()


def _encode_into(layer: Any, state: MutableMapping[str, Any], prefix: str, key: str) -> None:
    """Replace the float or trained weight in `state` by its code under the layer's method."""
    _check_shape(key, state[key], layer.weight_shape)
    weight = state.pop(key)
    quantizer = quantizers.create(layer.ternary_config, weight)
    inner = prefix + _QUANTIZER
    own: Mapping[str, Any] = {k: v for k, v in state.items() if k.startswith(inner)}
    if own:
        quantizer.load_state_dict({k[len(inner) :]: state.pop(k) for k in own})
    code = quantizer.encode(weight)
    packed = packing.pack_2bit(code.codes.flatten(1)).flatten()
    scale = scale_tensor(code)
    layer.set_code(packed, scale)
    state[prefix + PACKED], state[prefix + SCALE] = packed, scale
