"""Which classes a model takes for which: counts of (label, predicted class), and what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors.numbers import is_whole

__all__ = ["ClassResult", "Confusion", "Pair"]


@dataclass(frozen=True)
class ClassResult:
    """One class of an evaluation.

    Attributes:
        label: Its number.
        name: Its name.
        images: Images that have this label.
        correct: Those of them that were predicted so.
        accuracy: ``correct / images``; None without an image.
        mistaken_for: Name of the class that its other images are most often taken for, or None.
    """

    label: int
    name: str
    images: int
    correct: int
    accuracy: float | None
    mistaken_for: str | None


@dataclass(frozen=True)
class Pair:
    """Images of one class that were taken for another.

    Attributes:
        label, predicted: The two classes.
        name, predicted_name: Their names.
        images: Their number.
        share: Their part of all images of `label`, 0 to 1.
    """

    label: int
    predicted: int
    name: str
    predicted_name: str
    images: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """Counts of (label, predicted class).

    They are held as those that occur, never as a matrix: for 21,843 classes that would be 4 GB.

    Attributes:
        names: Of all classes, by label.
        counts: Images by label and predicted class, both below ``len(names)``.
    """

    names: tuple[str, ...]
    counts: Mapping[tuple[int, int], int]

    @property
    def images(self) -> int:
        """Images in all."""
        return sum(self.counts.values())

    @property
    def majority(self) -> float:
        """Top-1 of a model that always says the most frequent class, 0 to 1."""
        return max(self._images().values(), default=0) / max(self.images, 1)

    def classes(self) -> list[ClassResult]:
        """Every class, in the order of the labels."""
        images = self._images()
        worst: dict[int, tuple[int, int]] = {}
        for (label, predicted), count in sorted(self.counts.items()):
            if label != predicted and count > worst.get(label, (0, 0))[0]:
                worst[label] = (count, predicted)
        found = []
        for label, name in enumerate(self.names):
            correct, count = self.counts.get((label, label), 0), images[label]
            found.append(
                ClassResult(
                    label=label,
                    name=name,
                    images=count,
                    correct=correct,
                    accuracy=correct / count if count else None,
                    mistaken_for=self.names[worst[label][1]] if label in worst else None,
                )
            )
        return found

    def pairs(self, most: int) -> list[Pair]:
        """The `most` frequent mistakes, most frequent first."""
        images = self._images()
        wrong = [(n, key) for key, n in self.counts.items() if key[0] != key[1] and n]
        return [
            Pair(a, b, self.names[a], self.names[b], n, n / images[a])
            for n, (a, b) in sorted(wrong, key=lambda entry: (-entry[0], entry[1]))[:most]
        ]

    def matrix(self) -> np.ndarray[Any, Any]:
        """Counts, ``(classes, classes)``: a row a label, a column a predicted class."""
        found = np.zeros((len(self.names),) * 2, dtype=np.int64)
        for (label, predicted), count in self.counts.items():
            found[label, predicted] = count
        return found

    def to_list(self) -> list[list[int]]:
        """``[label, predicted, images]`` of every pair that occurs, for JSON."""
        return [[*key, count] for key, count in sorted(self.counts.items())]

    @classmethod
    def from_list(cls, names: Any, entries: Any) -> Confusion | None:
        """What `to_list` gave; None where a file of another hand holds anything else."""
        if not _is_list(names) or not all(isinstance(name, str) for name in names):
            return None
        if not _is_list(entries):
            return None
        counts: Counter[tuple[int, int]] = Counter()
        for entry in entries:
            if not _is_list(entry) or len(entry) != 3:
                return None
            if not all(is_whole(n, low=0) for n in entry) or max(entry[:2]) >= len(names):
                return None
            counts[entry[0], entry[1]] += entry[2]
        return cls(tuple(names), dict(counts))

    def _images(self) -> Counter[int]:
        images: Counter[int] = Counter()
        for (label, _), count in self.counts.items():
            images[label] += count
        return images


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
