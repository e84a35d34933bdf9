"""admm: the alternating direction method of multipliers (Leng et al., AAAI 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors.numbers import check_number
from .base import Quantizer
from .functional import Quantized, row_sum
from .registry import register

__all__ = ["ADMM", "project"]

# The paper finds that its alternation converges in fewer than five rounds.
_ROUNDS = 10


@torch.no_grad()
def project(rows: Tensor) -> Quantized:
    """The projection P onto ``a * {-1, 0, +1}``, found by turns from ``a = mean|v|``.

    ``t = sign(v) [|v| > a / 2]``, ``a = <v, t> / <t, t>`` (Leng et al., 2018, section 3.2); the
    gradient passes straight through.

    Args:
        rows: v, ``(groups, n)``, n > 0.

    Returns:
        Codes ``(groups, n)``, scale ``(groups, 1)``.
    """
    size = rows.abs()
    scale = (row_sum(size) / rows.shape[1]).to(rows.dtype)
    for _ in range(_ROUNDS):
        beyond = (size > scale / 2).to(rows.dtype)
        scale = (row_sum(size * beyond) / row_sum(beyond).clamp(min=1)).to(rows.dtype)
    return Quantized(beyond * rows.sign(), scale)


@register
class ADMM(Quantizer):
    """Extremely low bit networks by ADMM, ternary (Leng et al., 2018).

    In training mode the network runs on the latent weight w itself, and the loss gets (the
    augmented Lagrangian, scaled form)::

        rho / 2 * |w - G + u|^2

    Between two epochs::

        G = P(w + u)     u = u + w - G

    P is the projection onto ``a * {-1, 0, +1}``, found by turns from a = mean|v|::

        t = sign(v) [|v| > a / 2]     a = <v, t> / <t, t>

    In evaluation mode, and packed, the weight is ``P(w + u)``: the G of that moment. Its backward
    pass is straight through. Training begins with ``G = P(w)``, ``u = 0``. The extragradient step
    of the paper is not part of this: the Trainer's optimizer takes its place.

    Args:
        weight: Latent weight, ``(out, ...)``.
        granularity: ``"layer"`` (the paper) or ``"channel"``.
        rho: Weight of the penalty (not measured; 0.001 pulls the weights to G within an epoch or
            two at CIFAR-10's rate of 0.1 with momentum 0.9).

    Raises:
        ValueError: `rho` is not a finite number >= 0.
    """

    name = "admm"

    def __init__(
        self, weight: Tensor, *, granularity: str | None = None, rho: float = 0.001
    ) -> None:
        super().__init__(weight, granularity=granularity)
        self.rho = check_number("rho", rho, low=0, example=0.001)
        self.target: Tensor
        self.dual: Tensor
        # Row-major, whatever the weight's layout (channels_last): `quantize` reads it as rows.
        target = self._float(weight.detach()).clone(memory_format=torch.contiguous_format)
        self.register_buffer("target", target)
        self.register_buffer("dual", torch.zeros_like(self.target))
        self.reset(weight)

    @staticmethod
    def _float(weight: Tensor) -> Tensor:
        return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        """G = P(w), u = 0."""
        self.dual.zero_()
        self.target.copy_(self.encode(weight).decode())

    def penalty(self, weight: Tensor) -> Tensor:
        """``rho / 2 * |w - G + u|^2``, a scalar."""
        # Copies: DistributedDataParallel broadcasts buffers in place.
        return self.rho / 2 * (self._float(weight) - (self.target - self.dual)).square().sum()

    @torch.no_grad()
    def refresh(self, weight: Tensor) -> None:
        """``G = P(w + u)``, ``u = u + w - G``."""
        self.target.copy_(self.encode(weight).decode())
        self.dual.add_(self._float(weight) - self.target)

    def forward(self, weight: Tensor) -> Tensor:
        """w in training mode, ``P(w + u)`` in evaluation mode."""
        return weight if self.training else super().forward(weight)

    @torch.no_grad()
    def quantize(self, rows: Tensor) -> Quantized:
        """``P(w + u)``; see `project`."""
        return project(rows + self.dual.to(rows.dtype).reshape(rows.shape))
