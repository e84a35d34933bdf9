"""What a data set is before any transform: splits that can be indexed, or streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from PIL.Image import Image as PILImage

from ...errors.wording import unknown
from ..arguments import DataArguments
from ..images import BROKEN, plain

__all__ = ["Row", "Source", "Split", "Stream", "read_image", "split_names", "title"]

_EVAL_SPLITS = ("test", "validation", "val")

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
        return Split(self.name, self.labels[chosen], self.read, self.rows[chosen])


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

    Raises:
        ValueError: A split that `args` names is not there, or none to evaluate on.
    """
    for field, name in (("train_split", args.train_split), ("eval_split", args.eval_split)):
        if name is not None and name not in splits:
            raise ValueError(f"{title(args)}: " + unknown(field, name, splits))
    if args.eval_split is not None:
        return args.train_split, args.eval_split
    found = [name for name in _EVAL_SPLITS if name in splits and name != args.train_split]
    if not found:
        raise ValueError(
            f"{title(args)} has no split test, validation or val to evaluate on, only "
            f"{', '.join(splits)}: name one with eval_split, or give "
            '{"train": FILE, "test": FILE}'
        )
    return args.train_split, found[0]


def read_image(what: str, path: str | None, load: Callable[[], PILImage]) -> PILImage:
    """The image that `load` decodes, as `images.plain` gives it.

    Args:
        what: The image, for the error.
        path: Its file, where known.

    Raises:
        ValueError: It cannot be read. One line.
    """
    try:
        return plain(load())
    except BROKEN as error:
        file = f" ({path})" if path else ""
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"{what}{file} cannot be read: {reason}") from error
