"""bitnet: absmean ternary weights (Ma et al., BitNet b1.58, 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..code import TernaryCode
from . import restore
from .base import Quantizer
from .functional import Quantized, row_sum
from .registry import register

__all__ = ["BitNet", "bitnet"]


@torch.no_grad()
def bitnet(rows: Tensor) -> Quantized:
    """BitNet b1.58's absmean rule: ``S = mean|w|``, codes ``clip(round(w / S), -1, 1)``.

    Halves are rounded to even, so to 0; the gradient passes straight through (Ma et al., 2024,
    equations 1 to 3).

    Args:
        rows: Latent weights, ``(groups, n)``, n > 0.

    Returns:
        Codes ``(groups, n)``, scale and thresholds ``(groups, 1)``.
    """
    scale = (row_sum(rows.abs()) / rows.shape[1]).to(rows.dtype)
    unit = scale.clamp(min=torch.finfo(rows.dtype).tiny)
    codes = (rows / unit).round().clamp(-1, 1)
    return Quantized(codes, scale, thresholds=(unit / 2, -unit / 2))


@register
class BitNet(Quantizer):
    """BitNet b1.58: round the weights in units of their mean magnitude (Ma et al., 2024).

    Forward (the paper's equations 1 to 3)::

        S = mean|w|
        t = clip(round(w / S), -1, 1)        halves are rounded to even, so to 0
        q = S t

    Backward: ``dq/dw = 1``.

    Args:
        weight: Latent weight, ``(out, ...)``.
        granularity: ``"layer"`` (the paper) or ``"channel"``.
    """

    name = "bitnet"
    has_thresholds = True

    def quantize(self, rows: Tensor) -> Quantized:
        """See `bitnet`."""
        return bitnet(rows)

    @torch.no_grad()
    def restore(self, code: TernaryCode) -> Tensor:
        """See `restore.bitnet`."""
        if not self.fits(code):
            return super().restore(code)
        codes = self.rows(code.codes[0].to(code.pos.dtype))
        scale = code.pos[0].expand(self.groups).view(-1, 1)
        return restore.bitnet(codes, scale).view(code.shape)
