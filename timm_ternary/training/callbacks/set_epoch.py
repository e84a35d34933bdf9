"""What a data set is told of a run: which epoch begins, and what a resumed run has seen."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

__all__ = ["SetEpoch", "SkipSeen"]


class SetEpoch(TrainerCallback):
    """Tells a data set which epoch begins: it selects the crops and flips.

    accelerate does so as well, but not where several processes share the batches (1.15.0:
    ``DataLoaderShard.set_epoch`` skips the data set when the sampler takes an epoch).

    Args:
        dataset: Has ``set_epoch(epoch)``.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass the epoch on; a run resumed within an epoch begins at a fraction of it."""
        self.dataset.set_epoch(int((state.epoch or 0) + 1e-6))


class SkipSeen(TrainerCallback):
    """Spares a resumed run from decoding what it has seen: the Trainer passes over those batches.

    Args:
        dataset: Has ``skip(images)`` and `batch_size`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the images of the steps taken; a batch is one process's share, or that of all."""
        share = 1 if args.accelerator_config.split_batches else args.world_size
        images = self.dataset.batch_size * share * args.gradient_accumulation_steps
        self.dataset.skip(0 if args.ignore_data_skip else state.global_step * images)
