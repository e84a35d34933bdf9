"""load_data: from DataArguments to data sets whose batches a Trainer can train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image as PILImage
from PIL.Image import Resampling
from timm.data import create_transform
from torch import Tensor

from .arguments import DataArguments
from .datasets.in_memory import InMemoryImages, collate
from .datasets.lazy import LazyImages
from .datasets.streamed import StreamedImages
from .images import is_grey, to_mode
from .preprocessing import (
    MODES,
    SMALL,
    Preprocessing,
    image_size,
    preprocessing,
    train_transform,
)
from .sources.base import Split, Stream
from .sources.huggingface import open_source, open_stream

__all__ = ["Data", "Preprocessing", "check_spread", "load_data"]

# Bytes of decoded images above which in_memory must be asked for.
_MEMORY_LIMIT = 2 << 30


@dataclass(frozen=True)
class Data:
    """What a training run needs to know about its images.

    Attributes:
        train, eval: Items and batches are ``{"pixel_values": float32 ([N,] C, H, W),
            "labels": int64 ([N])}``.
        label_names: Name of each class, by label.
        preprocessing: Size and normalization of the images.
        splits: Names of the splits that `train` and `eval` are read from.
        data_collator: Makes a batch of items, or passes a batch through.
    """

    train: InMemoryImages | LazyImages | StreamedImages
    eval: InMemoryImages | LazyImages | StreamedImages
    label_names: tuple[str, ...]
    preprocessing: Preprocessing
    splits: tuple[str, str]
    data_collator: Callable[[Any], dict[str, Tensor]] = collate

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.label_names)

    @property
    def in_chans(self) -> int:
        """Channels of an image."""
        return self.input_size[0]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.preprocessing.input_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel that is subtracted, for pixels in [0, 1]."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel that is divided by."""
        return self.preprocessing.std

    def pretrained_cfg(self) -> dict[str, Any]:
        """The entries of timm's pretrained_cfg that the data decide."""
        return asdict(self.preprocessing) | {
            "num_classes": self.num_classes,
            "label_names": list(self.label_names),
        }


def load_data(
    args: DataArguments,
    *,
    model_cfg: Mapping[str, Any] | None = None,
    trained: bool = False,
    in_chans: int | None = None,
    seed: int = 0,
) -> Data:
    """Read a data set and make its train and eval parts ready for training.

    Args:
        model_cfg: timm's pretrained_cfg of the model, for what `args` leaves open.
        trained: The model starts from weights that were trained with `model_cfg`: its image size
            and normalization are then kept.
        in_chans: 1 or 3; None: as the first image has.
        seed: Seed of the augmentation.

    Raises:
        ValueError: The data cannot be read or do not fit together. One line.
    """
    shape = partial(_shape, args, model_cfg or {}, trained, in_chans)
    if args.streaming:
        return _streamed(args, model_cfg, shape, seed)
    source = open_source(args)
    train, test = (
        source.train.spread(args.max_train_samples),
        source.eval.spread(args.max_eval_samples),
    )
    chans, size = shape(train.image(0))
    hflip = _hflip(args, source.mirror)
    small = size <= SMALL
    splits = train.name, test.name
    if _in_memory(args, small, (len(train) + len(test)) * chans * size**2):
        pixels, test_pixels = (_decode(part, chans, size) for part in (train, test))
        cfg = model_cfg if trained else None
        how = preprocessing(args, cfg, (chans, size, size), True, pixels)
        in_memory = partial(InMemoryImages, mean=how.mean, std=how.std, seed=seed)
        return Data(
            in_memory(pixels, train.labels, padding=args.padding, hflip=hflip),
            in_memory(test_pixels, test.labels),
            source.label_names,
            how,
            splits,
        )
    how = preprocessing(args, model_cfg, (chans, size, size), small, None)
    return Data(
        LazyImages(train, train_transform(args, how, hflip), mode=how.mode, seed=seed),
        LazyImages(test, create_transform(**asdict(how)), mode=how.mode, seed=seed),
        source.label_names,
        how,
        splits,
    )


def check_spread(data: Data) -> None:
    """Refuse training images that are all one and the same color: nothing can be learned there.

    Raises:
        ValueError: They are; or an image on the way cannot be read.
    """
    if not data.train.varies():
        raise ValueError(
            f"the images of split {data.splits[0]!r} all have one and the same color: look at the "
            "files, and at --image_column"
        )


def _streamed(
    args: DataArguments,
    cfg: Mapping[str, Any] | None,
    shape: Callable[[PILImage], tuple[int, int]],
    seed: int,
) -> Data:
    source = open_stream(args, seed)
    first, _ = (_first(part) for part in (source.train, source.eval))  # so neither is empty
    chans, size = shape(first)
    how = preprocessing(args, cfg, (chans, size, size), size <= SMALL, None)
    streamed = partial(StreamedImages, mode=how.mode, input_size=how.input_size, seed=seed)
    transform = train_transform(args, how, _hflip(args, source.mirror))
    return Data(
        streamed(source.train, transform, endless=True),
        streamed(source.eval, create_transform(**asdict(how))),
        source.label_names,
        how,
        (source.train.name, source.eval.name),
    )


def _first(stream: Stream) -> PILImage:
    for read, _ in stream.rows(None):
        return read()
    raise ValueError(f"split {stream.name!r} is empty")


def _shape(
    args: DataArguments,
    cfg: Mapping[str, Any],
    trained: bool,
    in_chans: int | None,
    first: PILImage,
) -> tuple[int, int]:
    """Channels and side of the network's input."""
    chans = in_chans or (1 if is_grey(first) else 3)
    return chans, image_size(args, cfg, trained, max(first.size))


def _hflip(args: DataArguments, mirror: bool) -> float:
    return args.hflip if args.hflip is not None else 0.5 * mirror


def _in_memory(args: DataArguments, small: bool, size: int) -> bool:
    if args.in_memory is None:
        return small and not args.heavy and size <= _MEMORY_LIMIT
    return args.in_memory


def _decode(split: Split, chans: int, size: int) -> NDArray[np.uint8]:
    """All images of a split as uint8 (N, C, size, size)."""
    pixels = np.empty((len(split), size, size, chans), np.uint8)
    for index in range(len(split)):
        image = to_mode(split.image(index), MODES[chans])
        if image.size != (size, size):
            image = image.resize((size, size), Resampling.BICUBIC)
        pixels[index] = np.asarray(image).reshape(size, size, chans)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
