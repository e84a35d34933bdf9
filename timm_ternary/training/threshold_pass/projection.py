"""The gradient of a layer's one scale, without that of its weight: for the pass of the thresholds.

A weight ``q = S t`` moves with the threshold through S alone, and ``dL/dS = <dL/dq, t>``. A layer
that is linear in its input x and in q gives that number away while it computes dL/dx, since

    <dL/dq, q> = <dL/dy, layer(x, q)> = <dL/dx, x>

(without the bias), so q may be told the projection of its gradient on itself, ``<dL/dx, x> q /
<q, q>``, instead of the gradient, whose computation is a third of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ...nn.trainable import quantizer_of
from ...quantizers.base import Quantizer

__all__ = ["has_one_scale", "projected"]

_Layer = Callable[[Any, Tensor, Tensor], Tensor]

_LAYERS: dict[type[nn.Module], _Layer] = {
    nn.Conv2d: lambda layer, x, weight: layer._conv_forward(x, weight, layer.bias),
    nn.Linear: lambda layer, x, weight: F.linear(x, weight, layer.bias),
}
"""Output of a layer of exactly this class for an input and a weight."""


class _Projected(torch.autograd.Function):
    """x as it is; the weight's gradient is its projection on the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dtype = torch.promote_types(grad.dtype, torch.float32)
        # Products of halves overflow, and their squares vanish; squares of 1e-23 do in float32.
        size = weight.to(dtype).abs().max()
        unit = weight.to(dtype) / size.masked_fill(size == 0, 1)
        share = (grad.to(dtype) * x).sum() / size / unit.square().sum()
        # All zeros: either S = 0, a coincidence, or no code that S could scale.
        return grad, (unit * share.masked_fill(size == 0, 0)).to(weight.dtype)


def has_one_scale(layer: nn.Module) -> bool:
    """Whether the parameters of a layer in training form reach its output through one scale.

    And whether the layer is of a class that is known to be linear in input and weight.
    """
    quantizer = quantizer_of(layer)
    return (
        quantizer is not None
        and type(quantizer).forward is Quantizer.forward
        and not quantizer.is_soft
        and (quantizer.groups, quantizer.bases, quantizer.scale_rows) == (1, 1, 1)
        and len(layer.parametrizations["weight"]) == 1  # type: ignore[index]
        and parametrize.type_before_parametrizations(layer) in _LAYERS
        and "forward" not in vars(layer)
    )


@contextmanager
def projected(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, calls of layers with one scale give their weights the projected gradients.

    For gradients of thresholds only, inside `quantized_once`: those of the latent weights are
    wrong. What reads ``layer.weight`` without a call, and other layers, are as ever.

    Args:
        layers: The layers of training form.
    """
    changed = [layer for layer in layers if has_one_scale(layer)]
    try:
        for layer in changed:
            layer.forward = _forward(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward


def _forward(layer: Any) -> Callable[[Tensor], Tensor]:
    call = _LAYERS[parametrize.type_before_parametrizations(layer)]

    def forward(input: Tensor) -> Tensor:  # by torch's name: models may call it by keyword
        weight = layer.weight
        # The images need no gradient, and the first layer's weight costs less than theirs would.
        if input.requires_grad:
            input, weight = _Projected.apply(input, weight), weight.detach()
        return call(layer, input, weight)

    return forward
