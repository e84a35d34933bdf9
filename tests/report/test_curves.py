"""The lines that the figures of runs hold."""

from __future__ import annotations

from typing import Any

import pytest

from timm_ternary.report import curves
from timm_ternary.report.drawing import png
from timm_ternary.report.runs import Run


def _run(name: str, accuracy: float = 0.5, **metrics: float) -> Run:
    entries: list[dict[str, Any]] = []
    for epoch in (1.0, 2.0):
        layers = {f"zeros/l{k}": 0.1 * k + 0.01 * epoch for k in (2, 0, 1)}
        entries.append({"epoch": epoch, "accuracy": 0.4, "threshold/l0": 3 * epoch, **layers})
        entries.append({"epoch": epoch, "eval_accuracy": accuracy + 0.1 * epoch})
    return Run(name, tuple(entries), dict(metrics))


def _lines(axis: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]


def test_layers_over_training() -> None:
    figure = curves.layers_over_training(_run("a"), order=["l0", "l1", "l2"])
    threshold, zeros = figure.axes
    assert (threshold.get_ylabel(), zeros.get_ylabel()) == ("threshold", "zeros")
    assert _lines(threshold) == [([1, 2], [3, 6])]
    assert [y for _, y in _lines(zeros)] == [
        pytest.approx([0.1 * k + 0.01, 0.1 * k + 0.02]) for k in range(3)
    ]
    assert threshold.lines[0].get_color() == zeros.lines[0].get_color()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["l0", "l1", "l2"]
    assert curves.layers_over_training(Run("b", ({"epoch": 1, "zeros": 0.1},), {})) is None


@pytest.mark.parametrize("last", [0.75, 1, 5, 30, 400])
def test_axes_count_whole_epochs_from_the_beginning(last: float) -> None:
    entries = tuple({"epoch": k * last / 4, "zeros/a": 0.1, "accuracy": 0.5} for k in (3, 4))
    run = Run("a", entries, {})
    for figure in (curves.layers_over_training(run), curves.accuracy_curves([run])):
        figure.canvas.draw()
        (axis,) = figure.axes
        left, right = axis.get_xlim()
        ticks = [tick for tick in axis.get_xticks() if left <= tick <= right]
        assert left == 0 and last < right < 1.1 * max(last, 1)
        assert len(ticks) > 1 and all(tick == int(tick) for tick in ticks)
        assert axis.get_xlabel() == "epoch" and axis.get_ylabel()


def test_one_evaluation_is_no_drama() -> None:
    figure = curves.accuracy_curves([Run("a", ({"epoch": 5, "eval_accuracy": 0.9},), {})])
    low, high = figure.axes[0].get_ylim()
    assert high - low >= 0.02 - 1e-9 and low < 0.9 < high


def test_a_deep_model_shows_some_of_its_layers() -> None:
    names = [f"l{k}" for k in range(100)]
    entry = {"epoch": 1.0, **{f"zeros/{name}": 0.5 for name in names}}
    figure = curves.layers_over_training(Run("deep", (entry,), {}), order=names)
    shown = [text.get_text() for text in figure.legends[0].texts]
    assert len(shown) == curves.MOST_LAYERS and (shown[0], shown[-1]) == ("l0", "l99")
    assert figure.axes[0].lines[0].get_marker() == "o"  # one point alone is no line


def test_accuracy_curves_of_several_runs() -> None:
    figure = curves.accuracy_curves([_run("a"), _run("b", 0.7)])
    dashed, solid = _lines(figure.axes[0])[0::2], _lines(figure.axes[0])[1::2]
    assert dashed == [([1, 2], [0.4, 0.4])] * 2
    assert [y for _, y in solid] == [pytest.approx([0.6, 0.7]), pytest.approx([0.8, 0.9])]
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "b"]
    assert curves.accuracy_curves([Run("c", (), {})]) is None


def test_accuracy_against_zeros() -> None:
    runs = [_run("a", zeros=0.3), _run("b", 0.7, zeros=0.5), _run("no zeros")]
    figure = curves.accuracy_against_zeros(runs)
    assert _lines(figure.axes[0]) == [([0.3], [0.7]), ([0.5], [pytest.approx(0.9)])]
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "b"]
    assert curves.accuracy_against_zeros(runs[1:]) is None


def test_names_of_runs_are_no_mathematics() -> None:
    names = ["x$\\foo$", "_hidden", "lr$1_$2"]
    figure = curves.accuracy_curves([_run(name) for name in names])
    texts = figure.legends[0].get_texts()
    assert [text.get_text() for text in texts] == names
    assert not any(text.get_parse_math() for text in texts)
    assert len(png(figure)) > 1000  # drawn: matplotlib parses then
