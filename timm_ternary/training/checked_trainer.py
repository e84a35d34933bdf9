"""CheckedTrainer: transformers' Trainer that ends in one line rather than train on nonsense."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors.wording import unknown
from .callbacks.health import check_ended, check_finite_model, check_share

__all__ = ["CheckedTrainer"]


class CheckedTrainer(Trainer):
    """Ends training where a parameter is not finite, or where the data do not suffice.

    Args:
        *args: As ``transformers.Trainer``.
        **options: As ``transformers.Trainer``.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Not the iterator itself: the workers of its loader would outlive the training.
        self._iterator: Callable[[], Any] = lambda: None
        self._last_good: str | None = None

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """As the Trainer's.

        Raises:
            ValueError: There is no image for every process.
        """
        if hasattr(self.train_dataset, "__len__"):
            config = self.accelerator.dataloader_config
            check_share(
                len(self.train_dataset),
                self._train_batch_size,
                self.accelerator.num_processes,
                split=bool(config.split_batches),
                drop_last=args.dataloader_drop_last,
            )
        return super().set_initial_training_values(args, dataloader)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, *args: Any, **kwargs: Any
    ) -> Any:
        """As the Trainer's.

        Raises:
            ValueError: The data end early; a parameter is not finite (names it).
        """
        if self.args.logging_nan_inf_filter:
            # The loss may look well: tga takes a threshold that is NaN for one of 3 sigma, and ttq
            # makes zeros of all weights that share a group with one that is NaN. The Trainer waits
            # for the device once a step too, unless that field tells it not to.
            self._check_model()
        try:
            batches, count = super().get_batch_samples(epoch_iterator, num_batches, *args, **kwargs)
        except ValueError as error:
            if "not contain any data" not in str(error):  # accelerate's, for an empty stream
                raise
            batches, count = [], None
        fresh = epoch_iterator is not self._iterator()
        self._iterator = weakref.ref(epoch_iterator)
        sized = hasattr(self.train_dataset, "__len__")
        check_ended(
            self.state,
            len(batches),
            num_batches,
            sized=sized,
            fresh=fresh,
            checkpoint=self._last_good,
        )
        return batches, count

    def _check_model(self) -> None:
        check_finite_model(self.model, self.state.global_step, self._last_good)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; a model that is not finite is not written, nor a good one deleted.

        Raises:
            ValueError: A parameter is not finite (names it).
        """
        self._check_model()
        super()._save_checkpoint(*args, **kwargs)
        folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._last_good = str(Path(str(self.args.output_dir)) / folder)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As the Trainer's.

        Raises:
            ValueError: The evaluation does not report `metric_for_best_model`.
        """
        wanted = self.args.metric_for_best_model
        if wanted is not None and f"eval_{wanted.removeprefix('eval_')}" not in metrics:
            names = (name.removeprefix("eval_") for name in metrics if name.startswith("eval_"))
            raise ValueError(unknown("metric_for_best_model", wanted, sorted(names)))
        better: bool = super()._determine_best_metric(metrics=metrics, trial=trial)
        return better

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the Trainer's; names the checkpoint in later errors."""
        self._last_good = str(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
