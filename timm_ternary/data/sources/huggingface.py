"""Where images come from: scikit-learn's digits, image folders, parquet files, the Hub, timm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Image,
    IterableDataset,
    IterableDatasetDict,
    load_dataset,
)
from datasets.exceptions import DatasetsError
from numpy.typing import NDArray
from PIL.Image import Image as PILImage
from PIL.Image import fromarray

from ...errors.wording import flat
from ..arguments import TIMM, DataArguments
from .base import (
    HELD_OUT,
    Row,
    Source,
    Split,
    Stream,
    hold_out,
    read_image,
    split_names,
    title,
)
from .columns import check_columns, check_files, image_column, label_column, undecoded
from .labels import check_label_column, class_labels, other_split
from .paths import check_there
from .timm import timm_source

__all__ = ["open_source", "open_stream"]

# Of the seed of a pass: the shuffle and the transform must not draw the same numbers.
_SHUFFLE = 1


def open_source(args: DataArguments) -> Source[Split]:
    """Find the data set that `args.dataset` names, its splits, columns and labels.

    Raises:
        ValueError: It cannot be read, or lacks a split, a column or usable labels. One line.
    """
    if args.dataset == "digits":
        source = _digits(args)
    elif str(args.dataset).startswith(TIMM):
        source = timm_source(args)
    else:
        source = _tables(args)
    _check_count(args, source.label_names)
    missing = sorted(set(source.eval.labels.tolist()) - set(source.train.labels.tolist()))
    if missing:
        names = ", ".join(repr(source.label_names[label]) for label in missing[:5])
        raise ValueError(
            f"split {source.eval.name!r} has classes that split {source.train.name!r} lacks: "
            f"{names}"
        )
    return source


def open_stream(args: DataArguments, seed: int) -> Source[Stream]:
    """As `open_source`, for images that are read as they come.

    Args:
        seed: Decides the order of the training images.

    Raises:
        ValueError: As `open_source`, for what can be known before the images are read.
    """
    splits = _load(args)
    train_name, eval_name = split_names(args, list(splits))
    if eval_name == HELD_OUT:
        raise ValueError(
            f"{title(args)} has the split {train_name} alone, and a stream cannot be divided: "
            'give {"train": FILE, "test": FILE}, or leave streaming out'
        )
    for name in (train_name, eval_name):
        if splits[name].features is None:
            raise ValueError(
                f"split {name!r} does not say which columns it has: leave streaming out"
            )
    image = image_column(args, splits[train_name])
    label = label_column(args, splits[train_name], image)
    check_files(args, label)
    feature = splits[train_name].features[label]
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
        if args.num_classes not in (None, len(names)):
            raise ValueError(
                f"num_classes is {args.num_classes}, but column {label!r} names {len(names)} "
                "classes: leave num_classes out"
            )
    elif args.num_classes is None:
        raise ValueError(
            f"{title(args)}: column {label!r} does not name its classes, and a stream cannot be "
            "searched for them: type --num_classes NUMBER"
        )
    else:
        names = tuple(str(number) for number in range(args.num_classes))
    _check_count(args, names)

    hint = other_split(splits, (train_name, eval_name))

    def stream(name: str, count: int | None, shuffle: int | None) -> Stream:
        instead = hint if name == eval_name else ""
        check_columns(name, splits[name], image, label, instead)
        check_label_column(name, splits[name], label, stream=True)
        table = undecoded(name, splits[name], image, label)
        table = table if count is None else table.take(count)
        read = partial(_rows, name, table, len(names), instead)
        return Stream(name, lambda number: read(number, shuffle, seed))

    return Source(
        stream(train_name, args.max_train_samples, args.shuffle_buffer),
        stream(eval_name, args.max_eval_samples, None),
        names,
    )


def _rows(
    name: str,
    table: IterableDataset,
    num_classes: int,
    instead: str,
    number: int | None,
    shuffle: int | None,
    seed: int,
) -> Iterator[Row]:
    """As `Stream.rows`; shuffled with a buffer of `shuffle` images, or not at all."""
    image, label = table.column_names
    if shuffle is not None and number is not None:
        # Not the stream's own set_epoch: its epoch is shared by workers in different passes.
        words = [value & (1 << 63) - 1 for value in (seed, number, _SHUFFLE)]
        order = int(np.random.SeedSequence(words).generate_state(1)[0])
        table = table.shuffle(seed=order, buffer_size=shuffle)
    try:
        # Not iter(table): in a worker that gives a share of the files, here all of them are meant.
        for index, cells in enumerate(table.iter(batch_size=1)):
            cell, value = cells[image][0], cells[label][0]
            what = f"image {index} of pass {number or 0} through split {name!r}"
            if value is None or not 0 <= value < num_classes:
                path = f" ({cell['path']})" if cell and cell["path"] else ""
                hint = f": {instead}" if instead else ""
                raise ValueError(f"{what}{path} has label {value}, not 0 … {num_classes - 1}{hint}")
            yield partial(_decode, what, cell), int(value)
    except (OSError, DatasetsError) as error:
        reason = flat(error)
        raise ValueError(f"cannot read split {name!r}: {reason}") from error


def _check_count(args: DataArguments, names: tuple[str, ...]) -> None:
    if len(names) < 2:
        raise ValueError(f"{title(args)} has {len(names)} class; training needs at least 2")


def _digits(args: DataArguments) -> Source[Split]:
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
    train_name, eval_name = split_names(args, list(rows))
    first = split(train_name, rows[train_name])
    if eval_name == HELD_OUT:
        first, second = hold_out(args, first)
    else:
        second = split(eval_name, rows[eval_name])
    return Source(first, second, tuple(str(digit) for digit in range(10)), mirror=False)


def _tables(args: DataArguments) -> Source[Split]:
    splits = _load(args)
    train_name, eval_name = split_names(args, list(splits))
    image = image_column(args, splits[train_name])
    label = label_column(args, splits[train_name], image)
    hints = {eval_name: other_split(splits, (train_name, eval_name))}
    parts = {
        name: splits[name] for name in dict.fromkeys((train_name, eval_name)) if name != HELD_OUT
    }
    for name, part in parts.items():
        if not len(part):
            raise ValueError(f"split {name!r} is empty")
        check_columns(name, part, image, label, hints.get(name, ""))
        check_label_column(name, part, label, stream=False)
    check_files(args, label)
    labels, names = class_labels(parts, label, hints)
    read = {name: _split(name, part, image, labels[name]) for name, part in parts.items()}
    train = read[train_name]
    if eval_name == HELD_OUT:
        return Source(*hold_out(args, train), names)
    return Source(train, read[eval_name], names)


def _load(args: DataArguments) -> DatasetDict | IterableDatasetDict:
    dataset = args.dataset
    read = partial(load_dataset, streaming=args.streaming)
    try:
        check_there(dataset if isinstance(dataset, Mapping) else str(dataset))
        if isinstance(dataset, Mapping):
            return read("parquet", data_files=dict(dataset))
        path = Path(str(dataset)).expanduser()
        if path.is_file():
            if path.suffix != ".parquet":
                raise ValueError("it is a file, but not a .parquet file")
            return read("parquet", data_files={args.train_split: str(path)})
        return read(str(path) if path.exists() else str(dataset), args.dataset_config)
    except (OSError, ValueError, DatasetsError) as error:
        hint = (
            ""
            if isinstance(dataset, Mapping) or Path(str(dataset)).exists()
            else ("; give a path that exists, a Hub name you can reach, or digits")
        )
        reason = flat(error).replace("Instruction", "split")
        reason = reason.replace("corresponds to no data!", "is empty")
        raise ValueError(f"cannot read {title(args)}: {reason}{hint}") from error


def _split(name: str, dataset: Dataset, image: str, labels: NDArray[np.int64]) -> Split:
    cells = undecoded(name, dataset, image)

    def read(row: int) -> PILImage:
        return _decode(f"image in row {row} of split {name!r}", cells[row][image])

    return Split(name, labels, read, np.arange(len(dataset)))


def _decode(what: str, cell: dict[str, Any] | None) -> PILImage:
    """The image of an undecoded cell."""

    def load() -> PILImage:
        if cell is None:
            raise ValueError("it is missing")
        return Image(decode=True).decode_example(cell)

    return read_image(what, cell["path"] if cell else None, load)
