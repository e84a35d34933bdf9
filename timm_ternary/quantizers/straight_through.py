"""Codes times scales, through which the gradient passes straight to the weight."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Quantized", "row_sum", "scale_codes", "sign"]


class Quantized(NamedTuple):
    """What a method computes for the rows of one weight, ``(groups, n)``; see `scale_codes`.

    `thresholds` are ``(high, low)``, each ``(groups, 1)``, of the methods that have them: the code
    is +1 above `high`, -1 below `low`, else 0. Differentiable where they are trained.
    """

    codes: Tensor
    pos: Tensor
    neg: Tensor | None = None
    slopes: tuple[Tensor | float, Tensor | float, Tensor | float] | None = None
    thresholds: tuple[Tensor, Tensor] | None = None


class _ScaleCodes(torch.autograd.Function):
    """q = pos [c = +1] - neg [c = -1]; the gradient passes straight through to the weight."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, codes: Tensor, pos: Tensor, neg: Tensor | None, slopes: Any
    ) -> Tensor:
        ctx.slopes = slopes
        ctx.two_scales = neg is not None
        ctx.save_for_backward(codes)
        if neg is None:
            return codes * pos
        return torch.where(codes > 0, pos, torch.where(codes < 0, -neg, codes))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (codes,) = ctx.saved_tensors
        grad_rows = grad_pos = grad_neg = None
        if ctx.needs_input_grad[0]:
            grad_rows = grad
            if ctx.slopes is not None:
                plus, zero, minus = ctx.slopes
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
        return grad_rows, None, grad_pos, grad_neg, None


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
    result: Tensor = _ScaleCodes.apply(rows, *quantized[:4])
    return result


def row_sum(rows: Tensor) -> Tensor:
    """Sums over dimension 1, ``(groups, n) -> (groups, 1)``, in float64 where the device has it.

    In float32, millions of weights cost the last digits of a scale; and the mean of equal
    weights must be their value exactly, or a packed scale could not be trained on from.
    """
    return rows.sum(1, keepdim=True, dtype=None if rows.device.type == "mps" else torch.float64)


def sign(rows: Tensor) -> Tensor:
    """-1 or +1, in the shape and dtype of `rows`: binary methods have no code 0, sign(0) = +1."""
    return (rows >= 0).to(rows.dtype) * 2 - 1
