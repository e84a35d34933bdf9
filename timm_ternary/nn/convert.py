"""Whole models: make them ternary, pack them, and make them trainable again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import quantizers
from ..code import TernaryCode
from ..config import TernaryConfig
from ..quantizers import Quantizer
from .forms import layer_code, make_packed, make_plain, make_trainable, tie
from .layer_groups import float_groups, state_groups
from .packed import PackedWeight
from .select import select_layers
from .state_dict import own_prefixes
from .timm_wrapper import describe
from .trainable import latent_weight, quantizer_of

__all__ = [
    "config_of",
    "float_state",
    "install_",
    "is_packed",
    "pack_",
    "plain_",
    "quantizers_of",
    "ternarize_",
    "ternary_layers",
    "unpack_",
]

_M = TypeVar("_M", bound=nn.Module)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def ternary_layers(model: nn.Module, *, every_name: bool = False) -> dict[str, nn.Module]:
    """All ternary layers of `model` by module name, trainable and packed ones alike.

    Args:
        every_name: Name a layer that the model holds in several places (CoaT) in each of them, as
            its state dict does, instead of only in the first.
    """
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=not every_name)
        if isinstance(module, PackedWeight) or quantizer_of(module) is not None
    }


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of `model` without what belongs to its ternary weights: norms, biases, ..."""
    own = own_prefixes(ternary_layers(model, every_name=True))
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(own)}


def quantizers_of(model: nn.Module) -> dict[str, Quantizer]:
    """The quantizer of each trainable ternary layer, by module name of the layer.

    Layers whose weights are tied share one: the first of them names it.
    """
    found: dict[Quantizer, str] = {}
    for name, module in model.named_modules():
        if (quantizer := quantizer_of(module)) is not None:
            found.setdefault(quantizer, name)
    return {name: quantizer for quantizer, name in found.items()}


def is_packed(model: nn.Module) -> bool:
    """Whether any layer of `model` is in the packed form."""
    return any(isinstance(module, PackedWeight) for module in model.modules())


def config_of(model: nn.Module) -> TernaryConfig | None:
    """The configuration that `model` was made ternary with; None for a float model."""
    config: Any = next((m.ternary_config for m in ternary_layers(model).values()), None)
    return config if isinstance(config, TernaryConfig) else None


def ternarize_(model: _M, config: TernaryConfig | Mapping[str, Any] | str | None = None) -> _M:
    """Make a float model ternary and trainable, in place.

    Every selected layer's `weight` becomes the quantized value of a latent weight (the former
    weight), through a parametrization; its thresholds or scales are new parameters.

    Args:
        model: Any module with convolutions or linear layers.
        config: A TernaryConfig, its dict, a method's name, or None for tga on all layers.

    Returns:
        `model`.

    Raises:
        ValueError: Unknown method, option or key; the model is ternary already; it has no layer to
            make ternary, or one whose weight is none of floats (names it). The model is then as
            before.
    """
    return install_(model, TernaryConfig.of(config), packed=False)


def install_(
    model: _M,
    config: TernaryConfig,
    *,
    packed: bool,
    codes: Mapping[str, TernaryCode] | None = None,
) -> _M:
    """Make a float model ternary in either form, in place; see `ternarize_`.

    Args:
        codes: Codes of layers, by name; a layer without one is encoded from its weight.
    """
    quantizers.check(config, coded=packed and bool(codes))
    if ternary_layers(model):
        raise ValueError("the model is ternary already; to change the method, start from floats")
    layers = select_layers(model, config)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no convolution or linear layer to make ternary "
            f"with exclude={list(config.exclude)}"
        )
    groups = float_groups(model)
    codes, first = dict(codes or {}), _first_of_tied(layers)
    # All that can be refused, before the first layer is changed.
    made: dict[str, Quantizer] = {}
    for name in first.values():
        if not (packed and name in codes):
            made[name] = _quantizer(name, layers[name], config)
    if packed:
        for name, layer in layers.items():
            weight: Any = layer.weight
            if name not in codes and not weight.is_meta:
                codes[name] = made[first[name]].encode(weight)
        _pack_layers(layers, dict.fromkeys(layers, config), codes, first)
    else:
        for name, layer in layers.items():
            make_trainable(layer, config, codes.get(name), made[first[name]])
    state_groups(model, groups)
    describe(model, config, "2bit" if packed else None)
    return model


