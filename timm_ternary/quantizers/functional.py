"""What the methods are made of: codes times scales, sums and signs of rows, the soft staircase.

All of it is pure, and open to torch.func: `grad`, `vmap` over samples, weights or whole models.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Quantized",
    "row_sum",
    "row_unit",
    "row_variance",
    "scale_codes",
    "sign",
    "soft_staircase",
    "spread",
]


class Quantized(NamedTuple):
    """What a method computes for the rows of one weight, ``(groups, n)``; see `scale_codes`.

    Attributes:
        codes: -1, 0 or +1, ``(groups, n)``, in the dtype of the rows; no gradient passes.
        pos: Scale of +, ``(groups, 1)``. Differentiable where it is trained.
        neg: Scale of -, ``(groups, 1)``; None: that of +.
        slopes: dq/dw where the code is +1, 0 and -1: numbers, or tensors that broadcast to the
            rows, held constant; None: 1 everywhere.
        thresholds: ``(high, low)``, each ``(groups, 1)``, of the methods that have them: the code
            is +1 above `high`, -1 below `low`, else 0. Differentiable where they are trained.
    """

    codes: Tensor
    pos: Tensor
    neg: Tensor | None = None
    slopes: tuple[Tensor | float, Tensor | float, Tensor | float] | None = None
    thresholds: tuple[Tensor, Tensor] | None = None


_STRAIGHT = [1.0, 1.0, 1.0]
"""The slopes of a method that states none."""


class _ScaleCodes(torch.autograd.Function):
    """q = pos [c = +1] - neg [c = -1]; the gradient passes straight through to the weight."""

    generate_vmap_rule = True

    # No *slopes: without gradients, torch.compile (2.14) tells a forward that takes no ctx by the
    # number of its parameters alone, and passes a ctx in the place of `rows` where it differs.
    @staticmethod
    def forward(
        rows: Tensor,
        codes: Tensor,
        pos: Tensor,
        neg: Tensor | None,
        plus: Tensor | float,
        zero: Tensor | float,
        minus: Tensor | float,
    ) -> Tensor:
        if neg is None:
            return codes * pos
        return torch.where(codes > 0, pos, torch.where(codes < 0, -neg, codes))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, codes, _, neg, *slopes = inputs
        ctx.two_scales = neg is not None
        # Tensors are saved, not kept as attributes: torch.func must know of them.
        ctx.numbers = [None if isinstance(slope, Tensor) else slope for slope in slopes]
        ctx.save_for_backward(codes, *[s if isinstance(s, Tensor) else None for s in slopes])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, *saved = ctx.saved_tensors
        slopes = [s if n is None else n for s, n in zip(saved, ctx.numbers, strict=True)]
        grad_rows = grad_pos = grad_neg = None
        if ctx.needs_input_grad[0]:
            grad_rows = grad
            if ctx.numbers != _STRAIGHT:
                plus, zero, minus = slopes
                zeros = grad * zero
                grad_rows = torch.where(codes > 0, grad * plus, zeros)
                grad_rows = torch.where(codes < 0, grad * minus, grad_rows)
        if ctx.two_scales:
            if ctx.needs_input_grad[2]:
                grad_pos = (grad * (codes > 0)).sum(1, keepdim=True)
            if ctx.needs_input_grad[3]:
                grad_neg = -(grad * (codes < 0)).sum(1, keepdim=True)
        elif ctx.needs_input_grad[2]:
            grad_pos = (grad * codes).sum(1, keepdim=True)
        return grad_rows, None, grad_pos, grad_neg, None, None, None


def scale_codes(rows: Tensor, quantized: Quantized) -> Tensor:
    """Scale the codes; straight through to `rows` in the backward pass.

    Forward:  ``q = pos * [c = +1] - neg * [c = -1]`` (``neg = pos`` where it is None).
    Backward: ``dL/dpos = sum_{c=+1} dL/dq``, ``dL/dneg = -sum_{c=-1} dL/dq``, and
    ``dL/drows = slope(c) * dL/dq``, where ``slopes = (plus, zero, minus)`` and None means 1.

    Args:
        rows: Latent weights, ``(groups, n)``.
        quantized: Codes ``(groups, n)`` in the dtype of `rows`; scales ``(groups, 1)``.

    Returns:
        Quantized rows, ``(groups, n)``.
    """
    codes, pos, neg, slopes, _ = quantized
    # Constants; and torch.compile refuses one tensor in the place of several arguments.
    held = [s.detach() if isinstance(s, Tensor) else s for s in slopes or _STRAIGHT]
    result: Tensor = _ScaleCodes.apply(rows, codes, pos, neg, *held)
    return result


def row_sum(rows: Tensor) -> Tensor:
    """Sums over dimension 1, ``(groups, n) -> (groups, 1)``, in float64 where the device has it.

    In float32, millions of weights cost the last digits of a scale; and the mean of equal
    weights must be their value exactly, or a packed scale could not be trained on from.
    """
    return rows.sum(1, keepdim=True, dtype=None if rows.device.type == "mps" else torch.float64)


@torch.no_grad()
def row_unit(rows: Tensor) -> Tensor:
    """The power of two below the largest magnitude of each row, ``(groups, n) -> (groups, 1)``.

    In units of it squares neither overflow nor vanish, as those of 1e19 and 1e-22 do in float32;
    dividing by it rounds nothing. 1 for a row of zeros.
    """
    rows = rows.detach()
    # Not abs().amax(): another tensor of that size costs more than both (twice 0.1 ms, 2.4 M).
    largest = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True))
    return torch.where(largest > 0, largest, 1).log2().floor().exp2()


def row_variance(rows: Tensor, mean: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``sum (w - mean)^2 / count`` of each row, in units of a squared unit, and that unit.

    Args:
        rows: ``(groups, n)``.
        mean: ``(groups, 1)``, in the dtype of the rows.
        count: n, or n - 1.

    Returns:
        Both ``(groups, 1)``; the standard deviation is ``unit * sqrt(variance)``.
    """
    centred = rows - mean
    unit = row_unit(centred)
    # In place: memory that is asked for anew takes longer than all of this.
    return row_sum(centred.div_(unit).pow_(2)) / count, unit


