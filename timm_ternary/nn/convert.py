"""Whole models: make them ternary, pack them, and make them trainable again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import quantizers
from ..code import TernaryCode
from ..config import TernaryConfig
from ..quantizers import Quantizer
from .forms import layer_code, make_packed, make_plain, make_trainable
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
    "quantizers_of",
    "ternarize_",
    "ternary_layers",
    "unpack_",
]

_M = TypeVar("_M", bound=nn.Module)


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
    """The quantizer of each trainable ternary layer, by module name of the layer."""
    found = ((name, quantizer_of(module)) for name, module in model.named_modules())
    return {name: quantizer for name, quantizer in found if quantizer is not None}


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
            make ternary. The model is then as before.
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
    codes = codes or {}
    groups = float_groups(model)
    for name, layer in layers.items():
        (make_packed if packed else make_trainable)(layer, config, codes.get(name))
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
    for name, layer in trainable.items():
        config: Any = layer.ternary_config
        make_plain(layer)
        make_packed(layer, config, codes[name])
    describe(model, config_of(model), "2bit")
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
    for layer in layers.values():
        config: Any = layer.ternary_config
        code = layer.weight_code
        make_plain(layer)
        make_trainable(layer, config, code)
    describe(model, config_of(model), None)
    return model
