"""bwn: binary weight networks (Rastegari et al., XNOR-Net, ECCV 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Quantizer
from .functional import Quantized, row_sum, sign
from .registry import register

__all__ = ["BWN", "bwn"]


@torch.no_grad()
def bwn(rows: Tensor) -> Quantized:
    """Binary weight networks: ``a = mean|w|``, codes ``sign(w)`` with sign(0) = +1.

    The gradient passes where ``|w| <= 1`` (Rastegari et al., 2016, section 3.1, equation 6).

    Args:
        rows: Latent weights, ``(groups, n)``, n > 0.

    Returns:
        Codes ``(groups, n)``, scale ``(groups, 1)``.
    """
    size = rows.abs()
    scale = row_sum(size) / rows.shape[1]
    inside = (size <= 1).to(rows.dtype)
    return Quantized(sign(rows), scale.to(rows.dtype), slopes=(inside,) * 3)


@register
class BWN(Quantizer):
    """Binary weight networks: one scale an output channel (Rastegari et al., 2016).

    Forward (the paper's section 3.1, equation 6)::

        a = mean|w|
        q = a * sign(w),  sign(0) = +1

    Backward: straight through where the sign's hard-tanh surrogate has a slope::

        dq/dw = [|w| <= 1]

    Args:
        weight: Latent weight, ``(out, ...)``.
        granularity: ``"channel"`` (the paper, default) or ``"layer"``.
    """

    name = "bwn"
    default_granularity = "channel"

    def quantize(self, rows: Tensor) -> Quantized:
        """See `bwn`."""
        return bwn(rows)
