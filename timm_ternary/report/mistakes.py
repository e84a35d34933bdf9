"""The confusion matrix; of many classes the pairs that are taken for one another most often."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..confusion import Confusion
from .drawing import grid

__all__ = ["MOST_CLASSES", "MOST_PAIRS", "figure"]

MOST_CLASSES = 40
"""Of a matrix whose cells a reader can tell apart; of more classes the pairs are drawn."""
MOST_PAIRS = 20

_NUMBERED = 20  # classes up to which the counts stand in the cells
_NAMED = 24  # characters of a name beside an axis


def figure(confusion: Confusion) -> Any:
    """Draw the matrix of up to `MOST_CLASSES` classes, else up to `MOST_PAIRS` mistakes.

    Returns:
        The figure; None for more classes without a mistake.
    """
    return (_matrix if len(confusion.names) <= MOST_CLASSES else _pairs)(confusion)


def _matrix(confusion: Confusion) -> Any:
    counts, size = confusion.matrix(), len(confusion.names)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    width, height = (4.0, 3.2) if size <= _NUMBERED else (6.0, 5.2)
    drawing, (axis,) = grid(1, 1, height, width)
    shown = axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    fontsize = min(7, 35 * width / size)
    names = [_short(name) for name in confusion.names]
    axis.set_xticks(range(size), names, rotation=90, fontsize=fontsize)
    axis.set_yticks(range(size), names, fontsize=fontsize)
    for text in (*axis.get_xticklabels(), *axis.get_yticklabels()):
        text.set_parse_math(False)
    if size <= _NUMBERED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if share[row, column] > 0.5 else "black"
            style = {"color": colour, "fontsize": fontsize, "ha": "center", "va": "center"}
            axis.text(column, row, str(counts[row, column]), **style)
    axis.set_xlabel("predicted class", fontsize=8)
    axis.set_ylabel("class", fontsize=8)
    bar = drawing.colorbar(shown, ax=axis, fraction=0.046, pad=0.03)
    bar.set_label("share of the class in %", fontsize=7)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25", "50", "75", "100"], fontsize=7)
    return drawing


def _pairs(confusion: Confusion) -> Any:
    pairs = confusion.pairs(MOST_PAIRS)
    if not pairs:
        return None
    drawing, (axis,) = grid(1, 1, 0.8 + 0.19 * len(pairs))
    places = range(len(pairs))
    axis.barh(places, [pair.images for pair in pairs], color="tab:blue")
    names = [f"{_short(pair.name)} → {_short(pair.predicted_name)}" for pair in pairs]
    axis.set_yticks(places, names, fontsize=6)
    for text in axis.get_yticklabels():
        text.set_parse_math(False)
    axis.invert_yaxis()
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("images", fontsize=8)
    axis.set_ylabel("class → predicted class", fontsize=8)
    return drawing


def _short(name: str) -> str:
    """A name that leaves room for the figure; the table below it has it whole."""
    name = name.split(",")[0]  # ImageNet's have several, by commas
    return name if len(name) <= _NAMED else name[: _NAMED - 1] + "…"
