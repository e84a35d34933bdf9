"""Data sets that timm's readers or torchvision read: ``timm:ROOT``, ``timm:torch/NAME:ROOT``."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image as PILImage
from PIL.Image import open as open_image
from timm.data import create_dataset
from timm.data.readers import create_reader
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from ...errors.wording import flat, unknown
from ..arguments import TIMM, DataArguments
from .base import HELD_OUT, Source, Split, hold_out, read_image, split_names, title

__all__ = ["timm_source"]

Part = tuple[Split, tuple[str, ...]]
"""A split, and the names of its classes."""


# timm's other readers. What they read is read without them; and the last three train on some
# images twice, to fill up the last batch of each worker.
_OTHERS = ("hfds", "hfids", "tfds", "wds")
# Names of torchvision's data sets in timm, and their splits; None: the directories there are.
_TORCHVISION: dict[str, tuple[str, ...] | None] = {
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "mnist": ("train", "test"),
    "kmnist": ("train", "test"),
    "fashion_mnist": ("train", "test"),
    "imagenet": ("train", "val"),
    "image_folder": None,
}


def timm_source(args: DataArguments) -> Source[Split]:
    """Open the splits of a data set that timm reads.

    A split is a directory or a tar file below ROOT: ``ROOT/train/CLASS/*.jpg``, ``ROOT/train.tar``
    with ``CLASS/*.jpg`` in it, or ``ROOT/train/CLASS.tar``; or as torchvision's NAME has it.

    Raises:
        ValueError: No such reader, directory or split; no image; or splits of different classes.
    """
    name = str(args.dataset).removeprefix(TIMM)
    kind, _, rest = name.partition("/")
    if kind in _OTHERS:
        raise ValueError(
            f"{title(args)}: {kind} is not one of the readers taken from timm; type --dataset NAME "
            "for the Hub or --dataset DIRECTORY for webdataset tars, with --streaming true where "
            "a copy would be too large"
        )
    try:
        parts = _torchvision(args, rest) if kind == "torch" else _below(args, name)
    except (OSError, RuntimeError, tarfile.TarError) as error:  # of timm and torchvision
        reason = flat(error)
        raise ValueError(f"cannot read {title(args)}: {reason}") from error
    (train, names), (evaluation, others) = parts
    if names != others:
        differing = sorted(set(names) ^ set(others)) or list(names)
        raise ValueError(
            f"{title(args)}: splits {train.name!r} and {evaluation.name!r} have different "
            f"classes, e.g. {differing[0]!r}"
        )
    return Source(train, evaluation, names)


def _below(args: DataArguments, name: str) -> list[Part]:
    """The splits in a directory, with the names of their classes."""
    found = _directories(args, name)
    return _parts(args, list(found), lambda split: _read(split, found[split]))


def _parts(args: DataArguments, splits: list[str], read: Callable[[str], Part]) -> list[Part]:
    """The train and the eval part."""
    train_name, eval_name = split_names(args, splits)
    train, names = read(train_name)
    if eval_name == HELD_OUT:
        return [(part, names) for part in hold_out(args, train)]
    return [(train, names), read(eval_name)]


def _directories(args: DataArguments, name: str) -> dict[str, Path]:
    """Directory or tar file of each split."""
    root = Path(name).expanduser()
    if not name or not root.is_dir():
        raise ValueError(
            f"cannot read {title(args)}: {name!r} is not a directory; type timm:ROOT for the "
            "directory that holds train and test, or train.tar and test.tar"
        )
    paths = [path for path in sorted(root.iterdir()) if path.is_dir() or path.suffix == ".tar"]
    return {path.stem if path.suffix == ".tar" else path.name: path for path in paths}


def _read(name: str, path: Path) -> Part:
    """A directory or a tar file, as timm's reader for it finds the images and their classes."""
    if path.is_dir() and not any(path.glob("*.tar")):
        reader: Any = create_reader("", root=str(path))
        classes, targets = reader.class_to_idx, [target for _, target in reader.samples]
    else:
        try:
            # An open file would be shared with forked workers, its position too.
            reader = ReaderImageInTar(str(path), cache_tarfiles=False)
        except ValueError as error:  # it unpacks an empty list
            raise ValueError(f"split {name!r}: no image was found in {path}") from error
        classes, targets = reader.class_name_to_idx, reader.targets

    def load(row: int) -> PILImage:
        with reader[row][0] as file:
            return _loaded(open_image(file))

    def read(row: int) -> PILImage:
        what = f"image in row {row} of split {name!r}"
        return read_image(what, reader.filename(row), partial(load, row))

    return _split(name, targets, read), tuple(classes)


def _torchvision(args: DataArguments, rest: str) -> list[Part]:
    """The splits of ``NAME:ROOT``, as timm opens torchvision's data sets."""
    name, _, root = rest.partition(":")
    if name not in _TORCHVISION:
        raise ValueError(
            f"{title(args)}: " + unknown("data set of torchvision", name, _TORCHVISION)
        )
    found = list(_TORCHVISION[name] or _directories(args, root))
    return _parts(args, found, lambda split: _torchvision_split(name, root, split))


def _torchvision_split(name: str, root: str, split: str) -> Part:
    dataset: Any = create_dataset(f"torch/{name}", str(Path(root).expanduser()), split=split)

    def read(row: int) -> PILImage:
        what = f"image in row {row} of split {split!r}"
        return read_image(what, None, lambda: _loaded(dataset[row][0]))

    classes = (", ".join(c) if isinstance(c, tuple) else str(c) for c in dataset.classes)
    return _split(split, dataset.targets, read), tuple(classes)


def _loaded(image: PILImage) -> PILImage:
    image.load()  # while its file is open
    return image


def _split(name: str, targets: Any, read: Callable[[int], PILImage]) -> Split:
    labels = np.asarray(targets, dtype=np.int64)
    # By class: timm takes tar files in the order of the file system, which differs by machine.
    rows = np.argsort(labels, kind="stable")
    return Split(name, labels[rows], read, rows)
