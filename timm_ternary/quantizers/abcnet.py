"""abcnet: accurate binary convolution, weights only (Lin et al., ABC-Net, NeurIPS 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..code import TernaryCode
from ..errors.numbers import is_whole
from . import restore
from .base import Quantizer
from .functional import Quantized, row_sum, row_variance, sign
from .registry import register

__all__ = ["ABCNet", "abcnet"]


@torch.no_grad()
def abcnet(rows: Tensor, bases: int = 3) -> list[Quantized]:
    """ABC-Net: binary tensors at M shifts of the mean, and their least squares scales.

    ``B_i = sign(w - mean + u_i std)`` with u_i from -1 to 1 (0 for M = 1), and the ``a`` that
    minimizes ``|w - sum_i a_i B_i|^2``; the gradient of term i is ``a_i`` (Lin et al., 2017,
    equations 1 to 6).

    Args:
        rows: Latent weights, ``(groups, n)``, n > 0.
        bases: M.

    Returns:
        M terms: codes ``(groups, n)``, scale ``(groups, 1)``.
    """
    count = rows.shape[1]
    mean = row_sum(rows) / count
    centred = rows - mean.to(rows.dtype)
    variance, unit = row_variance(rows, mean.to(rows.dtype), max(count - 1, 1))
    std = unit * variance.sqrt().to(rows.dtype)
    shifts = [-1 + 2 * i / (bases - 1) for i in range(bases)] if bases > 1 else [0.0]
    signs = [sign(centred + shift * std) for shift in shifts]
    scales = _least_squares(signs, rows)
    return [Quantized(b, a, slopes=(a, a, a)) for b, a in zip(signs, scales, strict=True)]


def _least_squares(signs: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """a of least norm that minimizes ``|rows - sum_i a_i signs_i|``: M of ``(groups, 1)``."""
    # Normal equations, in units of n: a Gram matrix of numbers from -1 to 1, exact in float64.
    count = rows.shape[1]
    gram = torch.cat([row_sum(a * b) for a in signs for b in signs], 1) / count
    moments = torch.cat([row_sum(b * rows) for b in signs], 1) / count
    gram = gram.view(-1, len(signs), len(signs))
    # Two tensors that differ in one of n places leave an eigenvalue of 2 / n or more.
    inverse = torch.linalg.pinv(gram, rtol=1e-12, hermitian=True)
    solution = (inverse @ moments.unsqueeze(2)).to(rows.dtype)
    return [solution[:, i] for i in range(len(signs))]


@register
class ABCNet(Quantizer):
    """ABC-Net: a linear combination of binary tensors (Lin et al., 2017; weights only).

    Forward (the paper's equations 1 to 4), with the group's mean and standard deviation::

        B_i = sign(w - mean + u_i * std),  u_i = -1 + 2 (i - 1) / (M - 1)  (0 for M = 1)
        a   = argmin_a |w - sum_i a_i B_i|^2
        q   = sum_i a_i B_i

    Backward (equation 6): straight through each B_i, so ``dq/dw = sum_i a_i``.

    std is ``torch.std`` (Bessel's correction), 0 for one element. Where some B_i coincide, a is
    the least squares solution of least norm. B_i never holds 0: sign(0) = +1.

    A packed file does not hold mean and std of the latent weights. `restore` finds weights of the
    same codes, and scales equal to rounding, where the distribution is bell-shaped; in layers of a
    few weights or of another shape its thresholds may fall elsewhere (``restore_tolerance`` is
    infinite: nothing is promised).

    Args:
        weight: Latent weight, ``(out, ...)``.
        granularity: ``"layer"`` (the paper) or ``"channel"``.
        bases: M, 1 to 8 (the paper reports 1, 2, 3 and 5).

    Raises:
        ValueError: `bases` is not an integer from 1 to 8.
    """

    name = "abcnet"
    restore_tolerance = math.inf

    def __init__(self, weight: Tensor, *, granularity: str | None = None, bases: int = 3) -> None:
        super().__init__(weight, granularity=granularity)
        if not is_whole(bases, low=1, high=8):
            raise ValueError(f"bases must be an integer from 1 to 8, got {bases!r}")
        self.bases = int(bases)

    def quantize_bases(self, rows: Tensor) -> Sequence[Quantized]:
        """See `abcnet`."""
        return abcnet(rows, self.bases)

    @torch.no_grad()
    def restore(self, code: TernaryCode) -> Tensor:
        """See `restore.abcnet`."""
        weight = code.decode()
        if self.bases == 1 or not self.fits(code):
            return weight
        depth = self.rows((code.codes > 0).sum(0))
        return restore.abcnet(self.rows(weight), depth, self.bases).view(code.shape)
