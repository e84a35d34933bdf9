"""A stream of images of which each one can be told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from timm_ternary.data.datasets.streamed import StreamedImages
from timm_ternary.data.sources.base import Stream


def numbered(count: int = 13, **options: Any) -> StreamedImages:
    """Image i is of grey level i, in the order i, i + pass, ...; the transform adds noise."""

    def rows(number: int | None) -> Iterator[Any]:
        order = np.roll(np.arange(count), -(number or 0))
        for i in order.tolist():
            yield (lambda i=i: Image.new("L", (1, 1), i)), i % 3

    def transform(image: Image.Image) -> torch.Tensor:
        return torch.full((1, 1, 1), float(image.getpixel((0, 0)))) + torch.rand(1, 1, 1) / 2

    stream = Stream("train", rows)
    return StreamedImages(stream, transform, mode="L", input_size=(1, 1, 1), **options)
