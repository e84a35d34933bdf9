"""A TernaryCode as the two tensors that files hold of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import packing
from ..code import MOST_BASES, TernaryCode

__all__ = ["PACKED", "SCALE", "code_from_tensors", "scale_tensor"]

PACKED, SCALE = "weight_packed", "weight_scale"
"""Names of the two, within their layer."""

_SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    groups = {1, *shape[:1]}
    fits = len(shape) and scale.ndim == 3 and scale.shape[1] in (1, 2) and scale.shape[2] in groups
    if not (fits and scale.shape[0]):
        raise ValueError(
            f"{SCALE}: must have shape (bases, 1 or 2, "
            f"{' or '.join(map(str, sorted(groups)))}), got {tuple(scale.shape)}"
        )
    if scale.shape[0] > MOST_BASES:
        raise ValueError(f"{SCALE}: must have 1 to {MOST_BASES} bases, got {scale.shape[0]}")
    if scale.dtype not in _SCALE_DTYPES:  # float8 has no arithmetic
        raise ValueError(f"{SCALE}: must be floating point, got {scale.dtype}")
    if not torch.isfinite(scale).all():
        raise ValueError(f"{SCALE}: holds a value that is not finite")
    bases, count = scale.shape[0], math.prod(shape)
    try:
        encoding = packing.detect(packed, bases, count)
        codes = packing.decode(packed, encoding, bases, count).reshape(bases, *shape)
    except ValueError as error:
        raise ValueError(f"{PACKED}: {error}") from None
    return TernaryCode(codes, scale[:, 0], scale[:, -1], scale.shape[1])
