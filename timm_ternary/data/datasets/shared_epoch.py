"""SharedEpoch: which pass over the data comes next, also in the loader's workers."""

from __future__ import annotations

import torch

__all__ = ["SharedEpoch"]


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
