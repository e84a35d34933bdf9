"""tga: truncated Gaussian approximation (He & Fan, CVPR 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..code import TernaryCode
from ..errors.numbers import is_number
from . import restore
from .base import Quantizer
from .functional import Quantized
from .gaussian import Moments, inverse_mills, row_moments, truncated_scale
from .registry import register
from .scale_curve import ScaleCurve, sample

__all__ = ["TGA", "inverse_mills", "tga"]

_MAX_BASES = 8  # as abcnet's; the papers go up to 4 and 5


def tga(
    rows: Tensor,
    threshold: Tensor,
    moments: Moments | None = None,
    *,
    gradient_correctness: bool = True,
    keep_flat: bool = True,
) -> Quantized:
    """Truncated Gaussian approximation: ``S t`` with ``t = [w > mu + dc] - [w < mu - dc]``.

    ``dc`` is ``|threshold|``, 3 sigma at most, and S the mean of a Gaussian's tail beyond it
    (`truncated_scale`, through which the gradient reaches the threshold); ``dq/dw = 1`` (He & Fan,
    CVPR 2019, equations 9 to 15).

    Args:
        rows: Latent weights, ``(groups, n)``, n > 0.
        threshold: ``(groups, 1)``; differentiable.
        moments: mu and sigma, with their gradient if they have one (default: those of `rows`, held
            constant as in the paper).
        gradient_correctness: False: ``dq/dw = S``, the paper's ablation.
        keep_flat: Represent a row of equal weights exactly, with S = |w|; of a sum of several
            thresholds only the first does, and the others have S = 0.

    Returns:
        Codes ``(groups, n)``, scale and thresholds ``(groups, 1)``.
    """
    if moments is None:
        with torch.no_grad():
            moments = row_moments(rows)
    mean, std, flat = moments
    scale, clipped = truncated_scale(threshold, mean, std)
    equal = rows[:, :1].detach().abs().to(scale.dtype) * float(keep_flat)
    scale = torch.where(flat, equal, scale).to(rows.dtype)
    high = (mean + clipped).masked_fill(flat, 0).to(rows.dtype)
    low = (mean - clipped).masked_fill(flat, 0).to(rows.dtype)
    with torch.no_grad():
        # (w > high) - (w < low), in a third of the time: masks become numbers slowly.
        codes = (rows - rows.clamp(low, high)).sign_()
    slopes = None if gradient_correctness else (scale.detach(),) * 3
    return Quantized(codes, scale, slopes=slopes, thresholds=(high, low))


@register
class TGA(Quantizer):
    r"""Truncated Gaussian approximation: trainable thresholds (He & Fan, CVPR 2019).

    Forward, with mean mu and standard deviation sigma of the group (equations 9 to 11)::

        dc = clip(|threshold|, 0, 3 sigma),  a = dc / sigma
        S  = mu + sigma * phi(a) / (1 - Phi(a))
        t  = +1 if w > mu + dc;  -1 if w < mu - dc;  else 0
        q  = S t

    Backward (equations 14 and 15)::

        dq/dw         = 1              ("gradient correctness"; S without it)
        dS/dthreshold = l(a) (l(a) - a) sign(threshold) [|threshold| < 3 sigma]
        l             = phi / (1 - Phi)

    sigma is ``torch.std`` (Bessel's correction), 0 for one element. A group whose weights are all
    equal has sigma = 0 and no Gaussian: its weights are represented exactly, ``t = sign(w)``,
    ``S = |w|``. (Equation 11 taken literally would silence it for ever, and every depthwise 1x1
    channel with it.)

    With several initial factors, a sum of ternary tensors of one latent weight, as `rel` (He, Gong
    & Fan, WACV 2019), but each with its own trainable threshold and the S that follows from it::

        q = sum_k S_k t_k,   dq/dw = the number of terms (gradient correctness)

    `restore` then promises nothing (``restore_tolerance`` is infinite): of two terms it finds
    weights of the same codes, and scales equal to rounding, where the distribution is bell-shaped;
    of more terms, or in layers of a few weights, the scales may differ by some per cent.

    Args:
        weight: Latent weight, ``(out, ...)``.
        granularity: ``"layer"`` (the paper) or ``"channel"``.
        init_factor: The initial threshold is ``init_factor * max|w|`` (section IV-C: 0.1); a list,
            e.g. [0.05, 0.1]: one ternary tensor and threshold each, 1 to 8.
        gradient_correctness: False is the paper's ablation (Table I).
        stats_grad: Let gradients flow through mu and sigma too (the paper holds them constant).

    Raises:
        ValueError: `init_factor` is not a finite number >= 0 or a list of them, or a flag is not
            a bool.
    """

    name = "tga"
    update = "alternate"
    has_thresholds = True

    def __init__(
        self,
        weight: Tensor,
        *,
        granularity: str | None = None,
        init_factor: float | Sequence[float] = 0.1,
        gradient_correctness: bool = True,
        stats_grad: bool = False,
    ) -> None:
        super().__init__(weight, granularity=granularity)
        factors: list[Any]
        factors = list(init_factor) if isinstance(init_factor, Sequence) else [init_factor]
        numbers = all(is_number(factor, low=0) for factor in factors)
        if not numbers or not 1 <= len(factors) <= _MAX_BASES:
            raise ValueError(
                f"init_factor must be a finite number >= 0, e.g. 0.1, or a list of 1 to "
                f"{_MAX_BASES}, e.g. [0.05, 0.1]; got {init_factor!r}"
            )
        flags = {"gradient_correctness": gradient_correctness, "stats_grad": stats_grad}
        for key, flag in flags.items():
            if not isinstance(flag, bool):
                raise ValueError(f"{key} must be true or false, got {flag!r}")
        self._factors = [float(factor) for factor in factors]
        self.bases = len(factors)
        if self.bases > 1:
            self.restore_tolerance = math.inf
        self.init_factor = self._factors if isinstance(init_factor, Sequence) else self._factors[0]
        self.gradient_correctness = gradient_correctness
        self.stats_grad = stats_grad
        self.threshold = nn.Parameter(self.rows(weight).new_zeros(self.bases * self.groups))
        self.reset(weight)

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        """threshold = init_factor * max|w|."""
        if weight.numel():
            largest = self.rows(weight).abs().amax(1)
            self.threshold.copy_(torch.cat([factor * largest for factor in self._factors]))

    def quantize_bases(self, rows: Tensor) -> Sequence[Quantized]:
        """See `tga`: one term a threshold, the moments computed once."""
        with torch.set_grad_enabled(self.stats_grad and torch.is_grad_enabled()):
            moments = row_moments(rows)
        return [
            tga(
                rows,
                threshold,
                moments,
                gradient_correctness=self.gradient_correctness,
                keep_flat=k == 0,
            )
            for k, threshold in enumerate(self.threshold.view(self.bases, -1, 1))
        ]

    def scale_curve(self, weight: Tensor, group: int = 0) -> ScaleCurve | None:
        """S and dS/dthreshold over +-4 sigma (Figure 3b); the slope is autograd's own."""
        rows = self.rows(weight.detach())[group : group + 1]
        if rows.numel() == 0:
            return None
        mean, std, flat = (moment.view(()) for moment in row_moments(rows))
        if flat:
            return None
        present = self.threshold.detach().view(self.bases, -1)[:, group].to(std.dtype)
        return sample(lambda at: truncated_scale(at, mean, std)[0], mean, std, present)

    @torch.no_grad()
    def restore(self, code: TernaryCode) -> Tensor:
        """See `restore.tga`; for several thresholds `restore.tga_sum`."""
        if not self.fits(code):
            return super().restore(code)
        scales = code.pos.expand(self.bases, self.groups).unsqueeze(2)
        if self.bases == 1:
            codes = self.rows(code.codes[0].to(code.pos.dtype))
            rows, threshold = restore.tga(codes, scales[0])
        else:
            rows, threshold = restore.tga_sum(self.rows(code.decode()), scales.double())
        self.threshold.copy_(threshold.view(-1))
        return rows.view(code.shape)
