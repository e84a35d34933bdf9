"""tga: truncated Gaussian approximation (He & Fan, CVPR 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..code import TernaryCode
from .base import Quantizer, register
from .scale_curve import ScaleCurve
from .straight_through import Quantized, row_sum

__all__ = ["TGA", "inverse_mills"]

_MAX_BASES = 8  # as abcnet's; the papers go up to 4 and 5
_CURVE_POINTS = 401  # over +-4 sigma, beyond the clip at 3
_NEWTON_STEPS = 8  # to the last bit for S up to its clip at 3 sigma
# Keeps restored thresholds clear of the levels.
_MARGIN = 2.0**-20


class _InverseMills(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, alpha: Tensor) -> Tensor:
        ratio = math.sqrt(2 / math.pi) / torch.special.erfcx(alpha / math.sqrt(2))
        ctx.save_for_backward(alpha, ratio)
        return ratio

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        alpha, ratio = ctx.saved_tensors
        return grad * ratio * (ratio - alpha)


def inverse_mills(alpha: Tensor) -> Tensor:
    """``phi(a) / (1 - Phi(a))`` of the standard normal distribution, any shape.

    Computed as ``sqrt(2/pi) / erfcx(a / sqrt(2))``: the quotient of density and tail loses its
    digits where both vanish. Derivative: ``lambda (lambda - a)``.
    """
    result: Tensor = _InverseMills.apply(alpha)
    return result


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
        factors = list(init_factor) if isinstance(init_factor, Sequence) else [init_factor]
        numbers = all(
            isinstance(f, (int, float)) and not isinstance(f, bool) and 0 <= f < math.inf
            for f in factors
        )
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

    def _moments(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, standard deviation (1 where flat) and "all weights are equal", ``(groups, 1)``."""
        count = rows.shape[1]
        mean = row_sum(rows) / count
        # Not torch.var_mean: 18 ms for 2.4 M weights on one core, this 5 ms (Zen 4, torch 2.15).
        variance = row_sum((rows - mean.to(rows.dtype)).square_()) / max(count - 1, 1)
        # Equal weights leave a rounding error of their mean behind, not a spread.
        flat = variance <= (4 * torch.finfo(rows.dtype).eps * mean).square()
        return mean, torch.where(flat, torch.ones_like(variance), variance).sqrt(), flat

    @staticmethod
    def _scale(threshold: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """S and the clipped threshold (equations 9 and 10), in the dtype of the moments."""
        threshold = threshold.to(mean.dtype)
        # Not abs(): its gradient at 0 is 0, and a threshold that reaches 0 would stay there.
        size = torch.where(threshold < 0, -threshold, threshold)
        clipped = torch.where(size < 3 * std, size, 3 * std)
        return mean + std * inverse_mills(clipped / std), clipped

    @torch.enable_grad()
    def scale_curve(self, weight: Tensor, group: int = 0) -> ScaleCurve | None:
        """S and dS/dthreshold over +-4 sigma (Figure 3b); the slope is autograd's own."""
        rows = self.rows(weight.detach())[group : group + 1]
        if rows.numel() == 0:
            return None
        mean, std, flat = (moment.view(()) for moment in self._moments(rows))
        if flat:
            return None
        points = std * torch.linspace(-4, 4, _CURVE_POINTS, dtype=std.dtype, device=std.device)
        points.requires_grad_()
        scale = self._scale(points, mean, std)[0]
        (slope,) = torch.autograd.grad(scale.sum(), points)
        present = self.threshold.detach().view(self.bases, -1)[:, group].to(std.dtype)
        return ScaleCurve(
            mean=mean.item(),
            std=std.item(),
            threshold=points.detach(),
            scale=scale.detach(),
            slope=slope,
            present=present,
            present_scale=self._scale(present, mean, std)[0],
        )

    def quantize_bases(self, rows: Tensor) -> Sequence[Quantized]:
        """Equations 9 to 11 for each threshold; see the class."""
        with torch.set_grad_enabled(self.stats_grad and torch.is_grad_enabled()):
            mean, std, flat = self._moments(rows)
        equal = rows[:, :1].detach().abs()
        found = []
        for threshold in self.threshold.view(self.bases, -1, 1):
            scale, clipped = self._scale(threshold, mean, std)
            scale = torch.where(flat, equal.to(scale.dtype), scale).to(rows.dtype)
            high = (mean + clipped).masked_fill(flat, 0).to(rows.dtype)
            low = (mean - clipped).masked_fill(flat, 0).to(rows.dtype)
            with torch.no_grad():
                # (w > high) - (w < low), in a third of the time: masks become numbers slowly.
                codes = (rows - rows.clamp(low, high)).sign_()
            slopes = None if self.gradient_correctness else (scale.detach(),) * 3
            found.append(Quantized(codes, scale, slopes=slopes, thresholds=(high, low)))
            equal = torch.zeros_like(equal)  # the first base holds all of a flat group
        return found

    @torch.no_grad()
    def restore(self, code: TernaryCode) -> Tensor:
        """Rows of three levels around mu (0 where S > 0), and the threshold that gives back S.

        (For several bases see `_restore_several`.)

        The levels ``mu + plus``, ``mu + middle`` and ``mu - minus`` are balanced so that their
        mean is mu: the rarer sign lies farther out; where one sign is missing, the zeros lie
        off the mean instead.
        """
        fits = code.bases == self.bases and code.pos.shape[1] <= self.groups
        if not fits or code.codes.numel() == 0:
            return super().restore(code)
        if self.bases > 1:
            return self._restore_several(code)
        codes = self.rows(code.codes[0].to(code.pos.dtype))
        target = code.pos[0].expand(self.groups).view(-1, 1)
        levels, size, threshold, flat = self._levels(codes, target)
        # Around an offset where S <= 0: no threshold gives that around 0.
        unit = self._scale(threshold, *self._moments(levels)[:2])[0].to(codes.dtype)
        offset = (target - size * unit).masked_fill(target > 0, 0)
        size = torch.where(target > 0, target / unit, size)
        rows = torch.where(flat, codes * target, offset + size * levels)

        mean, std, _ = self._moments(rows)
        threshold = (size * threshold).to(mean.dtype)
        for _ in range(2):  # Newton's method on S = target: smooth, and close already.
            ratio = inverse_mills(threshold / std)
            slope = ratio * (ratio - threshold / std)
            threshold = threshold + (target - mean - std * ratio) / slope
        # Rounding it moves S by less than half a unit in the last place: dS/dthreshold < 1, and
        # the threshold is smaller than S (or than |target|, where S <= 0).
        self.threshold.copy_(threshold.clamp(min=0).masked_fill(flat, 0).view(-1))
        return rows.view(code.shape)

    def _restore_several(self, code: TernaryCode) -> Tensor:
        """The decoded weight times c, and the thresholds that give back the scales around it.

        The larger S_k, the larger its threshold: with the scales in order, the levels of the
        decoded weight are ``v_k = S_1 + ... + S_k``. The k-th threshold lies between the levels
        ``c v_(k-1)`` and ``c v_k`` as long as c lies between ``S_k / (mu + sigma l(a))`` at the two
        (mu, sigma and a those of the decoded weight); c is amid what all bases allow. Where they
        allow nothing, the thresholds stay between the levels: the codes return, not the scales.
        """
        scales = code.pos.expand(self.bases, self.groups).unsqueeze(2).double()
        ordered, order = scales.sort(0)
        upper = ordered.cumsum(0).gather(0, order.argsort(0))
        rows = self.rows(code.decode())
        mean, std, flat = self._moments(rows)
        bounds = torch.stack([upper - scales + mean.abs(), upper - mean.abs()])
        alphas = (bounds / std).clamp(0, 3)
        most, least = scales / (mean + std * inverse_mills(alphas))
        factor = (most.amin(0) + least.amax(0)) / 2
        usable = ~flat & torch.isfinite(factor) & (factor > 0)
        factor = torch.where(usable, factor, torch.ones_like(factor))
        rows = (factor * rows).to(rows.dtype)

        mean, std, _ = self._moments(rows)
        ratio = (scales - mean) / std
        alpha = ratio.clamp(min=0)
        for _ in range(_NEWTON_STEPS):  # from above, where a convex function converges
            value = inverse_mills(alpha)
            alpha = (alpha - (value - ratio) / (value * (value - alpha))).clamp(min=0)
        gap = (1 - _MARGIN) * factor * bounds[1], (1 + _MARGIN) * factor * bounds[0]
        threshold = torch.maximum(torch.minimum(std * alpha, gap[0]), gap[1])
        self.threshold.copy_(threshold.masked_fill(~usable, 0).view(-1))
        return rows.view(code.shape)

    @staticmethod
    def _levels(codes: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Levels with mean 0, their unit, a threshold in that unit, and which groups are flat."""
        n_plus, n_minus = ((codes == sign).sum(1, keepdim=True).to(codes) for sign in (1, -1))
        n_zero = codes.shape[1] - n_plus - n_minus
        none = (n_zero == codes.shape[1]) & (target != 0)
        flat = torch.stack([n_plus, n_minus, n_zero]).amax(0) == codes.shape[1]
        flat = flat & ~(none & (codes.shape[1] > 1))

        both = (n_plus > 0) & (n_minus > 0)
        plus = torch.where(both, n_minus / n_plus.clamp(min=1), 1).clamp(min=1)
        minus = torch.where(both, n_plus / n_minus.clamp(min=1), 1).clamp(min=1)
        middle = (n_minus * minus - n_plus * plus) / n_zero.clamp(min=1)
        levels = torch.where(codes > 0, plus, torch.where(codes < 0, -minus, middle))
        std = (row_sum(levels.square()) / max(codes.shape[1] - 1, 1)).sqrt().to(codes.dtype)
        # Between the zeros and the rest, and clear of the clip at 3 sigma.
        threshold = torch.minimum((middle.abs() + 1) / 2, torch.maximum(2.5 * std, middle.abs()))
        # Nothing beyond the threshold: a spread of +-0.5 around mu, and a threshold of 0.75.
        spread = torch.full_like(codes[:1], 0.5)
        spread[:, 1::2] = -0.5
        spread[:, codes.shape[1] // 2 * 2 :] = 0
        levels, threshold = torch.where(none, spread, levels), torch.where(none, 0.75, threshold)
        size = torch.where(target == 0, 1.0, target.abs())
        return levels, size, threshold, flat
