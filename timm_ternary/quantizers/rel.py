"""rel: residual expansion, a sum of ternary tensors (He, Gong & Fan, WACV 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..code import TernaryCode
from ..errors.numbers import is_whole
from . import restore
from .base import Quantizer
from .functional import Quantized, row_sum
from .registry import register

__all__ = ["REL", "rel"]

_FACTORS = (0.05, 0.1, 0.15, 0.2)


@torch.no_grad()
def rel(rows: Tensor, factors: Sequence[float] = _FACTORS) -> list[Quantized]:
    """Residual expansion: one term a factor, each of the latent weight itself.

    ``D_k = f_k max|w|``, ``S_k = mean of |w| over |w| > D_k``, codes ``sign(w) [|w| > D_k]``; the
    gradient passes straight through each term (He, Gong & Fan, WACV 2019).

    Args:
        rows: Latent weights, ``(groups, n)``, n > 0.
        factors: f_k (the paper's four).

    Returns:
        A term a factor: codes ``(groups, n)``, scale and thresholds ``(groups, 1)``.
    """
    size = rows.abs()
    largest = size.amax(1, keepdim=True)
    signs = rows.sign()
    terms = []
    for factor in factors:
        threshold = factor * largest
        beyond = (size > threshold).to(rows.dtype)
        scale = (row_sum(size * beyond) / row_sum(beyond).clamp(min=1)).to(rows.dtype)
        terms.append(Quantized(beyond * signs, scale, thresholds=(threshold, -threshold)))
    return terms


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
        if not is_whole(expansions, low=1, high=len(_FACTORS)):
            raise ValueError(f"expansions must be 1, 2, 3 or 4, got {expansions!r}")
        self.expansions = self.bases = int(expansions)

    def quantize_bases(self, rows: Tensor) -> Sequence[Quantized]:
        """See `rel`."""
        return rel(rows, _FACTORS[: self.expansions])

    @torch.no_grad()
    def restore(self, code: TernaryCode) -> Tensor:
        """See `restore.rel`."""
        if not self.fits(code):
            return super().restore(code)
        signs = self.rows(code.codes[0].to(code.pos.dtype))
        depth = self.rows(code.codes.abs().sum(0, dtype=torch.int8))
        scales = [s.expand(self.groups).view(-1, 1).double() for s in code.pos.abs()]
        return restore.rel(signs, depth, scales, _FACTORS[: self.bases]).view(code.shape)
