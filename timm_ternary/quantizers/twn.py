"""twn: ternary weight networks (Li & Liu, 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Quantizer
from .functional import Quantized, row_sum
from .registry import register

__all__ = ["TWN", "twn"]


@torch.no_grad()
def twn(rows: Tensor) -> Quantized:
    """Ternary weight networks: the closed form that approximates the least squares fit.

    ``D = 0.7 mean|w|``, ``S = mean of |w| over |w| > D``, codes ``sign(w) [|w| > D]``; the
    gradient passes straight through (Li & Liu, 2016, section 2.3).

    Args:
        rows: Latent weights, ``(groups, n)``, n > 0.

    Returns:
        Codes ``(groups, n)``, scale and thresholds ``(groups, 1)``.
    """
    size = rows.abs()
    threshold = (0.7 * row_sum(size) / rows.shape[1]).to(rows.dtype)
    beyond = (size > threshold).to(rows.dtype)
    scale = row_sum(size * beyond) / row_sum(beyond).clamp(min=1)
    steps = (threshold, -threshold)
    return Quantized(beyond * rows.sign(), scale.to(rows.dtype), thresholds=steps)


@register
class TWN(Quantizer):
    """Ternary weight networks (Li & Liu, 2016): nothing but the weights is trained.

    Forward::

        D = 0.7 * mean|w|
        S = mean of |w| over |w| > D
        q = S * sign(w) [|w| > D]

    Backward: ``dq/dw = 1``.

    Args:
        weight: Latent weight, ``(out, ...)``.
        granularity: ``"layer"`` (the paper) or ``"channel"``.
    """

    name = "twn"
    has_thresholds = True

    def quantize(self, rows: Tensor) -> Quantized:
        """See `twn`."""
        return twn(rows)
