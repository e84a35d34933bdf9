"""dorefa: DoReFa-Net 1-32-32, binary weights (Zhou et al., 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Quantizer, register
from .straight_through import Quantized, row_sum, sign

__all__ = ["DoReFa"]


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

    def __init__(self, weight: Tensor, *, granularity: str | None = None) -> None:
        super().__init__(weight, granularity=granularity)

    @torch.no_grad()
    def quantize(self, rows: Tensor) -> Quantized:
        """The sign and the mean magnitude; see the class."""
        scale = row_sum(rows.abs()) / rows.shape[1]
        return Quantized(sign(rows), scale.to(rows.dtype))
