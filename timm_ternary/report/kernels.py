"""Kernels as tiles: grey 0, black -1, white +1 (Zhu et al., Figure 6)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from torch import Tensor, nn

from ..nn.convert import ternary_layers
from ..nn.forms import layer_code
from .drawing import evenly, grid

__all__ = ["MOST_LAYERS", "TILES", "convolutions", "figure", "tiles"]

MOST_LAYERS = 4
TILES = 10
"""Input and output channels shown, the first ones, as in the paper."""

# The lines between the tiles must be none of the three.
_COLOURS = ListedColormap(["black", "0.5", "white"]).with_extremes(bad="lightskyblue")
_CELL = 4  # pixels of one code; a line is one wide


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
        Pixels, ``(rows * (4 height + 1) - 1, columns * (4 width + 1) - 1)``, with at most `TILES`
        rows and columns.
    """
    count, inputs, height, width = codes.shape
    if inputs == 1:
        count = min(count, TILES**2)
        columns = min(count, TILES)
        rows = -(-count // columns)
    else:
        rows, columns = min(count, TILES), min(inputs, TILES)
        count = rows * columns
    kernels = codes[:, :columns].flatten(0, 1)[:count].numpy()
    pixels = kernels.repeat(_CELL, 1).repeat(_CELL, 2)
    shape = (rows * columns, _CELL * height + 1, _CELL * width + 1)
    # Zeros under the mask: matplotlib computes with what is there.
    cells = np.ma.array(np.zeros(shape), mask=True)
    cells[:count, :-1, :-1] = pixels
    cells = cells.reshape(rows, columns, *cells.shape[1:]).transpose(0, 2, 1, 3)
    return cells.reshape(rows * cells.shape[1], -1)[:-1, :-1]


def figure(found: dict[str, Tensor]) -> Any:
    """Draw up to `MOST_LAYERS` of `convolutions`."""
    chosen = evenly(list(found), MOST_LAYERS)
    drawing, axes = grid(len(chosen), 2, 2.3)
    for axis, name in zip(axes, chosen, strict=True):
        axis.imshow(tiles(found[name]), cmap=_COLOURS, vmin=-1, vmax=1, interpolation="nearest")
        shape = "x".join(map(str, found[name].shape))
        axis.set_title(f"{name}\n{shape}", fontsize=8)
        axis.set_axis_off()
    drawing.supxlabel("input channels", fontsize=8)
    drawing.supylabel("output channels", fontsize=8)
    return drawing
