"""Figures of a ternary model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .code import TernaryCode
from .convert import ternary_layers
from .files import atomic_write
from .layers import PackedWeight, latent_weight, layer_code

__all__ = ["weight_histograms"]

# The figure's pages stay readable; of deeper models, layers at even distances are shown.
_MOST_LAYERS = 24


def weight_histograms(model: nn.Module, path: str | Path) -> Path:
    """Draw the latent weights of each layer, its thresholds and its values, as a PNG.

    The thresholds are where the codes change: midway between the largest latent weight coded 0
    and the smallest coded +1, and likewise for -1.

    Args:
        model: A trainable ternary model (a packed one has no latent weights).
        path: File to write.

    Raises:
        ValueError: The model has no trainable ternary layer.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = {n: m for n, m in ternary_layers(model).items() if not isinstance(m, PackedWeight)}
    if not layers:
        raise ValueError("the model has no trainable ternary layer; type: timm_ternary.unpack_")
    count = min(len(layers), _MOST_LAYERS)
    chosen = [list(layers)[k] for k in np.linspace(0, len(layers) - 1, count).round().astype(int)]
    columns = min(4, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(axes, chosen, strict=False):
        _histogram(axis, name, layers[name])
    for axis in axes[count:]:
        axis.set_axis_off()
    figure.suptitle("Latent weights (bars), thresholds (dashed) and ternary values (arrows)")
    path = Path(path)
    with atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png")):
        pass
    return path


def _histogram(axis: Any, name: str, layer: nn.Module) -> None:
    latent = latent_weight(layer).detach().float().cpu().flatten()
    code = layer_code(layer)
    codes = code.codes.flatten(1).cpu()
    # numpy's: torch's quantile refuses more than 16 M values.
    limit = float(np.quantile(latent.abs().numpy(), 0.999))
    values = _values(codes, code)
    limit = max([limit, *map(abs, values)]) * 1.1 or 1.0
    axis.hist(latent.numpy(), bins=61, range=(-limit, limit), color="0.6")
    for threshold in {t for base in codes for t in _thresholds(latent, base)}:
        axis.axvline(threshold, color="tab:red", linestyle="--", linewidth=1)
    height = axis.get_ylim()[1]
    for value in values:
        arrow = {"arrowstyle": "-|>", "color": "tab:blue"}
        axis.annotate("", (value, 0), (value, 0.25 * height), arrowprops=arrow)
    axis.set_title(f"{name}\n{code.zeros:.0%} zeros", fontsize=8)
    axis.set_yticks([])
    axis.tick_params(labelsize=7)


def _values(codes: torch.Tensor, code: TernaryCode) -> list[float]:
    """The values that occur, the mean over the channels: of one base up to three."""
    pos, neg = (scale.double().mean(1, keepdim=True).cpu() for scale in (code.pos, code.neg))
    kinds = codes.unique(dim=1)
    return torch.where(kinds > 0, pos, -neg).mul(kinds != 0).sum(0).tolist()


def _thresholds(latent: torch.Tensor, codes: torch.Tensor) -> list[float]:
    """Where the codes change from -1 to 0 and from 0 to +1, for the signs that occur."""
    found = []
    for sign in (-1, 1):
        inner, outer = (latent * sign)[codes != sign], (latent * sign)[codes == sign]
        if len(inner) and len(outer):
            found.append(sign * (float(inner.max()) + float(outer.min())) / 2)
    return found
