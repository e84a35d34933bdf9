"""Training runs as curves: layers over training, accuracies, and accuracy against zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D

from .drawing import COLOURS, epochs, evenly, grid
from .runs import Run, layer_series, outcome, series

__all__ = ["MOST_LAYERS", "accuracy_against_zeros", "accuracy_curves", "layers_over_training"]

MOST_LAYERS = 8
"""Lines of one panel; of deeper models, layers at even distances are shown."""
_LEAST_SPAN = 0.02  # of an axis of accuracies


def layers_over_training(run: Run, order: Sequence[str] = ()) -> Any:
    """Draw what the log holds of single layers, a panel a quantity (Zhu et al., Figure 2).

    Args:
        order: Names of layers, first to last, as far as they are known.

    Returns:
        The figure; None where the log says nothing of layers.
    """
    found = layer_series(run)
    if not found:
        return None
    names = dict.fromkeys(name for lines in found.values() for name in lines)
    place = {name: k for k, name in enumerate(order)}
    layers = evenly(sorted(names, key=lambda name: place.get(name, len(place))), MOST_LAYERS)
    # A layer has one colour in every panel.
    colours = dict(zip(layers, COLOURS, strict=False))
    drawing, axes = grid(len(found), 1, 1.7)
    for axis, (quantity, lines) in zip(axes, sorted(found.items()), strict=True):
        for name, colour in colours.items():
            if name in lines:
                _line(axis, lines[name], color=colour)
        axis.set_ylabel(quantity, fontsize=8)
        epochs(axis)
    _legend(drawing, colours)
    return drawing


def accuracy_curves(runs: Sequence[Run]) -> Any:
    """Draw the accuracies of several runs: evaluation solid, training dashed (He & Fan, 5 to 7).

    Returns:
        The figure; None where no log holds an accuracy.
    """
    drawing, (axis,) = grid(1, 1, 2.6)
    colours = {}
    for k, run in enumerate(runs):
        evaluated, trained = (series(run, key) for key in ("eval_accuracy", "accuracy"))
        if evaluated[0] or trained[0]:
            colours[run.name] = COLOURS[k % len(COLOURS)]
            _line(axis, trained, color=colours[run.name], linestyle="--", linewidth=0.8, alpha=0.7)
            _line(axis, evaluated, color=colours[run.name])
    if not colours:
        return None
    epochs(axis)
    axis.set_ylabel("accuracy in %", fontsize=8)
    axis.yaxis.set_major_formatter(_percent)
    low, high = axis.get_ylim()
    if high - low < _LEAST_SPAN:  # a flat line or one point, which is no drama
        middle = (low + high) / 2
        axis.set_ylim(middle - _LEAST_SPAN / 2, middle + _LEAST_SPAN / 2)
    _legend(drawing, colours)
    return drawing


def accuracy_against_zeros(runs: Sequence[Run]) -> Any:
    """Draw a point a run (Zhu et al., Figure 5).

    Returns:
        The figure; None where fewer than two runs have both numbers.
    """
    points = {run.name: point for run in runs if (point := outcome(run)) is not None}
    if len(points) < 2:
        return None
    drawing, (axis,) = grid(1, 1, 2.6)
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(points)}
    for name, (zeros, accuracy) in points.items():
        axis.plot(zeros, accuracy, "o", color=colours[name])
    axis.set_xlabel("zeros in %", fontsize=8)
    axis.set_ylabel("accuracy in %", fontsize=8)
    axis.xaxis.set_major_formatter(_percent)
    axis.yaxis.set_major_formatter(_percent)
    axis.margins(0.15)
    _legend(drawing, colours)
    return drawing


def _line(axis: Any, points: tuple[list[float], list[float]], **style: Any) -> None:
    # A line of one point would be invisible.
    marker = "o" if len(points[0]) == 1 else None
    axis.plot(*points, **{"linewidth": 1.2, "marker": marker, "markersize": 3, **style})


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.4g}"


def _legend(drawing: Any, colours: Mapping[str, str]) -> None:
    handles = [
        Line2D([], [], color=colour, marker="s", linestyle="") for colour in colours.values()
    ]
    # A legend leaves out labels that begin with _, and reads $ as mathematics: set afterwards.
    blank = ["x"] * len(handles)
    legend = drawing.legend(
        handles, blank, loc="outside lower center", ncols=2, fontsize=7, frameon=False
    )
    for text, name in zip(legend.get_texts(), colours, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
