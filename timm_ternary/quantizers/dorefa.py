"""dorefa: DoReFa-Net 1-32-32, binary weights (Zhou et al., 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Quantizer
from .functional import Quantized, row_sum, sign
from .registry import register

__all__ = ["DoReFa", "dorefa"]


@torch.no_grad()
def dorefa(rows: Tensor) -> Quantized:
    """DoReFa-Net, 1-bit weights: ``S = mean|w|``, codes ``sign(w)`` with sign(0) = +1.

    The gradient passes straight through (Zhou et al., 2016, equations 7 and 8).

    Args:
        rows: Latent weights, ``(groups, n)``, n > 0.

    Returns:
        Codes ``(groups, n)``, scale ``(groups, 1)``.
    """
    scale = row_sum(rows.abs()) / rows.shape[1]
    return Quantized(sign(rows), scale.to(rows.dtype))


@register
class DoReFa(Quantizer):
    """DoReFa-Net with 1-bit weights, 32-bit activations and gradients (Zhou et al., 2016).

    Forward (the paper's equation 7)::

        S = mean|w|
        q = S * sign(w),  sign(0) = +1

    Backward (equation 8): ``dq/dw = 1``.

    Args:
        weight: Latent weight, ``(out, ...)``.
        granularity: ``"layer"`` (the paper) or ``"channel"``.
    """

    name = "dorefa"

    def quantize(self, rows: Tensor) -> Quantized:
        """See `dorefa`."""
        return dorefa(rows)
