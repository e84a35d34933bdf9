"""StreamedImages: images transformed as they come, from what can only be read in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from PIL.Image import Image as PILImage
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..images import to_mode, varies
from ..sources.base import Stream
from .seeding import SharedEpoch, seeded

__all__ = ["StreamedImages"]


class StreamedImages(SharedEpoch, IterableDataset[dict[str, Tensor]]):
    """A stream whose images are read and transformed as they come.

    An item is ``{"pixel_values": float32 (C, H, W), "labels": int64 ()}``. The transform's random
    numbers depend on seed, pass and place in the pass alone. Each of a loader's workers reads the
    whole stream and decodes every so-many-th batch of it: the batches are the same ones, in the
    same order, with any number of workers, and each image is in one of them.

    Of several processes accelerate has the first one read, and share each batch out.

    An endless data set begins the next pass where one ends, shuffled anew: one epoch for the
    Trainer, which could not resume in a later epoch of unknown length.

    Args:
        stream: Where images are read.
        transform: From a PIL image to float32 (C, H, W).
        mode: PIL mode that `transform` is given: ``"L"`` or ``"RGB"``.
        input_size: The (C, H, W) of what `transform` gives.
        seed: Seed of the transform.
        endless: Whether there is another pass after a pass.

    Attributes:
        batch_size: Images of the loader's batches, by which its workers take turns.
    """

    def __init__(
        self,
        stream: Stream,
        transform: Callable[[PILImage], Tensor],
        *,
        mode: str,
        input_size: tuple[int, int, int],
        seed: int = 0,
        endless: bool = False,
    ) -> None:
        super().__init__()
        self.stream, self.transform, self.mode = stream, transform, mode
        self.input_size, self.seed, self.endless = input_size, seed, endless
        self.batch_size = 1
        self._skipped = torch.zeros((), dtype=torch.int64).share_memory_()

    def skip(self, images: int) -> None:
        """Leave the first `images` undecoded: black images take their place.

        For a resumed run, which passes over the batches that it has seen.
        """
        self._skipped.fill_(images)

    def varies(self) -> bool:
        """Whether the images of a pass hold two levels; reads no more of them than needed."""
        return varies(read() for read, _ in self.stream.rows(None))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        place = 0
        for number in itertools.count(self.epoch):
            begin = place
            for read, label in self.stream.rows(number):
                if place // self.batch_size % workers == worker:
                    if place < self._skipped:
                        pixels = torch.zeros(self.input_size)
                    else:
                        pixels = self._pixels(read(), (self.seed, number, place - begin))
                    yield {"pixel_values": pixels, "labels": torch.tensor(label)}
                place += 1
            if place == begin:
                raise ValueError(f"split {self.stream.name!r} is empty")
            if not self.endless:
                return

    def _pixels(self, image: PILImage, key: tuple[int, ...]) -> Tensor:
        with seeded(*key):
            return self.transform(to_mode(image, self.mode))
