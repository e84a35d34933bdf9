"""A TernaryCode as the two tensors that files hold of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import packing
from ..code import TernaryCode

__all__ = ["code_from_tensors", "scale_tensor"]


def scale_tensor(code: TernaryCode) -> Tensor:
    """Scales as files hold them: ``(bases, scale_rows, 1 or out)``, not in half precision."""
    scale = torch.stack([code.pos, code.neg][: code.scale_rows], 1)
    return scale if scale.dtype == torch.float64 else scale.float()


def code_from_tensors(packed: Tensor, scale: Tensor, shape: torch.Size) -> TernaryCode:
    """The inverse of what files hold, in any encoding, with every value checked.

    Args:
        packed: uint8, 1-D.
        scale: Floating point, ``(bases, 1 or 2, 1 or out)``.
        shape: Of the weight.

    Raises:
        ValueError: Wrong dtype, shape or size, an invalid code, a scale that is not finite; the
            message begins with the name of the tensor at fault.
    """
    groups = {1, shape[0]}
    fits = scale.ndim == 3 and scale.shape[1] in (1, 2) and scale.shape[2] in groups
    if not (fits and scale.shape[0]):
        raise ValueError(
            f"weight_scale: must have shape (bases, 1 or 2, "
            f"{' or '.join(map(str, sorted(groups)))}), got {tuple(scale.shape)}"
        )
    if not scale.is_floating_point():
        raise ValueError(f"weight_scale: must be floating point, got {scale.dtype}")
    if not torch.isfinite(scale).all():
        raise ValueError("weight_scale: holds a value that is not finite")
    bases, count = scale.shape[0], math.prod(shape)
    try:
        encoding = packing.detect(packed, bases, count)
        codes = packing.decode(packed, encoding, bases, count).reshape(bases, *shape)
    except ValueError as error:
        raise ValueError(f"weight_packed: {error}") from None
    return TernaryCode(codes, scale[:, 0], scale[:, -1], scale.shape[1])
