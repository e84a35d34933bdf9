"""The value every method ends in: integer codes and their scales; and a batch norm folded in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MOST_BASES", "TernaryCode", "fold_batch_norm"]

MOST_BASES = 16
"""Ternary tensors that are summed in one weight, at most: beyond it floats are smaller. A file that
states a million would fill the memory."""


@dataclass(frozen=True, eq=False)
class TernaryCode:
    """Codes in {-1, 0, +1} and their scales, for one weight tensor.

    The weight is ``w = sum_b pos[b] * [codes[b] == +1] - neg[b] * [codes[b] == -1]``, with the
    scales broadcast over the output channels (dimension 0 of the weight).

    Attributes:
        codes: int8, ``(bases, *weight.shape)``, values -1, 0 or +1.
        pos: Floating point, ``(bases, 1)`` (one scale a layer) or ``(bases, out)`` (one a channel).
        neg: Same shape and dtype as `pos`; the magnitude of the negative value.
        scale_rows: Rows of scales that a file holds a base: 1 where both signs share one scale
            (`pos` and `neg` are then equal), 2 where they do not. Unset: 1 where `pos` and `neg`
            are the same tensor.
    """

    codes: Tensor
    pos: Tensor
    neg: Tensor
    scale_rows: int = 0

    def __post_init__(self) -> None:
        """Check shapes and dtypes (values are checked where they come from outside: packing/).

        Raises:
            ValueError: A dtype or a shape does not fit the description above.
        """
        if self.scale_rows == 0:
            object.__setattr__(self, "scale_rows", 1 if self.pos is self.neg else 2)
        if self.scale_rows not in (1, 2):
            raise ValueError(f"scale_rows must be 1 or 2, got {self.scale_rows!r}")
        if torch.jit.is_tracing():
            return  # sizes are tensors there
        if self.codes.dtype != torch.int8 or self.codes.ndim < 2:
            raise ValueError(
                f"codes must be int8 of shape (bases, *weight.shape), got {self.codes.dtype} "
                f"of shape {tuple(self.codes.shape)}"
            )
        bases, out = self.codes.shape[:2]
        if not 1 <= bases <= MOST_BASES:
            raise ValueError(f"a weight is a sum of 1 to {MOST_BASES} bases, got {bases}")
        allowed = {(bases, 1), (bases, out)}
        for name, scale in (("pos", self.pos), ("neg", self.neg)):
            if tuple(scale.shape) not in allowed or not scale.is_floating_point():
                raise ValueError(
                    f"{name} must be floating point of shape "
                    f"{' or '.join(map(str, sorted(allowed)))}, "
                    f"got {scale.dtype} of shape {tuple(scale.shape)}"
                )
        if self.pos.shape != self.neg.shape:
            raise ValueError(
                f"pos and neg must have one shape, got {tuple(self.pos.shape)} "
                f"and {tuple(self.neg.shape)}"
            )

    @property
    def bases(self) -> int:
        """Number of ternary tensors that are summed."""
        return self.codes.shape[0]

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.codes.shape[1:]

    @property
    def granularity(self) -> str:
        """``"layer"`` or ``"channel"``; a layer with one output channel counts as ``"layer"``."""
        return "layer" if self.pos.shape[1] == 1 else "channel"

    @property
    def zeros(self) -> float:
        """Fraction of codes that are zero, 0 to 1 (0 for an empty tensor)."""
        if self.codes.numel() == 0:
            return 0.0
        return 1.0 - torch.count_nonzero(self.codes).item() / self.codes.numel()

    def decode(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight, ``codes.shape[1:]``, in `dtype` (default: that of the scales)."""
        dtype = dtype or self.pos.dtype
        scale_shape = (-1,) + (1,) * (len(self.shape) - 1)
        weight: Tensor | None = None
        for codes, pos, neg in zip(self.codes, self.pos.to(dtype), self.neg.to(dtype), strict=True):
            value = torch.where(codes > 0, pos.view(scale_shape), codes.to(dtype))
            value = torch.where(codes < 0, -neg.view(scale_shape), value)
            weight = value if weight is None else weight + value
        assert weight is not None  # codes.ndim >= 2, and zero bases have no meaning
        return weight

    def to(self, device: torch.device | str) -> TernaryCode:
        """The same code on `device`."""
        codes, pos, neg = (tensor.to(device) for tensor in (self.codes, self.pos, self.neg))
        return TernaryCode(codes, pos, neg, self.scale_rows)

    def scaled(self, factor: Tensor) -> TernaryCode:
        """The code of the weight whose output channels are multiplied by `factor`.

        Args:
            factor: ``(out,)``, in any sign; the product is taken in float64 and rounded once.

        Returns:
            One scale an output channel, in the dtype of `pos`.
        """
        pos, neg = ((scale.double() * factor).to(scale.dtype) for scale in (self.pos, self.neg))
        return TernaryCode(self.codes, pos, neg, self.scale_rows)


def fold_batch_norm(
    code: TernaryCode,
    *,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    bias: Tensor | None = None,
) -> tuple[TernaryCode, Tensor]:
    """A batch norm behind a ternary layer as scales and bias of that layer.

    ``gamma (w x + b - mean) / sqrt(var + eps) + beta = (f w) x + (beta + f (b - mean))`` with
    ``f = gamma / sqrt(var + eps)``: the codes stay, and each output channel gets its own scale.

    Args:
        code: Of the layer's weight w.
        gamma, beta, mean, var: Of the norm in evaluation mode, each ``(out,)``.
        eps: Of the norm.
        bias: b, ``(out,)``; None: the layer has none.

    Returns:
        The code of ``f w``, and the bias, float64 ``(out,)``.
    """
    factor = gamma.double() / (var.double() + eps).sqrt()
    own = -mean.double() if bias is None else bias.double() - mean.double()
    return code.scaled(factor), beta.double() + factor * own