def sign(rows: Tensor) -> Tensor:
    """-1 or +1, in the shape and dtype of `rows`: binary methods have no code 0, sign(0) = +1."""
    return (rows >= 0).to(rows.dtype) * 2 - 1


def soft_staircase(
    rows: Tensor, thresholds: tuple[Tensor, Tensor], pos: Tensor, neg: Tensor, slope: Tensor
) -> Tensor:
    """The staircase of a ternary method with sigmoids for steps; differentiable in all arguments.

    The quantization function of Quantization Networks (Yang et al., 2019), for three values::

        q = pos * s(b (w - high)) - neg * s(b (low - w)),   s(x) = 1 / (1 + exp(-x))

    As b grows, q tends to ``pos [w > high] - neg [w < low]``, but for weights that equal a
    threshold.

    Args:
        rows: Latent weights, ``(groups, n)``.
        thresholds: ``(high, low)``, each ``(groups, 1)``.
        pos: Scale of +, ``(groups, 1)``.
        neg: Scale of -, ``(groups, 1)``.
        slope: b > 0, ``(groups, 1)``.

    Returns:
        ``(groups, n)``.
    """
    high, low = thresholds
    plus, minus = torch.sigmoid(slope * (rows - high)), torch.sigmoid(slope * (low - rows))
    return pos * plus - neg * minus


@torch.no_grad()
def spread(rows: Tensor) -> Tensor:
    """The unit in which a temperature means the same in all layers: ``(groups, 1)`` of the rows.

    The standard deviation, divided by n; of equal weights their magnitude, of zeros 1.
    """
    variance, unit = row_variance(rows, rows.mean(1, keepdim=True), rows.shape[1])
    unit = unit * variance.sqrt().to(rows.dtype)
    unit = torch.where(unit > 0, unit, rows[:, :1].abs())
    return torch.where(unit > 0, unit, torch.ones_like(unit))
