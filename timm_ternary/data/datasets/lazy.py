"""LazyImages: images read and transformed by timm one at a time, when they are needed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL.Image import Image as PILImage
from torch import Tensor
from torch.utils.data import Dataset

from ..images import to_mode, varies
from ..sources.base import Split
from .seeding import SharedEpoch, seeded

__all__ = ["LazyImages"]


class LazyImages(SharedEpoch, Dataset[dict[str, Tensor]]):
    """A split whose images are read and transformed when asked for.

    An item is ``{"pixel_values": float32 (C, H, W), "labels": int64 ()}``. The transform's random
    numbers depend on seed, epoch and index alone, so a resumed run sees what an uninterrupted one
    sees, with any number of workers; call `set_epoch` before each pass.

    Args:
        split: Where images are read.
        transform: From a PIL image to float32 (C, H, W).
        mode: PIL mode that `transform` is given: ``"L"`` or ``"RGB"``.
        seed: Seed of the transform.
    """

    def __init__(
        self, split: Split, transform: Callable[[PILImage], Tensor], *, mode: str, seed: int = 0
    ) -> None:
        super().__init__()
        self.split, self.transform, self.mode = split, transform, mode
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split)

    def varies(self) -> bool:
        """Whether the images hold two levels; reads no more of them than needed."""
        return varies(self.split.image(index) for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = to_mode(self.split.image(index), self.mode)
        with seeded(self.seed, self.epoch, index):
            pixels = self.transform(image)
        return {"pixel_values": pixels, "labels": torch.tensor(self.split.labels[index])}
