"""LazyImages: images read and transformed by timm one at a time, when they are needed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL.Image import Image as PILImage
from torch import Tensor
from torch.utils.data import Dataset

from ..images import to_mode
from .data_sources import Split

__all__ = ["LazyImages"]


class LazyImages(Dataset[dict[str, Tensor]]):
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
        self.split, self.transform, self.mode = split, transform, mode
        self.seed = seed
        # Shared, so that it reaches the loader's workers where they outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.split)

    @property
    def epoch(self) -> int:
        """The pass over the data that is set."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which pass over the data comes next, counted from 0."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = to_mode(self.split.image(index), self.mode)
        with _seeded(self.seed, self.epoch, index):
            pixels = self.transform(image)
        return {"pixel_values": pixels, "labels": torch.tensor(self.split.labels[index])}


@contextlib.contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """Seed the generators that timm's transforms draw from, and put them back afterwards."""
    words = np.random.SeedSequence([value & (1 << 63) - 1 for value in key]).generate_state(1)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(int(words[0]))
    np.random.seed(words[0])
    # Not torch.manual_seed: it also reseeds, and so initializes, CUDA.
    torch.default_generator.manual_seed(int(words[0]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