def pack_(model: _M) -> _M:
    """Turn a trainable ternary model into its packed form, in place; its outputs stay the same.

    Latent weights, thresholds and scales as parameters are gone afterwards. A model that is
    packed already is left as it is.

    Raises:
        ValueError: The model is not ternary, or a layer's weights or scales are not finite. The
            model is then as before.
    """
    layers = ternary_layers(model)
    if not layers:
        raise ValueError("the model is not ternary; type: timm_ternary.ternarize_(model)")
    trainable = {n: m for n, m in layers.items() if not isinstance(m, PackedWeight)}
    codes = {name: checked_code(name, layer) for name, layer in trainable.items()}
    configs: dict[str, Any] = {name: layer.ternary_config for name, layer in trainable.items()}
    for layer in trainable.values():
        make_plain(layer)
    _pack_layers(trainable, configs, codes, _first_of_tied(trainable))
    describe(model, config_of(model), "2bit")
    return model


def plain_(model: _M) -> _M:
    """Turn a packed model into a float one, in place: its decoded weights as parameters.

    Weights that were tied are tied again.
    """
    layers = {n: m for n, m in ternary_layers(model).items() if isinstance(m, PackedWeight)}
    _plain_layers(layers, _first_of_packed(layers))
    describe(model, None, None)
    return model


def checked_code(name: str, layer: nn.Module) -> TernaryCode:
    """`layer_code`, or a ValueError that names the layer if it is not finite."""
    code = layer_code(layer)
    values = [code.pos, code.neg]
    if not isinstance(layer, PackedWeight):
        # NaN weights fail every comparison and would pass for zeros: ask the weights themselves.
        values.append(latent_weight(layer))
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise ValueError(f"layer {name!r} holds weights or scales that are not finite")
    return code


def unpack_(model: _M) -> _M:
    """Turn a packed model into a trainable one, in place; its outputs stay the same.

    The latent weights are chosen such that the method gives back the codes and scales (for
    float32 scales to the last bit, or within ``Quantizer.restore_tolerance``); those of the
    training that made them are not in the file.

    Raises:
        ValueError: The model is not packed.
    """
    layers = {n: m for n, m in ternary_layers(model).items() if isinstance(m, PackedWeight)}
    if not layers:
        raise ValueError("the model is not packed; type: timm_ternary.pack_(model)")
    configs: dict[str, Any] = {name: layer.ternary_config for name, layer in layers.items()}
    for config in configs.values():
        quantizers.check(config)  # before the first layer is changed: the method may be missing
    codes = {name: layer.weight_code for name, layer in layers.items()}
    first = _first_of_packed(layers)
    _plain_layers(layers, first)
    for name, layer in layers.items():
        if (origin := first[name]) == name:
            make_trainable(layer, configs[name], codes[name])
        else:
            make_trainable(layer, configs[name], quantizer=quantizer_of(layers[origin]))
    describe(model, config_of(model), None)
    return model


def _first_of_tied(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """For each plain layer the first of those that hold the very same weight."""
    names: dict[int, str] = {}
    return {name: names.setdefault(id(layer.weight), name) for name, layer in layers.items()}


def _first_of_packed(layers: Mapping[str, PackedWeight]) -> dict[str, str]:
    """For each packed layer the first of those that it is tied to, and still equals."""
    found: dict[str, str] = {}
    for name, layer in layers.items():
        tied = (n for n in found if layer.tie is not None and layer.tie == layers[n].tie)
        found[name] = next((n for n in tied if layer.holds_same(layers[n])), name)
    return found


def _quantizer(name: str, layer: nn.Module, config: TernaryConfig) -> Quantizer:
    """The layer's quantizer, or a ValueError that names the layer."""
    weight: Any = layer.weight
    kinds = f"type: exclude=[{name!r}]"
    if is_lazy(weight):
        raise ValueError(
            f"layer {name!r} has no weight yet (a lazy layer): run the model on one batch first, "
            f"or {kinds}"
        )
    if weight.dtype not in _DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise ValueError(
            f"layer {name!r} has weights of {weight.dtype}, and only those of {allowed} are made "
            f"ternary; {kinds}"
        )
    try:
        quantizer: Quantizer = quantizers.create(config, weight)
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}; {kinds}") from error
    return quantizer


def _pack_layers(
    layers: Mapping[str, nn.Module],
    configs: Mapping[str, TernaryConfig],
    codes: Mapping[str, TernaryCode],
    first: Mapping[str, str],
) -> None:
    """Give plain layers the packed form; those that were tied, and are equal, share their codes."""
    for name, layer in layers.items():
        make_packed(layer, configs[name], codes.get(name))
        if (origin := first[name]) != name:
            tie(layers[origin], layer, origin)


def _plain_layers(layers: Mapping[str, nn.Module], first: Mapping[str, str]) -> None:
    for name, layer in layers.items():
        make_plain(layer)
        if (origin := first[name]) != name:
            layer.weight = layers[origin].weight
