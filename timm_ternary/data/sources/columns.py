"""Columns of a table of images: which they are, and whether they hold images and labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset

from ...errors.wording import unknown
from ..arguments import DataArguments
from .base import title

__all__ = ["Table", "check_columns", "check_files", "image_column", "label_column", "undecoded"]

_IMAGE_NAMES = ("image", "img", "images", "jpg", "png")
_LABEL_NAMES = ("label", "labels", "class", "target", "cls")

Table: TypeAlias = Dataset | IterableDataset


def image_column(args: DataArguments, dataset: Table) -> str:
    """The column of images: the one asked for, else the only one of that type or name.

    Raises:
        ValueError: There is no such column, or several.
    """
    typed = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    named = [name for name in _IMAGE_NAMES if name in dataset.features]
    return _column(args, "image_column", args.image_column, dataset, typed or named[:1])


def label_column(args: DataArguments, dataset: Table, image: str) -> str:
    """The column of labels, other than `image`; found in the same way, with the same errors."""
    typed = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    named = [name for name in _LABEL_NAMES if name in dataset.features and name != image]
    return _column(args, "label_column", args.label_column, dataset, typed or named[:1])


def _column(
    args: DataArguments, field: str, asked: str | None, dataset: Table, found: list[str]
) -> str:
    """The column asked for, else the only one found."""
    columns = dataset.column_names
    if asked is not None:
        if asked not in columns:
            raise ValueError(f"{title(args)}: " + unknown(field, asked, columns))
        return asked
    if len(found) != 1:
        state = f"could be {' or '.join(found)}" if found else "was not found"
        folders = "; an image folder has a subdirectory for each of at least 2 classes"
        raise ValueError(
            f"{title(args)}: the {field.replace('_', ' ')} {state}; name it with {field}"
            f"{folders if columns == ['image'] else ''}. Columns: {', '.join(columns)}."
        )
    return found[0]


def check_columns(name: str, dataset: Table, image: str, label: str, hint: str) -> None:
    """Refuse a split without the columns.

    Args:
        hint: What to type instead, for the error; may be empty.

    Raises:
        ValueError: See above; names the split, `name`.
    """
    for column in (image, label):
        if column not in dataset.features:
            raise ValueError(
                f"split {name!r} has no column {column!r}, only {', '.join(dataset.column_names)}"
                + (f": {hint}" if hint else "")
            )


def undecoded(name: str, dataset: Table, image: str, *rest: str) -> Table:
    """The columns `image` and `rest`; images as ``{"bytes": ..., "path": ...}``.

    Raises:
        ValueError: The column does not hold images.
    """
    try:
        return dataset.select_columns([image, *rest]).cast_column(image, Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's, for a cast
        raise ValueError(
            f"column {image!r} of split {name!r} holds {dataset.features[image]}, not images"
        ) from error


def check_files(args: DataArguments, label: str) -> None:
    """Local parquet files must name the same classes: `datasets` applies one's names to all.

    Raises:
        ValueError: Two of them do not.
    """
    dataset = args.dataset
    if isinstance(dataset, Mapping):
        files = [value for value in dataset.values() if isinstance(value, str)]
    else:
        files = [str(file) for file in sorted(Path(str(dataset)).expanduser().rglob("*.parquet"))]
    found: dict[str, list[str]] = {}
    for file in files:
        if not Path(file).is_file():
            continue  # a pattern or an address
        features = Features.from_arrow_schema(pyarrow.parquet.read_schema(file))
        if isinstance(features.get(label), ClassLabel):
            found[file] = features[label].names
    for file, names in found.items():
        first = next(iter(found))
        if names != found[first]:
            differing = sorted(set(names) ^ set(found[first])) or names
            raise ValueError(f"{first} and {file} have different classes, e.g. {differing[0]!r}")
