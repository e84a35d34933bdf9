"""The trainable form of a layer: its latent weight under a parametrization, the `Quantizer`.

``layer.weight`` is the ternary weight whether the layer is called or only read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..quantizers import Quantizer

__all__ = ["latent_weight", "parametrize_weight", "quantizer_of", "refuse_scripting"]


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


def parametrize_weight(layer: nn.Module, quantizer: nn.Module) -> None:
    """Put the weight of a plain `layer` under `quantizer`, in place; it copies and pickles as ever.

    torch gives the layer a class of its own, in whose property `weight` the layer itself is caught:
    a copy of torch's making shares that class, and inside ``parametrize.cached()`` it would read
    the weight of the layer that it was copied from. And it refuses to pickle.
    """
    # unsafe: a quantizer keeps shape and dtype; the check would quantize once more.
    parametrize.register_parametrization(layer, "weight", quantizer, unsafe=True)
    _make_copyable(layer)


def refuse_scripting(layer: nn.Module) -> nn.Module:
    """What torch.jit.script asks a module for: it cannot compile weights that are properties.

    Raises:
        ValueError: Always; says what to type.
    """
    raise ValueError(
        f"torch.jit.script does not take ternary layers ({type(layer).__name__}): type "
        "torch.jit.trace(model, images), torch.export.export(model, (images,)), or "
        "timm-ternary export"
    )


def _make_copyable(layer: nn.Module) -> None:
    cls: Any = type(layer)
    host: Any = cls.__bases__[0]

    def deepcopied(self: Any, memo: dict[int, Any]) -> nn.Module:
        if id(self) not in memo:
            memo[id(self)] = twin = _blank(host, list(self.parametrizations))
            twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        found: nn.Module = memo[id(self)]
        return found

    def reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
        return _blank, (host, list(self.parametrizations)), host.__getstate__(self)

    if "__deepcopy__" in vars(cls):  # torch's; a host's own goes first
        cls.__deepcopy__ = deepcopied
    cls.__reduce_ex__ = reduced
    cls.__prepare_scriptable__ = refuse_scripting


def _blank(host: type[nn.Module], names: Sequence[str]) -> nn.Module:
    """A layer without content whose class has those properties, and is of no other layer."""
    layer = host.__new__(host)
    nn.Module.__init__(layer)
    for name in names:
        layer.register_parameter(name, nn.Parameter(torch.empty(0)))
        parametrize.register_parametrization(layer, name, nn.Identity(), unsafe=True)
    _make_copyable(layer)
    return layer
