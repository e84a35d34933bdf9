"""ttq: trained ternary quantization (Zhu et al., ICLR 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..code import TernaryCode
from ..errors.numbers import check_number
from .base import Quantizer
from .functional import Quantized, row_sum
from .registry import register

__all__ = ["TTQ", "threshold", "ttq"]


@torch.no_grad()
def threshold(rows: Tensor, t: float = 0.05, sparsity: float | None = None) -> Tensor:
    """D of ttq, ``(groups, 1)``: ``t max|w|``, or such that a fraction `sparsity` is zero."""
    size = rows.abs()
    if sparsity is None:
        return t * size.amax(1, keepdim=True)
    zeros = round(sparsity * size.shape[1])
    if zeros == 0:
        return torch.zeros_like(size[:, :1])
    return size.kthvalue(zeros, dim=1, keepdim=True).values


def ttq(rows: Tensor, high: Tensor, pos: Tensor, neg: Tensor, unit: Tensor) -> Quantized:
    """Trained ternary quantization: ``+unit |pos|`` above D, ``-unit |neg|`` below -D, else 0.

    The gradient of the scales is that of the formula; ``dq/dw`` is ``{|pos|, 1, |neg|}`` for the
    codes +1, 0 and -1 (Zhu et al., ICLR 2017, section 4).

    Args:
        rows: Latent weights, ``(groups, n)``.
        high: D, ``(groups, 1)``; see `threshold`.
        pos, neg: The trained scales, ``(groups, 1)``; differentiable.
        unit: What they are multiples of, ``(groups, 1)``; a constant.

    Returns:
        Codes ``(groups, n)``; scales and thresholds ``(groups, 1)``.
    """
    codes = (rows > high).to(rows.dtype) - (rows < -high).to(rows.dtype)
    # NaN fails both, and would pass for 0: the scales know nothing of the weights.
    codes = codes + rows.detach() * 0
    # Not abs(): its gradient at 0 is 0, and here that of +.
    pos, neg = (torch.where(s < 0, -s, s) for s in (pos, neg))
    slopes = (pos.detach(), 1.0, neg.detach())
    return Quantized(codes, unit * pos, unit * neg, slopes, (high, -high))


@register
class TTQ(Quantizer):
    r"""Trained ternary quantization: one trainable scale a sign (Zhu et al., ICLR 2017).

    Forward (the paper's section 4)::

        q = +Wp if w > D;  -Wn if w < -D;  else 0
        D = t * max|w|,  or such that a fraction `sparsity` of the group is zero
        Wp = unit * |scale_pos|,  Wn = unit * |scale_neg|

    Backward::

        dL/dscale_pos = unit * sum_{w > D} dL/dq,   dL/dscale_neg = -unit * sum_{w < -D} dL/dq
        dL/dw = {scale_pos, 1, scale_neg} * dL/dq   for {w > D, |w| <= D, w < -D}

    The paper's scales live near 1 because it divides the weights by their maximum. Trained in raw
    weight units they fail (a gradient far too large for a scale of 0.05), so `unit`, the mean of
    |w| beyond D when training begins, stays a constant buffer and the scales are trained from 1.
    They stay positive through the absolute value, whose gradient at 0 is that of +.

    Args:
        weight: Latent weight, ``(out, ...)``.
        granularity: ``"layer"`` (the paper) or ``"channel"``.
        t: Threshold as a fraction of ``max|w|`` (the paper's equation 9: 0.05), 0 <= t < 1.
        sparsity: Fraction of zeros to hold constant, 0 <= sparsity < 1, instead of `t`
            (the paper's second rule, section 5.1.1).

    Raises:
        ValueError: `t` or `sparsity` is out of its range.
    """

    name = "ttq"
    has_thresholds = True
    scale_rows = 2

    def __init__(
        self,
        weight: Tensor,
        *,
        granularity: str | None = None,
        t: float = 0.05,
        sparsity: float | None = None,
    ) -> None:
        super().__init__(weight, granularity=granularity)
        self.t = check_number("t", t, low=0, below=1)
        self.sparsity = sparsity
        if sparsity is not None:
            self.sparsity = check_number("sparsity", sparsity, low=0, below=1)
        ones = self.rows(weight).new_ones(self.groups)
        self.scale_pos = nn.Parameter(ones)
        self.scale_neg = nn.Parameter(ones.clone())
        self.unit: Tensor
        self.register_buffer("unit", ones.clone())
        self.reset(weight)

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        """Both scales 1; unit = mean of |w| over the weights beyond the threshold."""
        self.scale_pos.fill_(1)
        self.scale_neg.fill_(1)
        if weight.numel():
            size = self.rows(weight).abs()
            beyond = size > threshold(size, self.t, self.sparsity)
            mean = (row_sum(size * beyond) / row_sum(beyond).clamp(min=1)).view(-1).to(size.dtype)
            # A group of zeros has no magnitude to keep; that of a fresh layer lets it grow.
            fallback = 1 / math.sqrt(max(weight[0].numel(), 1))
            self.unit.copy_(torch.where(mean > 0, mean, fallback))

    def quantize(self, rows: Tensor) -> Quantized:
        """See `ttq`."""
        high = threshold(rows, self.t, self.sparsity)
        pos, neg = (s.to(rows.dtype).view(-1, 1) for s in (self.scale_pos, self.scale_neg))
        # A copy: DistributedDataParallel broadcasts buffers in place when its forward begins, and
        # the Trainer has read the weights by then (torch 2.11 refuses the backward pass).
        unit = self.unit.to(rows.dtype, copy=True).view(-1, 1)
        return ttq(rows, high, pos, neg, unit)

    @torch.no_grad()
    def restore(self, code: TernaryCode) -> Tensor:
        """The codes times one magnitude: the threshold then falls between it and 0."""
        if not self.fits(code):
            return super().restore(code)
        pos, neg = (scale[0].expand(self.groups) for scale in (code.pos, code.neg))
        mean = (pos + neg) / 2
        # A power of two: unit * scale then gives back pos and neg to the last bit.
        unit = torch.where(mean > 0, mean.clamp(min=1e-30).log2().round().exp2(), 1.0)
        self.unit.copy_(unit)
        self.scale_pos.copy_(pos / unit)
        self.scale_neg.copy_(neg / unit)
        size = torch.where(mean > 0, mean, unit).view(-1, 1)
        return (self.rows(code.codes[0].to(pos.dtype)) * size).view(code.shape)
