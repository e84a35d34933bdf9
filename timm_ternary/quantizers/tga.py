"""tga: truncated Gaussian approximation (He & Fan, CVPR 2019)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..code import TernaryCode
from .base import Quantized, Quantizer, register, row_sum

__all__ = ["TGA", "inverse_mills"]


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

    Args:
        weight: Latent weight, ``(out, ...)``.
        granularity: ``"layer"`` (the paper) or ``"channel"``.
        init_factor: The initial threshold is ``init_factor * max|w|`` (section IV-C: 0.1).
        gradient_correctness: False is the paper's ablation (Table I).
        stats_grad: Let gradients flow through mu and sigma too (the paper holds them constant).

    Raises:
        ValueError: `init_factor` is not a finite number >= 0, or a flag is not a bool.
    """

    name = "tga"
    update = "alternate"

    def __init__(
        self,
        weight: Tensor,
        *,
        granularity: str | None = None,
        init_factor: float = 0.1,
        gradient_correctness: bool = True,
        stats_grad: bool = False,
    ) -> None:
        super().__init__(weight, granularity=granularity)
        if not (isinstance(init_factor, (int, float)) and 0 <= init_factor < math.inf):
            raise ValueError(
                f"init_factor must be a finite number >= 0, e.g. 0.1; got {init_factor!r}"
            )
        flags = {"gradient_correctness": gradient_correctness, "stats_grad": stats_grad}
        for key, flag in flags.items():
            if not isinstance(flag, bool):
                raise ValueError(f"{key} must be true or false, got {flag!r}")
        self.init_factor = float(init_factor)
        self.gradient_correctness = gradient_correctness
        self.stats_grad = stats_grad
        self.threshold = nn.Parameter(self.rows(weight).new_zeros(self.groups))
        self.reset(weight)

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        """threshold = init_factor * max|w|."""
        if weight.numel():
            self.threshold.copy_(self.init_factor * self.rows(weight).abs().amax(1))

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

    def quantize(self, rows: Tensor) -> Quantized:
        """Equations 9 to 11; see the class."""
        with torch.set_grad_enabled(self.stats_grad and torch.is_grad_enabled()):
            mean, std, flat = self._moments(rows)
        scale, clipped = self._scale(self.threshold.view(-1, 1), mean, std)
        scale = torch.where(flat, rows[:, :1].detach().abs().to(scale.dtype), scale).to(rows.dtype)
        with torch.no_grad():
            high = (mean + clipped).masked_fill(flat, 0).to(rows.dtype)
            low = (mean - clipped).masked_fill(flat, 0).to(rows.dtype)
            # (w > high) - (w < low), in a third of the time: masks are slow to turn into numbers.
            codes = (rows - rows.clamp(low, high)).sign_()
        slopes = None if self.gradient_correctness else (scale.detach(),) * 3
        return Quantized(codes, scale, slopes=slopes)

    @torch.no_grad()
    def restore(self, code: TernaryCode) -> Tensor:
        """Rows of three levels around mu (0 where S > 0), and the threshold that gives back S.

        The levels ``mu + plus``, ``mu + middle`` and ``mu - minus`` are balanced so that their
        mean is mu: the rarer sign lies farther out; where one sign is missing, the zeros lie
        off the mean instead.
        """
        if code.pos.shape[1] > self.groups or code.bases > 1 or code.codes.numel() == 0:
            return super().restore(code)
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
