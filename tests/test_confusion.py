"""Which classes are taken for which, counted without a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from timm_ternary.confusion import Confusion

NAMES = ("cat", "dog", "eel")
FOUND = Confusion(NAMES, {(0, 0): 6, (0, 1): 1, (0, 2): 3, (1, 1): 4, (1, 0): 1})


def test_classes_of_an_evaluation() -> None:
    cat, dog, eel = FOUND.classes()
    assert (cat.name, cat.images, cat.correct, cat.accuracy) == ("cat", 10, 6, 0.6)
    assert cat.mistaken_for == "eel" and dog.mistaken_for == "cat"
    assert (dog.images, dog.accuracy) == (5, 0.8)
    # A class without an image has no accuracy, not one of 0.
    assert (eel.images, eel.accuracy, eel.mistaken_for) == (0, None, None)
    assert FOUND.images == 15 and FOUND.majority == pytest.approx(10 / 15)


def test_the_most_frequent_mistakes_come_first() -> None:
    pairs = [(p.name, p.predicted_name, p.images, p.share) for p in FOUND.pairs(2)]
    assert pairs == [("cat", "eel", 3, 0.3), ("cat", "dog", 1, 0.1)]
    assert len(FOUND.pairs(10)) == 3 and Confusion(NAMES, {(0, 0): 1}).pairs(5) == []


def test_the_matrix_and_its_list() -> None:
    assert np.array_equal(FOUND.matrix(), [[6, 1, 3], [1, 4, 0], [0, 0, 0]])
    assert FOUND.to_list()[0] == [0, 0, 6]
    again = Confusion.from_list(list(NAMES), FOUND.to_list())
    assert again == FOUND


@pytest.mark.parametrize(
    ("names", "entries"),
    [
        (None, []),
        ("cat", []),
        ([1], []),
        (["a"], None),
        (["a"], [1]),
        (["a"], [[0, 0]]),
        (["a"], [[0, 1, 5]]),
        (["a"], [[0, -1, 5]]),
        (["a"], [[0, 0, -5]]),
        (["a"], [[0, 0, 1.5]]),
        (["a"], [[0, 0, True]]),
        (["a"], [[0, 0, "5"]]),
        (["a"], [[0, 0, 10**400]]),
    ],
)
def test_a_foreign_list_is_none(names: Any, entries: Any) -> None:
    assert Confusion.from_list(names, entries) is None
