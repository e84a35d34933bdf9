"""The soft staircase: two sigmoids in the place of two steps (Yang et al., CVPR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["soft_staircase", "spread"]


def soft_staircase(
    rows: Tensor, thresholds: tuple[Tensor, Tensor], pos: Tensor, neg: Tensor, slope: Tensor
) -> Tensor:
    """The staircase of a ternary method with sigmoids for steps; differentiable in all arguments.

    The quantization function of Quantization Networks (Yang et al., 2019), for three values::

        q = pos * s(b (w - high)) - neg * s(b (low - w)),   s(x) = 1 / (1 + exp(-x))

    As b grows, q tends to ``pos [w > high] - neg [w < low]``, but for weights that equal a
    threshold.

    Args:
        rows: Latent weights, ``(groups, n)``.
        thresholds: ``(high, low)``, each ``(groups, 1)``.
        pos: Scale of +, ``(groups, 1)``.
        neg: Scale of -, ``(groups, 1)``.
        slope: b > 0, ``(groups, 1)``.

    Returns:
        ``(groups, n)``.
    """
    high, low = thresholds
    plus, minus = torch.sigmoid(slope * (rows - high)), torch.sigmoid(slope * (low - rows))
    return pos * plus - neg * minus


@torch.no_grad()
def spread(rows: Tensor) -> Tensor:
    """The unit in which a temperature means the same in all layers: ``(groups, 1)`` of the rows.

    The standard deviation, divided by n; of equal weights their magnitude, of zeros 1.
    """
    centred = rows - rows.mean(1, keepdim=True)
    unit = centred.square().mean(1, keepdim=True).sqrt()
    unit = torch.where(unit > 0, unit, rows[:, :1].abs())
    return torch.where(unit > 0, unit, torch.ones_like(unit))
