"""Distributions of the weights: the latent ones beside a Gaussian, or the values of packed ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import nn

from ..code import TernaryCode
from ..files import atomic_write
from ..nn.convert import checked_code, ternary_layers
from ..nn.forms import layer_code
from ..nn.packed import PackedWeight
from ..nn.trainable import latent_weight
from .drawing import evenly, grid, png

__all__ = [
    "MOST_LAYERS",
    "SAMPLE",
    "Distribution",
    "Levels",
    "distribution",
    "figure",
    "levels",
    "normality",
    "weight_histograms",
]

MOST_LAYERS = 16
"""Of deeper models, layers at even distances are shown."""
SAMPLE = 5000
"""Weights that the test of normality sees: scipy's p-values, and Royston's W, hold up to 5,000."""
_BINS = 61


@dataclass(frozen=True)
class Distribution:
    """Latent weights of a trainable layer.

    Attributes:
        name: Of the layer.
        counts, edges: The histogram, ``(61,)`` and ``(62,)``; a few outliers lie beyond it.
        mean, std: Of all weights.
        thresholds: Where the codes change: midway between the largest latent weight coded 0 and
            the smallest coded +1, and likewise for -1.
        values: Quantized values that occur, the mean over the channels.
        zeros: Fraction of codes that are 0.
        normality: Shapiro-Wilk W; None where it is not defined.
    """

    name: str
    counts: np.ndarray[Any, Any]
    edges: np.ndarray[Any, Any]
    mean: float
    std: float
    thresholds: tuple[float, ...]
    values: tuple[float, ...]
    zeros: float
    normality: float | None

    def gaussian(self, points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Expected counts at `points` of as many normal weights of this mean and deviation."""
        bin_width = self.edges[1] - self.edges[0]
        weights = self.counts.sum()
        result: np.ndarray[Any, Any] = scipy.stats.norm.pdf(points, self.mean, self.std)
        return result * weights * bin_width


@dataclass(frozen=True)
class Levels:
    """Values of a packed layer.

    Attributes:
        name: Of the layer.
        values: Quantized values that occur, the mean over the channels.
        shares: Fractions of the weights that have them.
        zeros: Fraction of codes that are 0.
    """

    name: str
    values: tuple[float, ...]
    shares: tuple[float, ...]
    zeros: float


def normality(weights: np.ndarray[Any, Any]) -> float | None:
    """Shapiro-Wilk W; where there are more weights, of `SAMPLE` drawn with a fixed seed.

    Returns:
        W, 0 to 1, where 1 is a normal sample; None for fewer than three or for equal weights.
    """
    values = weights.ravel()
    if values.size > SAMPLE:
        values = np.random.default_rng(0).choice(values, SAMPLE, replace=False, shuffle=False)
    values = values.astype(np.float64)
    if values.size < 3 or np.ptp(values) == 0:
        return None
    return float(scipy.stats.shapiro(values).statistic)


def distribution(name: str, layer: nn.Module) -> Distribution:
    """Of a trainable ternary layer with at least one weight."""
    latent = latent_weight(layer).detach().float().cpu().flatten()
    code = layer_code(layer)
    codes = code.codes.flatten(1).cpu()
    weights = latent.numpy()
    groups = code.pos.shape[1]
    values = _values(codes, code)[0]
    # numpy's: torch's quantile refuses more than 16 M values.
    limit = float(np.quantile(np.abs(weights), 0.999))
    limit = max([limit, *map(abs, values)]) * 1.1 or 1.0
    counts, edges = np.histogram(weights, _BINS, (-limit, limit))
    return Distribution(
        name=name,
        counts=counts,
        edges=edges,
        mean=float(weights.mean(dtype=np.float64)),
        std=float(weights.std(dtype=np.float64)),
        thresholds=tuple(sorted({t for base in codes for t in _thresholds(latent, base, groups)})),
        values=tuple(values),
        zeros=code.zeros,
        normality=normality(weights),
    )


def levels(name: str, layer: nn.Module) -> Levels:
    """Of a ternary layer in either form with at least one weight."""
    code = layer_code(layer)
    values, counts = _values(code.codes.flatten(1).cpu(), code)
    shares = [count / code.shape.numel() for count in counts]
    return Levels(name, tuple(values), tuple(shares), code.zeros)


