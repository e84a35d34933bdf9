"""The value every method ends in: integer codes and their scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TernaryCode"]


@dataclass(frozen=True, eq=False)
class TernaryCode:
    """Codes in {-1, 0, +1} and their scales, for one weight tensor.

    The weight is ``w = sum_b pos[b] * [codes[b] == +1] - neg[b] * [codes[b] == -1]``, with the
    scales broadcast over the output channels (dimension 0 of the weight).

    Attributes:
        codes: int8, ``(bases, *weight.shape)``, values -1, 0 or +1.
        pos: Floating point, ``(bases, 1)`` (one scale a layer) or ``(bases, out)`` (one a channel).
        neg: Same shape and dtype as `pos`; the magnitude of the negative value.
    """

    codes: Tensor
    pos: Tensor
    neg: Tensor

    def __post_init__(self) -> None:
        """Check shapes and dtypes (values are checked where they come from outside: checkpoint.py).

        Raises:
            ValueError: A dtype or a shape does not fit the description above.
        """
        if torch.jit.is_tracing():
            return  # sizes are tensors there
        if self.codes.dtype != torch.int8 or self.codes.ndim < 2:
            raise ValueError(
                f"codes must be int8 of shape (bases, *weight.shape), got {self.codes.dtype} "
                f"of shape {tuple(self.codes.shape)}"
            )
        bases, out = self.codes.shape[:2]
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
        return TernaryCode(self.codes.to(device), self.pos.to(device), self.neg.to(device))
