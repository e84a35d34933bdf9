"""bitnet: absmean ternary weights (Ma et al., BitNet b1.58, 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..code import TernaryCode
from .base import Quantizer, register
from .straight_through import Quantized, row_sum

__all__ = ["BitNet"]


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

    def __init__(self, weight: Tensor, *, granularity: str | None = None) -> None:
        super().__init__(weight, granularity=granularity)

    @torch.no_grad()
    def quantize(self, rows: Tensor) -> Quantized:
        """The absmean rule; see the class."""
        scale = (row_sum(rows.abs()) / rows.shape[1]).to(rows.dtype)
        unit = scale.clamp(min=torch.finfo(rows.dtype).tiny)
        codes = (rows / unit).round().clamp(-1, 1)
        return Quantized(codes, scale, thresholds=(unit / 2, -unit / 2))

    @torch.no_grad()
    def restore(self, code: TernaryCode) -> Tensor:
        """One magnitude wherever the code is not 0, larger than S, so that the mean is S.

        The magnitude ``S n / nonzeros`` has rounding errors that add up; the first nonzero weight
        takes them, or the zeros where it is alone.
        """
        if code.pos.shape[1] > self.groups or code.bases > 1 or code.codes.numel() == 0:
            return super().restore(code)
        codes = self.rows(code.codes[0].to(code.pos.dtype))
        target = row_sum(code.pos[0].expand(self.groups).view(-1, 1)) * codes.shape[1]
        count = row_sum(codes.abs())
        size = (target / count.clamp(min=1)).to(codes.dtype)
        above = size.abs() * count > target.abs()
        size = torch.where(above, torch.nextafter(size, torch.zeros_like(size)), size)
        rest = target - size * count
        alone = count == 1
        small = torch.where(alone, rest / (codes.shape[1] - count).clamp(min=1), 0)
        rows = (
            torch.where(codes == 0, small.to(codes.dtype), size).broadcast_to(codes.shape).clone()
        )
        first = codes.abs().argmax(1, keepdim=True)
        added = torch.where(alone, 0, rest).to(codes.dtype)
        rows.scatter_add_(1, first, added.masked_fill(count == 0, 0))
        return torch.where(codes < 0, -rows, rows).view(code.shape)