def figure(model: nn.Module) -> Any:
    """Draw up to `MOST_LAYERS` layers of a ternary model; of a packed one, the values.

    Raises:
        ValueError: The model is not ternary, or holds weights that are not finite.
    """
    layers = {name: layer for name, layer in ternary_layers(model).items() if _size(layer)}
    if not layers:
        raise ValueError("the model is not ternary; type: timm_ternary.ternarize_(model)")
    chosen = evenly(list(layers), MOST_LAYERS)
    drawing, axes = grid(len(chosen), 2, 1.4)
    for axis, name in zip(axes, chosen, strict=True):
        checked_code(name, layers[name])
        if isinstance(layers[name], PackedWeight):
            _draw_levels(axis, levels(name, layers[name]))
        else:
            _draw_distribution(axis, distribution(name, layers[name]))
        axis.set_yticks([])
    packed = isinstance(layers[chosen[0]], PackedWeight)
    drawing.supxlabel("value" if packed else "latent weight", fontsize=8)
    drawing.supylabel("share of the weights" if packed else "number of weights", fontsize=8)
    return drawing


def weight_histograms(model: nn.Module, path: str | Path) -> Path:
    """Write `figure` as a PNG.

    Args:
        model: A ternary model.
        path: File to write.

    Raises:
        ValueError: The model is not ternary, or holds weights that are not finite.
    """
    path, data = Path(path), png(figure(model))
    with atomic_write(path, lambda temporary: temporary.write_bytes(data)):
        pass
    return path


def _size(layer: nn.Module) -> int:
    shape = layer.weight_shape if isinstance(layer, PackedWeight) else latent_weight(layer).shape
    return shape.numel()


def _draw_distribution(axis: Any, found: Distribution) -> None:
    edges = found.edges
    axis.stairs(found.counts, edges, fill=True, color="tab:blue", alpha=0.4)
    if found.std > 0:
        points = np.linspace(edges[0], edges[-1], 200)
        axis.plot(points, found.gaussian(points), color="tab:red", linewidth=1)
    for threshold in found.thresholds:
        axis.axvline(threshold, color="black", linestyle="--", linewidth=0.8)
    height = axis.get_ylim()[1]
    for value in found.values:
        arrow = {"arrowstyle": "-|>", "color": "tab:green", "linewidth": 1.5}
        axis.annotate("", (value, 0), (value, 0.3 * height), arrowprops=arrow)
    tested = "" if found.normality is None else f", W {found.normality:.3f}"
    axis.set_title(f"{found.name}\n{found.zeros:.0%} zeros{tested}", fontsize=8)


def _draw_levels(axis: Any, found: Levels) -> None:
    limit = max(map(abs, found.values)) * 1.3 or 1.0
    axis.bar(found.values, found.shares, width=limit / 12, color="tab:blue")
    for value, share in zip(found.values, found.shares, strict=True):
        axis.annotate(f"{share:.0%}", (value, share), ha="center", va="bottom", fontsize=7)
    axis.set_xlim(-limit, limit)
    axis.set_ylim(0, 1.25 * max(found.shares))
    axis.set_title(f"{found.name}\n{found.zeros:.0%} zeros", fontsize=8)


def _values(codes: torch.Tensor, code: TernaryCode) -> tuple[list[float], list[int]]:
    """The values that occur, the mean over the channels, and how often: of one base up to three."""
    pos, neg = (scale.double().mean(1, keepdim=True).cpu() for scale in (code.pos, code.neg))
    # As numbers of base 3: torch's unique(dim=1) takes seconds where this takes milliseconds.
    powers = 3 ** torch.arange(len(codes)).unsqueeze(1)
    counts = ((codes + 1) * powers).sum(0).bincount()
    found = counts.nonzero().view(1, -1)
    kinds = found // powers % 3 - 1
    values = torch.where(kinds > 0, pos, -neg).mul(kinds != 0).sum(0)
    return values.tolist(), counts[found[0]].tolist()


def _thresholds(latent: torch.Tensor, codes: torch.Tensor, groups: int) -> list[float]:
    """Where the codes change from -1 to 0 and from 0 to +1, for the signs that occur.

    The mean over the `groups`, which have thresholds of their own.
    """
    weights, codes = latent.view(groups, -1), codes.view(groups, -1)
    found = []
    for sign in (-1, 1):
        signed, beyond = weights * sign, codes == sign
        inner = signed.masked_fill(beyond, -torch.inf).amax(1)
        outer = signed.masked_fill(~beyond, torch.inf).amin(1)
        between = ((inner + outer) / 2)[inner.isfinite() & outer.isfinite()]
        if len(between):
            found.append(sign * float(between.mean()))
    return found
