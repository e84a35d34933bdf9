"""InMemoryImages: small images decoded once, augmented a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from .seeding import SharedEpoch

__all__ = ["InMemoryImages", "collate", "draw"]

# Increment and multipliers of splitmix64 (Steele, Lea & Flood 2014, "Fast splittable
# pseudorandom number generators").
_GOLDEN = 0x9E3779B97F4A7C15
_FIELD = np.uint64(0xFFFFF)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64, elementwise; integers wrap modulo 2**64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def draw(
    indices: NDArray[np.int64], *, seed: int, epoch: int, padding: int, hflip: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """The random crop and flip of each image: a pure function of seed, epoch and index.

    A stream such as torch's global generator cannot serve: the loader works a batch ahead of the
    training step, so the state saved with a checkpoint has already been drawn from, and a resumed
    run would see other crops than an uninterrupted one.

    Args:
        indices: Positions of the images, shape (N,).
        seed: Seed of the run.
        epoch: Passes over the data completed.
        padding: Largest shift, in pixels.
        hflip: Probability of a flip.

    Returns:
        Top and left edge of each crop in the padded image, 0 … 2·padding, and whether it is
        flipped; each of shape (N,).
    """
    key = np.array([seed * _GOLDEN + epoch & (1 << 64) - 1], dtype=np.uint64)
    bits = _mix(_mix(key) + indices.astype(np.uint64) * np.uint64(_GOLDEN))
    top, left, flip = ((bits >> np.uint64(20 * k)) & _FIELD for k in range(3))
    span = np.uint64(2 * padding + 1)
    return (
        (top * span >> np.uint64(20)).astype(np.int64),
        (left * span >> np.uint64(20)).astype(np.int64),
        flip < np.uint64(round(hflip * (1 << 20))),
    )


class InMemoryImages(SharedEpoch, Dataset[dict[str, Tensor]]):
    """Images held as bytes; a batch is cropped, flipped and normalized in a few array operations.

    An item is ``{"pixel_values": float32 (C, H, W), "labels": int64 ()}``. torch's DataLoader
    calls `__getitems__`, which makes a whole batch at once; `collate` passes it through.

    Training code calls `set_epoch` before each pass, as for torch's DistributedSampler; without
    it, every pass repeats the crops of the first.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        mean, std: One value a channel, for pixels in [0, 1].
        padding: Black border for the random crop, in pixels; 0: no crop.
        hflip: Probability of a mirrored image.
        seed: Seed of the crops and flips.

    Raises:
        ValueError: The arrays' types or shapes do not fit together.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        padding: int = 0,
        hflip: float = 0.0,
        seed: int = 0,
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"images must be uint8 (N, C, H, W), got {images.dtype} {images.shape}"
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(f"got {len(images)} images but labels of shape {labels.shape}")
        if not len(mean) == len(std) == images.shape[1]:
            raise ValueError(f"mean and std must have {images.shape[1]} values, one a channel")
        super().__init__()
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.padding, self.hflip, self.seed = padding, hflip, seed
        border = ((0, 0), (0, 0), (padding, padding), (padding, padding))
        self._padded = np.pad(images, border) if padding else images
        # (N, C, 2·padding + 1, 2·padding + 1, H, W): every crop of every image, as a view.
        self._crops = np.lib.stride_tricks.sliding_window_view(
            self._padded, images.shape[2:], axis=(2, 3)
        )
        # (pixel / 255 - mean) / std, as one multiplication and one addition.
        self._scale = torch.tensor([1 / (255 * s) for s in std]).view(-1, 1, 1)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def varies(self) -> bool:
        """Whether some channel holds two levels."""
        edge, end = self.padding, -self.padding or None
        pixels = self._padded[:, :, edge:end, edge:end]
        return bool((pixels.min((0, 2, 3)) < pixels.max((0, 2, 3))).any())

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = self.__getitems__([range(len(self))[index]])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch at `indices`: pixel_values float32 (N, C, H, W), labels int64 (N,)."""
        index = np.asarray(indices, dtype=np.int64)
        top, left, flip = draw(
            index, seed=self.seed, epoch=self.epoch, padding=self.padding, hflip=self.hflip
        )
        # numpy, not torch: its gather from this strided view is 6 times faster, and its mirrored
        # views are free (measured on one core, 128 x 3 x 32 x 32: 0.22 against 1.3 ms).
        values = torch.empty(len(index), *self._crops.shape[1:2], *self._crops.shape[4:])
        pixels = values.numpy()
        plain, mirrored = np.flatnonzero(~flip), np.flatnonzero(flip)
        pixels[plain] = self._crops[index[plain], :, top[plain], left[plain]]
        pixels[mirrored] = self._crops[..., ::-1][index[mirrored], :, top[mirrored], left[mirrored]]
        values.mul_(self._scale).add_(self._shift)
        return {"pixel_values": values, "labels": self.labels[torch.from_numpy(index)]}


def collate(items: Any) -> dict[str, Tensor]:
    """Stack items into a batch; a batch that `InMemoryImages` made is passed through."""
    if isinstance(items, dict):
        return items
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.as_tensor([int(item["labels"]) for item in items]),
    }
