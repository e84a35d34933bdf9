"""Pixels of an image as networks take them: upright, 8 bits a channel, grey or RGB."""

from __future__ import annotations

import numpy as np
from PIL import ImageOps
from PIL.Image import Image, fromarray

__all__ = ["is_grey", "to_mode"]


def is_grey(image: Image) -> bool:
    """Whether `image` has one channel, transparency aside."""
    return image.mode in ("1", "L", "LA", "La", "F") or _is_deep(image)


def to_mode(image: Image, mode: str) -> Image:
    """`image`, turned as its EXIF data say, in PIL's mode ``"L"`` or ``"RGB"``.

    16-bit grey levels are scaled to 8 bits; PIL itself would clip them at 255.
    """
    image = ImageOps.exif_transpose(image)
    if _is_deep(image):
        levels = np.rint(np.asarray(image) / 257).clip(0, 255)
        image = fromarray(levels.astype(np.uint8))
    return image.convert(mode)


def _is_deep(image: Image) -> bool:
    """16 bits a pixel: ``"I;16"`` and its byte orders, or ``"I"`` (PNG with Pillow before 11.3)."""
    return image.mode.startswith("I")
