"""load_data: from DataArguments to data sets whose batches a Trainer can train on."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image as PILImage
from PIL.Image import Resampling
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Compose, RandomCrop, Resize
from transformers import TrainerCallback

from .arguments import DataArguments
from .data_memory import InMemoryImages, collate
from .data_sources import Split, open_source

__all__ = ["Data", "LazyImages", "SetEpoch", "load_data"]

# Images up to this side are "small": padded crops rather than resized ones (the habit for CIFAR
# and ImageNet, respectively), and in memory by default.
_SMALL = 64
_MEMORY_LIMIT = 2 << 30
"""Bytes of decoded images above which in_memory must be asked for."""


@dataclass(frozen=True)
class Data:
    """What a training run needs to know about its images.

    Attributes:
        train, eval: Items and batches are ``{"pixel_values": float32 ([N,] C, H, W), "labels":
            int64 ([N])}``.
        label_names: Name of each class, by label.
        mean, std: Of the normalization, one value a channel, for pixels in [0, 1].
        input_size: (C, H, W).
        crop_pct, crop_mode, interpolation: How timm's evaluation transform resizes.
        data_collator: Makes a batch of items, or passes a batch through.
    """

    train: Dataset[dict[str, Tensor]]
    eval: Dataset[dict[str, Tensor]]
    label_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    crop_pct: float
    crop_mode: str
    interpolation: str
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
    def pretrained_cfg(self) -> dict[str, Any]:
        """The part of timm's pretrained_cfg that the data decide."""
        names = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")
        known = {name: getattr(self, name) for name in names}
        return known | {"num_classes": self.num_classes, "label_names": list(self.label_names)}


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
    cfg = model_cfg or {}
    source = open_source(args)
    train, evaluation = source.train, source.eval
    train, evaluation = train.spread(args.max_train_samples), evaluation.spread(args.max_eval_samples)
    first = train.image(0)
    chans = in_chans or (1 if first.mode in ("1", "L", "LA", "I;16") else 3)
    size = _image_size(args, cfg if trained else {}, cfg, max(first.size))
    hflip = args.hflip if args.hflip is not None else 0.5 * source.mirror
    memory = _in_memory(args, size, (len(train) + len(evaluation)) * chans * size**2)
    pixels = [_decode(part, chans, size) for part in (train, evaluation)] if memory else []
    mean, std = _normalization(args, cfg if trained else {}, chans, pixels[0] if memory else None)
    squash = memory or size <= _SMALL
    recipe = Data(
        train=train,
        eval=evaluation,
        label_names=source.label_names,
        mean=mean,
        std=std,
        input_size=(chans, size, size),
        crop_pct=1.0 if squash else cfg.get("crop_pct") or 0.875,
        crop_mode="squash" if squash else cfg.get("crop_mode") or "center",
        interpolation="bicubic" if squash else cfg.get("interpolation") or "bicubic",
    )

```
