"""The confusion matrix, and what stands in its place for many classes."""

from __future__ import annotations

import numpy as np
import pytest

from timm_ternary.confusion import Confusion
from timm_ternary.report import mistakes
from timm_ternary.report.drawing import png


def test_a_row_a_class_a_column_a_prediction() -> None:
    found = Confusion(("cat", "dog"), {(0, 0): 3, (0, 1): 1, (1, 1): 4})
    figure = mistakes.figure(found)
    axis = figure.axes[0]
    assert np.allclose(axis.images[0].get_array(), [[0.75, 0.25], [0, 1]])
    assert [text.get_text() for text in axis.get_yticklabels()] == ["cat", "dog"]
    assert sorted(text.get_text() for text in axis.texts) == ["1", "3", "4"]
    assert axis.get_xlabel() == "predicted class" and axis.get_ylabel() == "class"


def test_a_class_without_an_image_divides_by_nothing() -> None:
    figure = mistakes.figure(Confusion(("cat", "dog"), {(0, 0): 3}))
    assert np.allclose(figure.axes[0].images[0].get_array(), [[1, 0], [0, 0]])


def test_of_many_classes_the_pairs() -> None:
    names = tuple(f"class {k}, another name" for k in range(mistakes.MOST_CLASSES + 1))
    counts = {(k, k): 5 for k in range(len(names))} | {(k, 0): k for k in range(1, len(names))}
    figure = mistakes.figure(Confusion(names, counts))
    (axis,) = figure.axes
    assert len(axis.patches) == mistakes.MOST_PAIRS
    figure.canvas.draw()
    assert axis.get_yticklabels()[0].get_text() == f"class {len(names) - 1} → class 0"
    assert axis.patches[0].get_width() == len(names) - 1 and axis.get_xlabel() == "images"
    assert mistakes.figure(Confusion(names, {(0, 0): 5})) is None


@pytest.mark.parametrize("name", ["x$\\foo$", "a" * 500, "_hidden", "é\u202eb", ""])
def test_names_of_any_kind_are_drawn(name: str) -> None:
    for names in ((name, "dog"), (name, *map(str, range(50)))):
        figure = mistakes.figure(Confusion(names, {(0, 1): 3, (1, 0): 1}))
        assert len(png(figure)) > 1000
