"""Where images come from: scikit-learn's digits, image folders, parquet files, the Hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from datasets.exceptions import DatasetsError
from numpy.typing import NDArray
from PIL.Image import Image as PILImage
from PIL.Image import fromarray

from ..errors import unknown
from .arguments import DataArguments

__all__ = ["Source", "Split", "open_source"]

_EVAL_SPLITS = ("test", "validation", "val")
_IMAGE_NAMES = ("image", "img", "images", "jpg", "png")
_LABEL_NAMES = ("label", "labels", "class", "target", "cls")


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        name: For errors, e.g. ``"train"``.
        labels: int64 (N,), each at least 0.
        read: Decodes the image at a row of the split.
        rows: Row of each image in `read`; int64 (N,).
    """

    name: str
    labels: NDArray[np.int64]
    read: Callable[[int], PILImage]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> PILImage:
        """The image at `index`.

        Raises:
            ValueError: It cannot be read; names the split, the row and, where known, the file.
        """
        return self.read(int(self.rows[index]))

    def spread(self, count: int | None) -> Split:
        """At most `count` images at even distances: a file sorted by class keeps its classes."""
        if count is None or count >= len(self):
            return self
        chosen = np.linspace(0, len(self) - 1, count).round().astype(np.int64)
        return Split(self.name, self.labels[chosen], self.read, self.rows[chosen])


@dataclass(frozen=True)
class Source:
    """A train and an eval split with the same classes, before any transform.

    Attributes:
        label_names: Name of each class, by label.
        mirror: Whether a mirrored image keeps its label.
    """

    train: Split
    eval: Split
    label_names: tuple[str, ...]
    mirror: bool = True


def open_source(args: DataArguments) -> Source:
    """Find the data set that `args.dataset` names, its splits, columns and labels.

    Raises:
        ValueError: It cannot be read, or lacks a split, a column or usable labels. One line.
    """
    source = _digits(args) if args.dataset == "digits" else _tables(args)
    if len(source.label_names) < 2:
        raise ValueError(
            f"{_title(args)} has {len(source.label_names)} class; training needs at least 2"
        )
    missing = sorted(set(source.eval.labels.tolist()) - set(source.train.labels.tolist()))
    if missing:
        names = ", ".join(repr(source.label_names[label]) for label in missing[:5])
        raise ValueError(
            f"split {source.eval.name!r} has classes that split {source.train.name!r} lacks: "
            f"{names}"
        )
    return source


def _title(args: DataArguments) -> str:
    return f"dataset {args.dataset!r}"


