"""Random numbers of a transform as a function of what is transformed, not of what came before."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["seeded"]


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
