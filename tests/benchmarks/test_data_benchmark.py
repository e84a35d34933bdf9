"""The in-memory images feed a training step faster than it can use them, on one core."""

from __future__ import annotations

import numpy as np
import pytest
from torch.utils.data import DataLoader

from timm_ternary.data.datasets.in_memory import InMemoryImages, collate

COUNT, BATCH = 25_600, 128
REQUIRED = 25_000
"""Images of 32x32x3 a second, augmented, in batches of 128, on one core."""


@pytest.mark.benchmark
def test_in_memory_images_per_second(benchmark) -> None:  # type: ignore[no-untyped-def]
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 32, 32), dtype=np.uint8)
    dataset = InMemoryImages(
        images,
        np.zeros(COUNT, np.int64),
        mean=(0.49, 0.48, 0.45),
        std=(0.25, 0.24, 0.26),
        padding=4,
        hflip=0.5,
    )
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=0, collate_fn=collate)

    def epoch() -> int:
        return sum(len(batch["labels"]) for batch in loader)

    assert benchmark.pedantic(epoch, rounds=5, warmup_rounds=1) == COUNT
    rate = COUNT / benchmark.stats["median"]
    benchmark.extra_info["images_per_second"] = round(rate)
    assert rate >= REQUIRED