def _digits(args: DataArguments) -> Source:
    """1,797 handwritten digits, 8x8 grey; every fifth, drawn by class, is held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    # The values are counts of 0 … 16 set pixels in 4x4 blocks.
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )

    def split(name: str, rows: NDArray[np.int64]) -> Split:
        return Split(name, labels[rows], lambda row: fromarray(images[row]), rows)

    rows = {"train": train, "test": test}
    first, second = (split(name, rows[name]) for name in _split_names(args, list(rows)))
    return Source(first, second, tuple(str(digit) for digit in range(10)), mirror=False)


def _tables(args: DataArguments) -> Source:
    splits = _load(args)
    train_name, eval_name = _split_names(args, list(splits))
    image = _image_column(args, splits[train_name])
    label = _label_column(args, splits[train_name], image)
    train = _split(train_name, splits[train_name], image, label)
    evaluation = _split(eval_name, splits[eval_name], image, label)
    _check_files(args, label)
    feature = splits[train_name].features[label]
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
    else:
        highest = int(max(train.labels.max(), evaluation.labels.max()))
        names = tuple(str(number) for number in range(highest + 1))
    for part in (train, evaluation):
        _check_range(part, len(names))
    return Source(train, evaluation, names)


def _load(args: DataArguments) -> DatasetDict:
    dataset = args.dataset
    try:
        if isinstance(dataset, Mapping):
            return load_dataset("parquet", data_files=dict(dataset))
        path = Path(str(dataset)).expanduser()
        if path.is_file():
            if path.suffix != ".parquet":
                raise ValueError("it is a file, but not a .parquet file")
            return load_dataset("parquet", data_files={args.train_split: str(path)})
        if not path.exists() and (path.suffix == ".parquet" or str(dataset)[0] in "./~"):
            raise ValueError("no such file or directory")
        return load_dataset(str(path) if path.exists() else str(dataset), args.dataset_config)
    except (OSError, ValueError, DatasetsError) as error:
        hint = (
            ""
            if isinstance(dataset, Mapping) or Path(str(dataset)).exists()
            else ("; give a path that exists, a Hub name you can reach, or digits")
        )
        reason = " ".join(str(error).split()).replace("Instruction", "split")
        reason = reason.replace("corresponds to no data!", "is empty")
        raise ValueError(f"cannot read {_title(args)}: {reason}{hint}") from error


def _split_names(args: DataArguments, splits: list[str]) -> tuple[str, str]:
    for field, name in (("train_split", args.train_split), ("eval_split", args.eval_split)):
        if name is not None and name not in splits:
            raise ValueError(f"{_title(args)}: " + unknown(field, name, splits))
    if args.eval_split is not None:
        return args.train_split, args.eval_split
    found = [name for name in _EVAL_SPLITS if name in splits and name != args.train_split]
    if not found:
        raise ValueError(
            f"{_title(args)} has no split test, validation or val to evaluate on, only "
            f"{', '.join(splits)}: name one with eval_split, or give "
            '{"train": FILE, "test": FILE}'
        )
    return args.train_split, found[0]


def _image_column(args: DataArguments, dataset: Dataset) -> str:
    typed = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    named = [name for name in _IMAGE_NAMES if name in dataset.features]
    return _column(args, "image_column", args.image_column, dataset, typed or named[:1])


def _label_column(args: DataArguments, dataset: Dataset, image: str) -> str:
    typed = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    named = [name for name in _LABEL_NAMES if name in dataset.features and name != image]
    return _column(args, "label_column", args.label_column, dataset, typed or named[:1])


def _column(
    args: DataArguments, field: str, asked: str | None, dataset: Dataset, found: list[str]
) -> str:
    """The column asked for, else the only one found."""
    columns = dataset.column_names
    if asked is not None:
        if asked not in columns:
            raise ValueError(f"{_title(args)}: " + unknown(field, asked, columns))
        return asked
    if len(found) != 1:
        state = f"could be {' or '.join(found)}" if found else "was not found"
        folders = "; an image folder has a subdirectory for each of at least 2 classes"
        raise ValueError(
            f"{_title(args)}: the {field.replace('_', ' ')} {state}; name it with {field}"
            f"{folders if columns == ['image'] else ''}. Columns: {', '.join(columns)}."
        )
    return found[0]


def _split(name: str, dataset: Dataset, image: str, label: str) -> Split:
    if not len(dataset):
        raise ValueError(f"split {name!r} is empty")
    for column in (image, label):
        if column not in dataset.features:
            raise ValueError(
                f"split {name!r} has no column {column!r}, only {', '.join(dataset.column_names)}"
            )
    labels = _labels(name, dataset, label)
    try:
        cells = dataset.select_columns([image]).cast_column(image, Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's, for a cast
        raise ValueError(
            f"column {image!r} of split {name!r} holds {dataset.features[image]}, not images"
        ) from error
    decoder = Image(decode=True)

    def read(row: int) -> PILImage:
        cell = cells[row][image]
        try:
            if cell is None:
                raise ValueError("it is missing")
            return decoder.decode_example(cell)
        except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for broken files
            file = f" ({cell['path']})" if cell and cell["path"] else ""
            reason = "not an image" if "cannot identify" in str(error) else str(error)
            raise ValueError(
                f"image in row {row} of split {name!r}{file} cannot be read: {reason}"
            ) from error

    return Split(name, labels, read, np.arange(len(dataset)))


def _labels(name: str, dataset: Dataset, column: str) -> NDArray[np.int64]:
    feature = dataset.features[column]
    integers = isinstance(feature, Value) and "int" in feature.dtype
    if not integers and not isinstance(feature, ClassLabel):
        kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
        raise ValueError(
            f"labels must be integers, but column {column!r} of split {name!r} holds {kind}: "
            f"convert it with datasets' class_encode_column({column!r})"
        )
    values = dataset.select_columns([column]).with_format("arrow")[:][column]
    if values.null_count:
        raise ValueError(f"column {column!r} of split {name!r} lacks {values.null_count} labels")
    return values.to_numpy().astype(np.int64)


def _check_files(args: DataArguments, label: str) -> None:
    """Local parquet files must name the same classes: `datasets` applies one's names to all."""
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


def _check_range(split: Split, num_classes: int) -> None:
    bad = np.flatnonzero((split.labels < 0) | (split.labels >= num_classes))
    if len(bad):
        raise ValueError(
            f"label {split.labels[bad[0]]} in row {bad[0]} of split {split.name!r} is not in "
            f"0 … {num_classes - 1}"
        )
