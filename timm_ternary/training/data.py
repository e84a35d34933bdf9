"""load_data: from DataArguments to data sets whose batches a Trainer can train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Resampling
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torchvision.transforms import Compose, RandomCrop, Resize

from ..images import is_grey, to_mode
from .arguments import DataArguments
from .data_lazy import LazyImages
from .data_memory import InMemoryImages, collate
from .data_sources import Split, open_source

__all__ = ["Data", "Preprocessing", "load_data"]

# Images up to this side are "small": padded crops rather than resized ones (the habit for CIFAR
# and ImageNet, respectively), and in memory by default.
_SMALL = 64
# Bytes of decoded images above which in_memory must be asked for.
_MEMORY_LIMIT = 2 << 30
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input, in the words of timm's pretrained_cfg.

    Attributes:
        input_size: (C, H, W).
        mean, std: One value a channel, for pixels in [0, 1].
        crop_pct, crop_mode, interpolation: As `timm.data.create_transform` takes them.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str
    interpolation: str

    @property
    def mode(self) -> str:
        """PIL's name of the image mode, ``"L"`` or ``"RGB"``."""
        return _MODES[self.input_size[0]]


@dataclass(frozen=True)
class Data:
    """What a training run needs to know about its images.

    Attributes:
        train, eval: Items and batches are ``{"pixel_values": float32 ([N,] C, H, W),
            "labels": int64 ([N])}``.
        label_names: Name of each class, by label.
        preprocessing: Size and normalization of the images.
        data_collator: Makes a batch of items, or passes a batch through.
    """

    train: InMemoryImages | LazyImages
    eval: InMemoryImages | LazyImages
    label_names: tuple[str, ...]
    preprocessing: Preprocessing
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
    source = open_source(args)
    train, test = (
        source.train.spread(args.max_train_samples),
        source.eval.spread(args.max_eval_samples),
    )
    first = train.image(0)
    chans = in_chans or (1 if is_grey(first) else 3)
    size = _image_size(args, model_cfg or {}, trained, max(first.size))
    hflip = args.hflip if args.hflip is not None else 0.5 * source.mirror
    small = size <= _SMALL
    if _in_memory(args, small, (len(train) + len(test)) * chans * size**2):
        pixels, test_pixels = (_decode(part, chans, size) for part in (train, test))
        cfg = model_cfg if trained else None
        how = _preprocessing(args, cfg, (chans, size, size), True, pixels)
        in_memory = partial(InMemoryImages, mean=how.mean, std=how.std, seed=seed)
        return Data(
            in_memory(pixels, train.labels, padding=args.padding, hflip=hflip),
            in_memory(test_pixels, test.labels),
            source.label_names,
            how,
        )
    how = _preprocessing(args, model_cfg, (chans, size, size), small, None)
    return Data(
        LazyImages(train, _train_transform(args, how, hflip), mode=how.mode, seed=seed),
        LazyImages(test, create_transform(**asdict(how)), mode=how.mode, seed=seed),
        source.label_names,
        how,
    )


def _image_size(args: DataArguments, cfg: Mapping[str, Any], trained: bool, own: int) -> int:
    """Of the recipe, else of the starting weights, else of small images, else of the model."""
    of_model = (cfg.get("input_size") or (3, 224, 224))[-1]
    if args.image_size is not None:
        return args.image_size
    return own if own <= _SMALL and not trained else of_model


def _in_memory(args: DataArguments, small: bool, size: int) -> bool:
    if args.in_memory is None:
        return small and not args.heavy and size <= _MEMORY_LIMIT
    return args.in_memory


def _decode(split: Split, chans: int, size: int) -> NDArray[np.uint8]:
    """All images of a split as uint8 (N, C, size, size)."""
    pixels = np.empty((len(split), size, size, chans), np.uint8)
    for index in range(len(split)):
        image = to_mode(split.image(index), _MODES[chans])
        if image.size != (size, size):
            image = image.resize((size, size), Resampling.BICUBIC)
        pixels[index] = np.asarray(image).reshape(size, size, chans)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _preprocessing(
    args: DataArguments,
    cfg: Mapping[str, Any] | None,
    input_size: tuple[int, int, int],
    small: bool,
    pixels: NDArray[np.uint8] | None,
) -> Preprocessing:
    """`args`, completed from `cfg`, and without one from the training images in memory."""
    chans, cfg = input_size[0], dict(cfg or {})
    if args.mean is not None and args.std is not None:
        mean, std = _per_channel(args.mean, "mean", chans), _per_channel(args.std, "std", chans)
    elif cfg.get("mean") or pixels is None:
        mean = _fitted(cfg.get("mean") or IMAGENET_DEFAULT_MEAN, chans)
        std = _fitted(cfg.get("std") or IMAGENET_DEFAULT_STD, chans)
    else:
        mean, std = _measured(pixels)
    return Preprocessing(
        input_size=input_size,
        mean=mean,
        std=std,
        # Small images are used whole; cropping is for photographs.
        crop_pct=1.0 if small else cfg.get("crop_pct") or 0.875,
        crop_mode="squash" if small else cfg.get("crop_mode") or "center",
        interpolation="bicubic" if small else cfg.get("interpolation") or "bicubic",
    )


def _per_channel(values: Sequence[float], name: str, chans: int) -> tuple[float, ...]:
    if len(values) not in (1, chans):
        raise ValueError(
            f"{name} has {len(values)} values, but the images have {chans} channels: "
            f"give 1 or {chans}"
        )
    return tuple(values) if len(values) == chans else tuple(values) * chans


def _fitted(values: Sequence[float], chans: int) -> tuple[float, ...]:
    """The values of RGB weights for grey images, or the other way round: their mean."""
    return tuple(values) if len(values) == chans else (sum(values) / len(values),) * chans


def _measured(pixels: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, exactly, from its histogram."""
    levels = np.arange(256) / 255
    counts = [np.bincount(pixels[:, c].ravel(), minlength=256) for c in range(pixels.shape[1])]
    means = [float(np.average(levels, weights=count)) for count in counts]
    variances = [
        float(np.average((levels - mean) ** 2, weights=count))
        for mean, count in zip(means, counts, strict=True)
    ]
    # One grey level everywhere has no spread: leave such a channel at its scale.
    return tuple(means), tuple(variance**0.5 or 1.0 for variance in variances)


def _train_transform(args: DataArguments, how: Preprocessing, hflip: float) -> Compose:
    """timm's training transform; small images are padded and cropped instead of resized."""
    size = how.input_size[-1]
    transform = create_transform(
        how.input_size,
        is_training=True,
        scale=tuple(args.random_resized_crop or (0.08, 1.0)),
        hflip=hflip,
        color_jitter=args.color_jitter or None,
        auto_augment=args.auto_augment,
        interpolation=how.interpolation,
        mean=how.mean,
        std=how.std,
        re_prob=args.re_prob,
    )
    if args.random_resized_crop is None and size <= _SMALL:
        # As timm's own training script did for small images: its first step is the resized crop.
        crop = RandomCrop(size, padding=args.padding or None)
        transform.transforms[0] = Compose([Resize((size, size)), crop])
    return transform
