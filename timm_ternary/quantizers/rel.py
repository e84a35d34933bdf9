"""rel: residual expansion, a sum of ternary tensors (He, Gong & Fan, WACV 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..code import TernaryCode
from .base import Quantizer, register
from .straight_through import Quantized, row_sum

__all__ = ["REL"]

_FACTORS = (0.05, 0.1, 0.15, 0.2)
# Keeps restored weights clear of the thresholds, and covers the rounding of float32 scales.
_MARGIN = 2.0**-20


@register
class REL(Quantizer):
    """Residual expansion: several ternary tensors of one latent weight (He et al., WACV 2019).

    Forward, for k = 1 to `expansions`::

        D_k = f_k * max|w|,  f = 0.05, 0.1, 0.15, 0.2
        S_k = mean of |w| over |w| > D_k
        q   = sum_k S_k * sign(w) [|w| > D_k]

    Backward: straight through each term, so ``dq/dw = expansions``.

    Args:
        weight: Latent weight, ``(out, ...)``.
        granularity: ``"layer"`` (the paper) or ``"channel"``.
        expansions: Number of ternary tensors, 1 to 4 (the paper's t_ex; it reports 1, 2 and 4).

    Raises:
        ValueError: `expansions` is not 1, 2, 3 or 4.
    """

    name = "rel"
    has_thresholds = True
    restore_tolerance = 1e-6

    def __init__(
        self, weight: Tensor, *, granularity: str | None = None, expansions: int = 2
    ) -> None:
        super().__init__(weight, granularity=granularity)
        if type(expansions) is not int or not 1 <= expansions <= len(_FACTORS):
            raise ValueError(f"expansions must be 1, 2, 3 or 4, got {expansions!r}")
        self.expansions = self.bases = expansions

    @torch.no_grad()
    def quantize_bases(self, rows: Tensor) -> Sequence[Quantized]:
        """One term a threshold; see the class."""
        size = rows.abs()
        largest = size.amax(1, keepdim=True)
        signs = rows.sign()
        terms = []
        for factor in _FACTORS[: self.expansions]:
            threshold = factor * largest
            beyond = (size > threshold).to(rows.dtype)
            scale = (row_sum(size * beyond) / row_sum(beyond).clamp(min=1)).to(rows.dtype)
            terms.append(Quantized(beyond * signs, scale, thresholds=(threshold, -threshold)))
        return terms

    @torch.no_grad()
    def restore(self, code: TernaryCode) -> Tensor:
        """One magnitude a level: the weights between two thresholds, and those beyond the last.

        With N_k weights beyond D_k, those between D_k and D_(k+1) sum up to
        ``N_k S_k - N_(k+1) S_(k+1)``. The largest weight sets the thresholds: it lies where they
        separate all levels. The scales come back to the last bit, but where a level holds so few
        of the weights that its sum is lost in the rounding of S_k: there to 1e-6.
        """
        fits = code.bases == self.bases and code.pos.shape[1] <= self.groups
        if not fits or code.codes.numel() == 0:
            return super().restore(code)
        signs = self.rows(code.codes[0].to(code.pos.dtype))
        depth = self.rows(code.codes.abs().sum(0, dtype=torch.int8))
        masks = [depth == k for k in range(1, self.bases + 1)]
        counts = [row_sum(mask) for mask in masks]
        scales = [s.expand(self.groups).view(-1, 1).double() for s in code.pos.abs()]
        largest = _largest(counts, scales)

        rows = torch.zeros_like(signs)
        total = torch.zeros_like(largest)
        for k in reversed(range(self.bases)):
            beyond = sum(counts[k:], torch.zeros_like(largest))
            low = _FACTORS[k] * largest * (1 + _MARGIN)
            free = masks[k].to(rows.dtype)
            target = beyond * scales[k] - total
            if k == self.bases - 1:
                # The largest itself stands apart.
                first = free.argmax(1, keepdim=True)
                top = torch.where(counts[k] > 1, largest, scales[k]).to(rows.dtype)
                top = top * free.gather(1, first)
                free = free.scatter(1, first, 0)
                rows = rows.scatter_add(1, first, top)
                total = total + top
                target, high = target - top, largest
            else:
                high = _FACTORS[k + 1] * largest * (1 - _MARGIN)
            rows = rows + _fill(free, target, low, high)
            total = row_sum(rows)
        return (rows * signs).view(code.shape)


def _largest(counts: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    """A maximum whose thresholds separate the levels, ``(groups, 1)``, all in float64.

    Between bounds from every level's mean, each wider by what the rounding of S_k leaves open.
    """
    count, scale = counts[-1], scales[-1]
    low = scale
    others = (count - 1).clamp(min=0)
    high = torch.where(count > 1, count * scale / (1 + others * _FACTORS[len(counts) - 1]), scale)
    beyond, above = count, count * scale
    for k in reversed(range(len(counts) - 1)):
        beyond = beyond + counts[k]
        sums = beyond * scales[k]
        mean = (sums - above) / counts[k].clamp(min=1)
        slack = 2.0**-24 * (sums + above) / counts[k].clamp(min=1)
        some = counts[k] > 0
        low = torch.where(some, torch.maximum(low, (mean - slack) / _FACTORS[k + 1]), low)
        high = torch.where(some, torch.minimum(high, (mean + slack) / _FACTORS[k]), high)
        above = sums
    return torch.where(count > 1, (low + high) / 2, scale)


def _fill(free: Tensor, target: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Equal values from low to high where `free` is 1, whose sum is `target` as nearly as can be.

    The first one takes the rounding errors of the others.
    """
    count = row_sum(free)
    value = torch.clamp(target / count.clamp(min=1), low, high).to(free.dtype)
    rest = torch.clamp(target - value * (count - 1), low, high).to(free.dtype)
    first = free.argmax(1, keepdim=True)
    return (value * free).scatter(1, first, torch.where(count > 0, rest, 0).to(free.dtype))
