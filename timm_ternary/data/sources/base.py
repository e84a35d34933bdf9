"""What a data set is before any transform: splits that can be indexed, or streams."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from PIL.Image import Image as PILImage

from ...errors.printable import printable
from ...errors.wording import unknown
from ...files import check_regular
from ..arguments import DataArguments
from ..images import BROKEN, plain

__all__ = [
    "HELD_OUT",
    "Row",
    "Source",
    "Split",
    "Stream",
    "hold_out",
    "read_image",
    "split_names",
    "title",
]

_logger = logging.getLogger(__name__)

_EVAL_SPLITS = ("test", "validation", "val")

HELD_OUT = "held-out"
"""The name of what is held out of a training split where there is no other."""
_SHARE = 5  # every so many-th image of a class is held out

Row = tuple[Callable[[], PILImage], int]
"""Decodes an image, or raises a ValueError that names it; and its label."""


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
        return self.select(self.name, chosen)

    def select(self, name: str, chosen: NDArray[np.int64]) -> Split:
        """The images at `chosen`, as a split of that name."""
        return Split(name, self.labels[chosen], self.read, self.rows[chosen])


@dataclass(frozen=True)
class Stream:
    """The images of one split, which can only be read from the beginning on.

    Attributes:
        name: For errors, e.g. ``"train"``.
        rows: The images of a pass, counted from 0, in the order of that pass; None: in the order
            in which they are stored. Decoding is left to the reader, who may pass over an image.
    """

    name: str
    rows: Callable[[int | None], Iterator[Row]]


Part = TypeVar("Part", Split, Stream)


@dataclass(frozen=True)
class Source(Generic[Part]):
    """A train and an eval split with the same classes, before any transform.

    Attributes:
        label_names: Name of each class, by label.
        mirror: Whether a mirrored image keeps its label.
    """

    train: Part
    eval: Part
    label_names: tuple[str, ...]
    mirror: bool = True


def title(args: DataArguments) -> str:
    """The data set, for errors."""
    return f"dataset {args.dataset!r}"


def split_names(args: DataArguments, splits: list[str]) -> tuple[str, str]:
    """Names of the train and the eval split, of those that there are.

    Where there is only the train split, the eval split is called HELD_OUT; see `hold_out`.

    Raises:
        ValueError: A split that `args` names is not there, or none to evaluate on.
    """
    for field, name in (("train_split", args.train_split), ("eval_split", args.eval_split)):
        if name not in (None, HELD_OUT, *splits):
            raise ValueError(f"{title(args)}: " + unknown(field, name, splits))
    if args.eval_split is not None:
        return args.train_split, args.eval_split
    found = [name for name in _EVAL_SPLITS if name in splits and name != args.train_split]
    if splits == [args.train_split]:
        return args.train_split, HELD_OUT
    if not found:
        raise ValueError(
            f"{title(args)} has no split test, validation or val to evaluate on, only "
            f"{', '.join(splits)}: name one with eval_split, or give "
            '{"train": FILE, "test": FILE}'
        )
    return args.train_split, found[0]


def hold_out(args: DataArguments, train: Split) -> tuple[Split, Split]:
    """A split in two: to train on, and a fifth of the images of each class, to evaluate on.

    The same images whatever the seed of a run, so that runs compare and nobody trains on what
    another command evaluates on.
    """
    rng = np.random.default_rng(0)
    chosen = np.zeros(len(train), bool)
    for label in np.unique(train.labels):
        members = rng.permutation(np.flatnonzero(train.labels == label))
        count = max(len(members) // _SHARE, 1) if len(members) > 1 else 0
        chosen[members[:count]] = True
    _logger.warning(
        "%s has the split %s alone: %d of its %d images, a fifth of each class, are held out for "
        "evaluation",
        title(args),
        train.name,
        chosen.sum(),
        len(train),
    )
    first, second = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    return train.select(train.name, first), train.select(HELD_OUT, second)


def read_image(what: str, path: str | None, load: Callable[[], PILImage]) -> PILImage:
    """The image that `load` decodes, as `images.plain` gives it.

    Args:
        what: The image, for the error.
        path: Its file, where known.

    Raises:
        ValueError: It cannot be read. One line.
    """
    file = f" ({printable(path)})" if path else ""
    try:
        if path and os.path.exists(path):  # not a member of a tar file
            check_regular(path)
        return plain(load())
    except BROKEN as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"{what}{file} cannot be read: {reason}") from error
