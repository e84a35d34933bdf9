"""The two forms of a ternary layer, made in place from any layer with a `weight`.

Trainable: the latent weight under a parametrization whose module is the `Quantizer`.
Packed: 2-bit codes and scales in two buffers, decoded at every read of `weight`.

In both, `layer.weight` is the ternary weight, whether the layer is called or only read
(``F.linear(x, layer.weight)``), and the host class keeps its own forward (Conv2dSame, StdConv2d).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import packing, quantizers
from ..code import TernaryCode
from ..config import TernaryConfig
from ..packing.tensors import code_from_tensors, scale_tensor
from ..quantizers import Quantizer

__all__ = [
    "PackedConv2d",
    "PackedLinear",
    "PackedWeight",
    "latent_weight",
    "layer_code",
    "make_packed",
    "make_plain",
    "make_trainable",
    "quantizer_of",
]


class PackedWeight:
    """Mixin of packed layers.

    Buffers:
        weight_packed: uint8, ``(bases * ceil(n / 4),)``, the codes in 2bit (packing/encodings.py).
        weight_scale: Floating point, ``(bases, 1 or 2, 1 or out)``: one row where both signs
            share one scale, else the row of + and the row of -.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_shape: torch.Size

    @property
    def weight(self) -> Tensor:
        """The decoded weight, in the dtype of the scales."""
        return self.weight_code.decode()

    @property
    def weight_code(self) -> TernaryCode:
        """The codes and scales."""
        bases = self.weight_scale.shape[0]
        codes = packing.unpack_2bit(
            self.weight_packed.view(bases, -1), self.weight_shape.numel()
        ).reshape(bases, *self.weight_shape)
        return TernaryCode(codes, self.weight_scale[:, 0], self.weight_scale[:, -1])

    def set_code(self, packed: Tensor, scale: Tensor) -> None:
        """Take codes in 2bit and scales; the buffers take their shapes."""
        self.weight_packed = packed.to(self.weight_packed.device)
        self.weight_scale = scale.to(self.weight_scale, copy=True)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle by host class: `_packed_class` makes its subclass at run time."""
        state: tuple[Any, ...] = tuple(super().__reduce_ex__(protocol))
        return (_new_packed, (_host_class(type(self)),), *state[2:])


class PackedConv2d(PackedWeight, nn.Conv2d):  # type: ignore[override]
    """nn.Conv2d with a packed weight; made by `make_packed`, not constructed."""


class PackedLinear(PackedWeight, nn.Linear):  # type: ignore[override]
    """nn.Linear with a packed weight; made by `make_packed`, not constructed."""


_packed_classes: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: PackedConv2d,
    nn.Linear: PackedLinear,
}


def _packed_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The packed subclass of exactly `cls`, so that it keeps its forward (Conv2dSame pads)."""
    if cls not in _packed_classes:
        members: dict[str, Any] = {"__doc__": f"{cls.__name__} with a packed weight."}
        _packed_classes[cls] = type(f"Packed{cls.__name__}", (PackedWeight, cls), members)
    return _packed_classes[cls]


def _host_class(cls: type) -> type[nn.Module]:
    """The inverse of `_packed_class`."""
    return next(c for c in cls.__bases__ if issubclass(c, nn.Module))


def _new_packed(host: type[nn.Module]) -> nn.Module:
    """An empty packed layer, whose state unpickling sets."""
    cls = _packed_class(host)
    layer: nn.Module = cls.__new__(cls)
    return layer


def make_trainable(
    layer: nn.Module, config: TernaryConfig, code: TernaryCode | None = None
) -> None:
    """Put a plain `layer` under the quantizer that `config` asks for, in place.

    Args:
        code: Start from a latent weight that gives this code (default: from the layer's weight).
    """
    weight = layer._parameters["weight"]
    assert weight is not None
    quantizer = quantizers.create(config, weight)
    if code is not None:
        latent = quantizer.restore(code.to(weight.device))
        with torch.no_grad():
            weight.copy_(latent)
    quantizer.train(layer.training)
    # unsafe: a quantizer keeps shape and dtype; the check would quantize once more.
    parametrize.register_parametrization(layer, "weight", quantizer, unsafe=True)
    _mark(layer, config)


def make_packed(layer: Any, config: TernaryConfig, code: TernaryCode | None = None) -> None:
    """Give a plain `layer` the packed form, in place.

    Args:
        code: What to hold (default: the code of the layer's weight under `config`; on the meta
            device nothing is read, and a state dict is to follow).
    """
    weight = layer._parameters["weight"]
    assert weight is not None
    quantizer = quantizers.create(config, weight)
    shape, bases = weight.shape, quantizer.bases
    if weight.is_meta:
        size = bases * packing.packed_size(weight.numel())
        packed = weight.new_empty(size, dtype=torch.uint8)
        scale = weight.new_empty(bases, quantizer.scale_rows, quantizer.groups)
    else:
        code = quantizer.encode(weight) if code is None else code.to(weight.device)
        packed = packing.pack_2bit(code.codes.flatten(1)).flatten()
        # In the layer's dtype, as its other parameters, so that it takes the inputs it took.
        scale = scale_tensor(code, quantizer.scale_rows).to(weight.dtype)
    del layer._parameters["weight"]
    layer.__class__ = _packed_class(type(layer))
    layer.weight_shape = shape
    layer.register_buffer("weight_packed", packed)
    layer.register_buffer("weight_scale", scale)
    _mark(layer, config)


def make_plain(layer: Any) -> None:
    """Turn either form into the host layer in place: latent, or decoded, weight as a parameter."""
    if issubclass(type(layer), PackedWeight):
        weight = layer.weight
        host = _host_class(type(layer))
        del layer._buffers["weight_packed"], layer._buffers["weight_scale"]
        del layer.weight_shape
        layer.__class__ = host
        layer.weight = nn.Parameter(weight)
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


def quantizer_of(layer: nn.Module) -> Quantizer | None:
    """The quantizer of a trainable ternary layer, else None."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    lists: Any = layer.parametrizations
    first = lists["weight"][0]
    return first if isinstance(first, Quantizer) else None


def latent_weight(layer: nn.Module) -> nn.Parameter:
    """The latent weight of a trainable ternary layer."""
    lists: Any = layer.parametrizations
    latent: nn.Parameter = lists["weight"].original
    return latent


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
    layer._ternary_hook = layer.register_load_state_dict_pre_hook(_adapt)


def _adapt(layer: Any, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
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
    scale = scale_tensor(code, quantizer.scale_rows)
    layer.set_code(packed, scale)
    state[prefix + "weight_packed"], state[prefix + "weight_scale"] = packed, scale
