"""Kernels as tiles: grey 0, black -1, white +1 (Zhu et al., Figure 6)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from torch import Tensor, nn

from ..convert import ternary_layers
from ..layers import layer_code
from .drawing import evenly, grid

__all__ = ["MOST_LAYERS", "TILES", "convolutions", "figure", "tiles"]

MOST_LAYERS = 4
TILES = 10
"""Input and output channels shown, the first ones, as in the paper."""

# The lines between the tiles must be none of the three.
_COLOURS = ListedColormap(["black", "0.5", "white"]).with_extremes(bad="lightskyblue")


def convolutions(model: nn.Module) -> dict[str, Tensor]:
    """Codes of the two-dimensional convolutions with kernels larger than 1x1: int8,
    ``(out, in, height, width)``, of the first base; by layer."""
    found = {}
    for name, layer in ternary_layers(model).items():
        codes = layer_code(layer).codes[0].cpu()
        if codes.ndim == 4 and codes.numel() and codes.shape[2:].numel() > 1:
            found[name] = codes
    return found


def tiles(codes: Tensor) -> np.ma.MaskedArray[Any, Any]:
    """The first kernels side by side, output channels downwards, masked lines between them.

    Args:
        codes: ``(out, in, height, width)``; with one input channel (depthwise) the output
            channels fill the rows in order.

    Returns:
        ``(rows * (height + 1) - 1, columns * (width + 1) - 1)``, at most `TILES` each way.
    """
    kernels = codes[:TILES, :TILES]
    if codes.shape[1] == 1:
        count = min(len(codes), TILES**2)
        columns = min(count, TILES)
        kernels = codes[: count // columns * columns, 0].reshape(-1, columns, *codes.shape[2:])
    rows, columns, height, width = kernels.shape
    cells = np.ma.masked_all((rows, height + 1, columns, width + 1))
    cells[:, :height, :, :width] = kernels.permute(0, 2, 1, 3).numpy()
    return cells.reshape(rows * (height + 1), -1)[:-1, :-1]


def figure(found: dict[str, Tensor]) -> Any:
    """Draw up to `MOST_LAYERS` of `convolutions`."""
    chosen = evenly(list(found), MOST_LAYERS)
    drawing, axes = grid(len(chosen), 2, 2.9)
    for axis, name in zip(axes, chosen, strict=True):
        axis.imshow(tiles(found[name]), cmap=_COLOURS, vmin=-1, vmax=1, interpolation="nearest")
        shape = "x".join(map(str, found[name].shape))
        axis.set_title(f"{name}\n{shape}", fontsize=8)
        axis.set_axis_off()
    return drawing
