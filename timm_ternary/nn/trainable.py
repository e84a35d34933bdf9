"""The trainable form of a layer: its latent weight under a parametrization, the `Quantizer`.

``layer.weight`` is the ternary weight whether the layer is called or only read.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ..quantizers import Quantizer

__all__ = ["latent_weight", "quantizer_of"]


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
