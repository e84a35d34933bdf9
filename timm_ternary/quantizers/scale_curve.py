"""The scale of a group as a function of its threshold, where a method trains the threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ScaleCurve", "sample"]

_POINTS = 401  # over +-4 sigma, beyond tga's clip at 3


class ScaleCurve(NamedTuple):
    """S(threshold) of one group of weights; see `Quantizer.scale_curve`.

    Attributes:
        mean, std: Of the group's latent weights, in their units.
        threshold: Where the curve was computed, ``(n,)``, rising, in the weights' units.
        scale: S there, ``(n,)``.
        slope: dS/dthreshold there, as training has it, ``(n,)``.
        present: The group's thresholds at present, ``(bases,)``.
        present_scale: S at `present`, ``(bases,)``.
    """

    mean: float
    std: float
    threshold: Tensor
    scale: Tensor
    slope: Tensor
    present: Tensor
    present_scale: Tensor


@torch.enable_grad()
def sample(
    scale: Callable[[Tensor], Tensor], mean: Tensor, std: Tensor, present: Tensor
) -> ScaleCurve:
    """The curve of a differentiable `scale`, over 4 standard deviations around 0.

    Args:
        scale: Thresholds of any shape to scales of the same shape.
        mean, std: Of the group's latent weights, scalars.
        present: The group's thresholds at present, ``(bases,)``.
    """
    points = std * torch.linspace(-4, 4, _POINTS, dtype=std.dtype, device=std.device)
    points.requires_grad_()
    found = scale(points)
    (slope,) = torch.autograd.grad(found.sum(), points)
    return ScaleCurve(
        mean=mean.item(),
        std=std.item(),
        threshold=points.detach(),
        scale=found.detach(),
        slope=slope,
        present=present,
        present_scale=scale(present),
    )
