"""The scale of a group as a function of its threshold, where a method trains the threshold."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["ScaleCurve"]


class ScaleCurve(NamedTuple):
    """S(threshold) of one group of weights; see `Quantizer.scale_curve`.

    Attributes:
        mean, std: Of the group's latent weights, in their units.
        threshold: Where the curve was computed, ``(n,)``, rising, in the weights' units.
        scale: S there, ``(n,)``.
        slope: dS/dthreshold there, as training has it, ``(n,)``.
        present: The group's thresholds at present, ``(bases,)``.
        present_scale: S at `present`, ``(bases,)``.
    """

    mean: float
    std: float
    threshold: Tensor
    scale: Tensor
    slope: Tensor
    present: Tensor
    present_scale: Tensor
