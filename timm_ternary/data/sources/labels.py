"""Labels of a table as classes 0, 1, ...: numbers, names, or numbers that are names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value
from numpy.typing import NDArray

from .columns import Table

__all__ = ["check_label_column", "class_labels", "other_split"]

_logger = logging.getLogger(__name__)

# Whole numbers are names (of articles, of persons) rather than classes where of 0 ... highest
# fewer than one in ten occurs; below this many there is nothing to save.
_SPARSE, _FEW = 10, 1000

Labels = NDArray[np.int64]


def check_label_column(name: str, dataset: Table, label: str, *, stream: bool) -> None:
    """Refuse a column that does not hold one class an image.

    Args:
        name: The split, for the error.
        label: The column.
        stream: The data come as a stream, which cannot be searched for names.

    Raises:
        ValueError: See above; says what else there is.
    """
    feature = dataset.features[label]
    if isinstance(feature, ClassLabel) or _kind(feature) == "int":
        return
    found = feature.dtype if isinstance(feature, Value) else type(feature).__name__.lower()
    where = f"column {label!r} of split {name!r} holds {found}"
    if stream and _kind(feature) is not None:
        raise ValueError(f"labels of a stream must be integers, but {where}: leave streaming out")
    if _kind(feature) is None:
        others = [
            column
            for column, other in dataset.features.items()
            if column != label and (isinstance(other, ClassLabel) or _kind(other) in _NAMING)
        ]
        advice = (
            f"type --label_column {others[0]}"
            if len(others) == 1
            else f"name another with --label_column: {', '.join(others)}"
            if others
            else "a recipe cannot learn from it (TernaryTrainer takes labels (n, classes))"
        )
        raise ValueError(f"labels must be one number or name an image, but {where}: {advice}")


def class_labels(
    parts: Mapping[str, Dataset], label: str, hints: Mapping[str, str]
) -> tuple[dict[str, Labels], tuple[str, ...]]:
    """The labels of each split, int64 ``(N,)``, and the name of each class.

    Text is a name, and classes are numbered in its order. So are whole numbers of which most
    between 0 and the highest never occur: ids.

    Args:
        parts: The splits, by name; the first decides on the names of a ClassLabel.
        hints: What to type instead where the labels of a split are bad, by its name.

    Raises:
        ValueError: A label is missing, or is none. One line.
    """
    values = {name: _values(name, part, label, hints) for name, part in parts.items()}
    feature = next(iter(parts.values())).features[label]
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
    elif all(found.dtype.kind == "i" for found in values.values()):
        for name, found in values.items():
            _check_range(name, found, None, hints)
        every = np.unique(np.concatenate(list(values.values())))
        highest = int(every[-1])
        if highest < max(_FEW, _SPARSE * len(every)):
            names = tuple(str(number) for number in range(highest + 1))
        else:
            _logger.warning(
                "labels %d ... %d are taken for names: %d classes", every[0], highest, len(every)
            )
            return _numbered(values, every.tolist())
    else:
        first = next(iter(values.values()))  # all splits of a data set have the same columns
        if len(set(first.tolist())) > max(_FEW, len(first) // 2):
            raise ValueError(
                f"column {label!r} holds {len(set(first.tolist())):,} different texts for "
                f"{len(first):,} images, which are no classes: name another with --label_column"
            )
        texts = {str(text) for found in values.values() for text in set(found.tolist())}
        return _numbered(values, sorted(texts, key=_order(texts)))
    for name, found in values.items():
        _check_range(name, found, len(names), hints)
    return values, names


def other_split(splits: Iterable[str], used: Sequence[str]) -> str:
    """What to type where the labels of the evaluation split are bad, or nothing."""
    found = [name for name in splits if name not in used]
    named = [name for name in found if name.startswith(("val", "dev", "test"))] or found
    return f"type --eval_split {named[0]}" if named else ""


_NAMING = ("int", "text", "bool")


def _kind(feature: Any) -> str | None:
    """What a column holds, of what labels can be made from; None: nothing of that."""
    dtype = feature.dtype if isinstance(feature, Value) else ""
    if "int" in dtype:
        return "int"
    if "string" in dtype:
        return "text"
    return "float" if dtype.startswith("float") else "bool" if dtype == "bool" else None


def _values(name: str, dataset: Dataset, label: str, hints: Mapping[str, str]) -> Labels:
    """The column as int64, or as text (dtype object)."""
    column = dataset.select_columns([label]).with_format("arrow")[:][label]
    hint = _hinted(hints.get(name, ""))
    if column.null_count:
        lacking = "all" if column.null_count == len(column) else str(column.null_count)
        raise ValueError(f"column {label!r} of split {name!r} lacks {lacking} labels{hint}")
    kind = _kind(dataset.features[label])
    if kind in ("text", "bool"):
        return np.array([str(value) for value in column.to_pylist()], dtype=object)
    found = column.to_numpy()
    if kind == "float":
        bad = np.flatnonzero(~np.isfinite(found) | (found != np.rint(found)))
        if len(bad):
            raise ValueError(
                f"label {found[bad[0]]} in row {bad[0]} of split {name!r} is no whole number{hint}"
            )
    return found.astype(np.int64)


def _check_range(name: str, found: Labels, classes: int | None, hints: Mapping[str, str]) -> None:
    bad = np.flatnonzero((found < 0) | (found >= (classes or np.inf)))
    if not len(bad):
        return
    hint = _hinted(hints.get(name, ""))
    if len(bad) == len(found) and (found == -1).all():
        raise ValueError(f"split {name!r} is not labelled, all its labels are -1{hint}")
    allowed = f"0 … {classes - 1}" if classes else "0, 1, ..."
    raise ValueError(
        f"label {found[bad[0]]} in row {bad[0]} of split {name!r} is not in {allowed}{hint}"
    )


def _hinted(hint: str) -> str:
    return f": {hint}" if hint else ""


def _numbered(
    values: Mapping[str, Labels], classes: Sequence[Any]
) -> tuple[dict[str, Labels], tuple[str, ...]]:
    numbers = {value: number for number, value in enumerate(classes)}
    return {
        name: np.array([numbers[value] for value in found.tolist()], dtype=np.int64)
        for name, found in values.items()
    }, tuple(map(str, classes))


def _order(texts: Iterable[str]) -> Any:
    """Numbers written as text in the order of numbers."""
    numeric = all(text.isascii() and text.isdigit() for text in texts)
    return (lambda text: (int(text), text)) if numeric else None
