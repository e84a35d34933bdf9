"""What the figures share: their width, their layers and their bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["COLOURS", "epochs", "evenly", "grid", "png"]

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown",
           "tab:pink", "tab:olive", "tab:cyan", "black")  # fmt: skip
"""Of the lines of one figure, in order."""

# A phone is 390 pixels wide: text of 8 points is then still 10 of them high.
_WIDTH = 4.0
_DPI = 210


def grid(count: int, columns: int, height: float, width: float = _WIDTH) -> tuple[Any, list[Any]]:
    """A figure and `count` axes in rows of `columns`.

    Args:
        height: Of a row, in inches.
        width: Of the figure, in inches.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis in axes:
        axis.tick_params(labelsize=7)
    return figure, axes[:count]


def evenly(names: Sequence[str], most: int) -> list[str]:
    """At most `most` of `names` at even distances, the first and the last among them."""
    count = min(len(names), most)
    return [names[k] for k in np.linspace(0, len(names) - 1, count).round().astype(int)]


def epochs(axis: Any) -> None:
    """An axis of whole epochs, from the beginning of training."""
    axis.set_xlim(0, 1.03 * max(1.0, axis.dataLim.x1))  # the last point stays whole
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch", fontsize=8)


def png(figure: Any) -> bytes:
    """`figure` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
