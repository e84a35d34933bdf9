"""The soft staircase: two sigmoids in the place of two steps (Yang et al., CVPR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["soft_staircase"]


def soft_staircase(
    rows: Tensor, thresholds: tuple[Tensor, Tensor], pos: Tensor, neg: Tensor, temperature: Tensor
) -> Tensor:
    """The staircase of a ternary method with sigmoids for steps; differentiable in all but u.

    Quantization Networks, equations 5 and 6 of Yang et al. (2019), for three values::

        q = pos * s(T (w - high) / u) - neg * s(T (low - w) / u),   s(x) = 1 / (1 + exp(-x))

    u is the group's standard deviation (divided by n), a constant, so that T means the same in
    all layers; where it is 0, the weights' common magnitude. As T grows, q tends to
    ``pos [w > high] - neg [w < low]``, but for weights that equal a threshold.

    Args:
        rows: Latent weights, ``(groups, n)``.
        thresholds: ``(high, low)``, each ``(groups, 1)``.
        pos: Scale of +, ``(groups, 1)``.
        neg: Scale of -, ``(groups, 1)``.
        temperature: T > 0, a scalar.

    Returns:
        ``(groups, n)``.
    """
    high, low = thresholds
    with torch.no_grad():
        unit = (rows - rows.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
        unit = torch.where(unit > 0, unit, rows[:, :1].abs())
        slope = temperature / torch.where(unit > 0, unit, torch.ones_like(unit))
    plus, minus = torch.sigmoid(slope * (rows - high)), torch.sigmoid(slope * (low - rows))
    return pos * plus - neg * minus
