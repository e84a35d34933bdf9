"""What random transforms depend on: the seed, the pass over the data, and the image alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["SharedEpoch", "seeded"]


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
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


class SharedEpoch:
    """For a data set whose random numbers depend on the epoch: 0 until `set_epoch` is called."""

    def __init__(self) -> None:
        # Shared, so that it reaches the loader's workers where they outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The pass over the data that is set."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which pass over the data comes next, counted from 0."""
        self._epoch.fill_(epoch)
