"""How an image becomes a network's input: its size and normalization, and timm's transforms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision.transforms import Compose, RandomCrop, Resize

from .arguments import DataArguments

__all__ = ["MODES", "SMALL", "Preprocessing", "image_size", "preprocessing", "train_transform"]

SMALL = 64
"""Images up to this side are padded and cropped rather than resized (the habit for CIFAR and
ImageNet, respectively), and in memory by default."""
MODES = {1: "L", 3: "RGB"}
"""PIL's name of the image mode, by the number of channels."""


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
        return MODES[self.input_size[0]]


def image_size(args: DataArguments, cfg: Mapping[str, Any], trained: bool, own: int) -> int:
    """Of the recipe, else of the starting weights, else of small images, else of the model."""
    of_model = (cfg.get("input_size") or (3, 224, 224))[-1]
    if args.image_size is not None:
        return args.image_size
    return own if own <= SMALL and not trained else of_model


def preprocessing(
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


def train_transform(args: DataArguments, how: Preprocessing, hflip: float) -> Compose:
    """timm's training transform; small images are padded and cropped instead of resized."""
    size = how.input_size[-1]
    try:
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
    except AssertionError as error:  # timm's, for words that it does not know
        raise ValueError(
            f"auto_augment={args.auto_augment!r} is not one of timm's ({error}); "
            "e.g. rand-m9-mstd0.5"
        ) from error
    if args.random_resized_crop is None and size <= SMALL:
        # As timm's own training script did for small images: its first step is the resized crop.
        crop = RandomCrop(size, padding=args.padding or None)
        transform.transforms[0] = Compose([Resize((size, size)), crop])
    return transform
