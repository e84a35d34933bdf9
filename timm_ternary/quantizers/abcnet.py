"""abcnet: accurate binary convolution, weights only (Lin et al., ABC-Net, NeurIPS 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Quantized, Quantizer, register, row_sum, sign

__all__ = ["ABCNet"]


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

    A packed file does not hold mean and std of the latent weights, and no choice of weights has the
    same codes and scales in every case: a restored weight is the decoded one, whose M thresholds
    may fall elsewhere (``restore_tolerance`` is infinite).

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
        if type(bases) is not int or not 1 <= bases <= 8:
            raise ValueError(f"bases must be an integer from 1 to 8, got {bases!r}")
        self.bases = bases

    def _shifts(self) -> list[float]:
        """u_1 to u_M."""
        steps = max(self.bases - 1, 1)
        return [0.0] if self.bases == 1 else [-1 + 2 * i / steps for i in range(self.bases)]

    @torch.no_grad()
    def quantize_bases(self, rows: Tensor) -> Sequence[Quantized]:
        """The binary tensors and their least squares scales; see the class."""
        count = rows.shape[1]
        mean = row_sum(rows) / count
        centred = rows - mean.to(rows.dtype)
        std = (row_sum(centred.square()) / max(count - 1, 1)).sqrt().to(rows.dtype)
        signs = [sign(centred + shift * std) for shift in self._shifts()]
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
