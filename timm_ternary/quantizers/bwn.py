"""bwn: binary weight networks (Rastegari et al., XNOR-Net, ECCV 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Quantizer, register
from .straight_through import Quantized, row_sum, sign

__all__ = ["BWN"]


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

    def __init__(self, weight: Tensor, *, granularity: str | None = None) -> None:
        super().__init__(weight, granularity=granularity)

    @torch.no_grad()
    def quantize(self, rows: Tensor) -> Quantized:
        """The sign and the mean magnitude; see the class."""
        size = rows.abs()
        scale = row_sum(size) / rows.shape[1]
        inside = (size <= 1).to(rows.dtype)
        return Quantized(sign(rows), scale.to(rows.dtype), slopes=(inside,) * 3)
