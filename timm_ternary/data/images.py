"""Pixels of an image as networks take them: upright, 8 bits a channel, grey or RGB."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pil
from PIL import ImageOps
from PIL.ExifTags import Base
from PIL.Image import Image, fromarray

__all__ = ["BROKEN", "is_grey", "plain", "to_mode", "varies"]

BROKEN = (OSError, SyntaxError, ValueError, NotImplementedError, pil.DecompressionBombError)
"""What Pillow raises for files that are damaged, and `plain` for those that it cannot scale."""


def is_grey(image: Image) -> bool:
    """Whether `image` has one channel, transparency aside."""
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def to_mode(image: Image, mode: str) -> Image:
    """`image` as `plain` gives it, in PIL's mode ``"L"`` or ``"RGB"``.

    Raises:
        ValueError: As `plain`.
    """
    return plain(image).convert(mode)


def plain(image: Image) -> Image:
    """`image`, turned as its EXIF data say, with 8 bits a channel and without transparency.

    PIL's own ``convert`` clips deeper levels at 255 and forgets transparency: a float image becomes
    black, a 32-bit one white, and so does a black drawing on a transparent ground. Here levels are
    scaled by what the mode means: 16 bits (``"I;16"``, and ``"I"`` of a PNG) from 0 to 65535,
    floats (``"F"``) from 0 to 1. Transparent parts are seen on white, as viewers show them; an
    image of which nothing would be seen keeps its colors.

    Raises:
        ValueError: Nothing says what is white: floats beyond 0 ... 1, 32-bit integers, LAB.
    """
    # Pillow before 11.3 opens a PNG of 16 bits as "I".
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.getexif().get(Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if deep:
        return _grey(np.asarray(image) / 257)
    if image.mode == "F":
        return _grey(_unit_levels(np.asarray(image)) * 255)
    if image.mode in ("I", "LAB"):
        what = "32-bit levels, of which none is white" if image.mode == "I" else "LAB colors"
        raise ValueError(f"it holds {what} (mode {image.mode}): save it with 8 or 16 bits, as PNG")
    return _opaque(image) if image.has_transparency_data else image


def varies(images: Iterable[Image]) -> bool:
    """Whether `images`, as `plain` gives them, hold two levels; reads no more than needed."""
    first = None
    for image in images:
        bands: Any = image.convert("RGB").getextrema()
        first = bands if first is None else first
        if bands != first or any(low != high for low, high in bands):
            return True
    return False


def _unit_levels(levels: NDArray[Any]) -> NDArray[Any]:
    low, high = float(levels.min()), float(levels.max())
    if not 0 <= low <= high <= 1:  # so it is with NaN
        raise ValueError(
            f"its float levels go from {low:g} to {high:g} (mode F), not from 0 to 1: scale them, "
            "or save it with 8 or 16 bits, as PNG"
        )
    return levels


def _grey(levels: NDArray[Any]) -> Image:
    return fromarray(np.rint(levels).clip(0, 255).astype(np.uint8))


def _opaque(image: Image) -> Image:
    kind = "L" if is_grey(image) else "RGB"
    seen = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    if seen.getchannel("A").getextrema()[1] == 0:
        return seen.convert(kind)
    return pil.alpha_composite(pil.new("RGBA", seen.size, "white"), seen).convert(kind)
