"""Quantizer: what every method is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..code import TernaryCode
from ..config import GRANULARITIES
from ..errors.numbers import check_number
from ..errors.wording import unknown
from .functional import Quantized, scale_codes, soft_staircase, spread
from .registry import get, names, option_defaults
from .scale_curve import ScaleCurve

__all__ = ["Quantizer"]


class Quantizer(nn.Module):
    """One layer's ternarization: latent weight in, weight of few values out.

    A subclass gives `name`, its options as keyword arguments of ``__init__``, `reset` and
    `quantize` (of several bases: `quantize_bases`, and their number in `bases`). Its only
    parameters are the thresholds or scales that it trains, one entry a group: one group for
    ``granularity="layer"``, one an output channel for ``"channel"``.
    Statistics are computed in float32 at least, whatever the weight's dtype.

    Args:
        weight: Latent weight, ``(out, ...)``; its values initialize the parameters.
        granularity: ``"layer"`` or ``"channel"`` (default: `default_granularity`).

    Raises:
        ValueError: `granularity` is unknown, or `weight` has no output dimension.
    """

    name: ClassVar[str]
    """Name in the registry."""
    bases: int = 1
    """Number of ternary tensors that are summed."""
    restore_tolerance: float = 0.0
    """Largest relative error of the scales that `restore` gives back (float32; the codes are
    equal); infinity where neither codes nor scales are promised."""
    default_granularity: ClassVar[str] = "layer"
    """The paper's."""
    scale_rows: ClassVar[int] = 1
    """1 where both signs share one scale, 2 where they do not."""
    update: ClassVar[str] = "joint"
    """How the Trainer updates the parameters by default: ``"alternate"`` or ``"joint"``."""
    has_thresholds: ClassVar[bool] = False
    """Whether the codes are steps at two thresholds, which `soften` can smooth."""
    # A tensor, so that a compiled model takes new values; no buffer: it belongs to the training.
    _temperature: Tensor | None = None

    def __init__(self, weight: Tensor, *, granularity: str | None = None) -> None:
        super().__init__()
        granularity = self.default_granularity if granularity is None else granularity
        if granularity not in GRANULARITIES:
            raise ValueError(unknown("granularity", granularity, GRANULARITIES))
        if weight.ndim < 1 or not weight.is_floating_point():
            raise ValueError(
                f"a weight must be floating point of shape (out, ...), "
                f"got {weight.dtype} of shape {tuple(weight.shape)}"
            )
        self.granularity = granularity
        self.groups = weight.shape[0] if granularity == "channel" else 1

    def reset(self, weight: Tensor) -> None:
        """Set the trainable parameters from the values of `weight` (its shape is the layer's)."""

    def quantize(self, rows: Tensor) -> Quantized:
        """Codes and scales of `rows`, ``(groups, n)``, float32 or float64: the method itself."""
        raise NotImplementedError

    def quantize_bases(self, rows: Tensor) -> Sequence[Quantized]:
        """`quantize` for each of the `bases` whose sum is the quantized weight."""
        return [self.quantize(rows)]

    def penalty(self, weight: Tensor) -> Tensor | None:
        """What the method adds to the loss of the weights' pass, a scalar; differentiable."""
        return None

    def refresh(self, weight: Tensor) -> None:
        """Update the method's own state from the latent weight: the Trainer calls it when an epoch
        begins, but for the first, for which `reset` prepares."""

    def scale_curve(self, weight: Tensor, group: int = 0) -> ScaleCurve | None:
        """The scale of one group of `weight` as a function of its threshold, for figures; None
        where the threshold is not trained, or the group's weights are all equal."""
        return None

    @property
    def is_soft(self) -> bool:
        """Whether `forward` gives the soft staircase at present."""
        return self.training and self._temperature is not None

    def soften(self, temperature: float | None) -> None:
        """From now on train on the soft staircase of `soft_staircase`, or on the hard one (None).

        `encode` and evaluation mode know only the hard one.

        Args:
            temperature: T > 0, in units of the group's standard deviation.

        Raises:
            ValueError: The method has no thresholds (names those that have), or T is out of range.
        """
        if temperature is None:
            self._temperature = None
            return
        if not self.has_thresholds:
            allowed = ", ".join(name for name in names() if get(name).has_thresholds)
            raise ValueError(
                f"method {self.name!r} has no thresholds to soften: type --ternary with one of "
                f"{allowed}, or leave soft_epochs out"
            )
        temperature = check_number("temperature", temperature, above=0)
        self._temperature = torch.tensor(temperature, dtype=torch.float32)

    def rows(self, weight: Tensor) -> Tensor:
        """`weight` as ``(groups, n)`` in float32 at least."""
        if weight.dtype in (torch.float16, torch.bfloat16):
            weight = weight.float()
        # Not -1: an empty weight has no unique n.
        return weight.reshape(self.groups, weight.numel() // max(self.groups, 1))

    def forward(self, weight: Tensor) -> Tensor:
        """The quantized weight, in `weight`'s shape and dtype; differentiable."""
        if weight.numel() == 0:
            return weight
        rows = self.rows(weight)
        found = self.quantize_bases(rows)
        bases = self._soften(rows, found) if self.is_soft else [scale_codes(rows, b) for b in found]
        return reduce(torch.add, bases).view(weight.shape).to(weight.dtype)

    def _soften(self, rows: Tensor, bases: Sequence[Quantized]) -> list[Tensor]:
        """Values of the bases on the soft staircase, each ``(groups, n)``."""
        assert self._temperature is not None
        slope = self._temperature / spread(rows)
        return [
            soft_staircase(rows, b.thresholds, b.pos, b.pos if b.neg is None else b.neg, slope)
            for b in bases
            if b.thresholds is not None
        ]

    @torch.no_grad()
    def encode(self, weight: Tensor) -> TernaryCode:
        """The codes and scales behind `forward`: ``encode(w).decode()`` equals ``forward(w)``.

        (In evaluation mode: a method may train on something else than its ternary weights.)
        """
        rows = self.rows(weight)
        if weight.numel() == 0:
            empty = Quantized(rows, rows.new_zeros(max(self.groups, 1), 1))
            found: Sequence[Quantized] = [empty] * self.bases
        else:
            found = self.quantize_bases(rows)
        codes = torch.stack([base.codes.to(torch.int8).view(weight.shape) for base in found])
        pos = torch.stack([base.pos.view(-1) for base in found])
        neg = torch.stack([(base.pos if base.neg is None else base.neg).view(-1) for base in found])
        return TernaryCode(codes, pos, neg, self.scale_rows)

    @torch.no_grad()
    def restore(self, code: TernaryCode) -> Tensor:
        """A latent weight whose code is `code`, bit for bit in float32; sets the parameters too.

        The way back from a packed file to training. Exact, or within `restore_tolerance`, for
        codes that this method made with the same options; otherwise it starts from the decoded
        weight, which the method quantizes in its own way.
        This default fits methods whose scale is an average of the weights beyond a threshold.

        Returns:
            Weight of shape ``code.shape`` in the dtype of the scales.
        """
        weight = code.decode()
        self.reset(weight)
        return weight

    def fits(self, code: TernaryCode) -> bool:
        """Whether `code` is of the kind this method makes here: its bases, and no more groups."""
        same = code.bases == self.bases and code.pos.shape[1] <= self.groups
        return same and code.codes.numel() > 0

    def extra_repr(self) -> str:
        """The name, the granularity and the options, for ``print(model)``."""
        options = {name: getattr(self, name) for name in option_defaults(type(self))}
        shown = [f"{key}={value!r}" for key, value in options.items()]
        return ", ".join([self.name, f"granularity={self.granularity!r}", *shown])
