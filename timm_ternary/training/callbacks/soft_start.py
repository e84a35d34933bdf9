"""The soft start of a training: the schedule of the temperature, and who sets it."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

__all__ = ["SOFT_TEMPERATURE", "SoftStart", "soft_temperature_at"]

SOFT_TEMPERATURE = (10.0, 100.0)
"""First and last temperature unless `soft_temperature` says otherwise."""


def soft_temperature_at(step: int, steps: int, start: float, end: float) -> float | None:
    """Temperature of an optimizer step: geometric from `start` (step 0) to `end` (the last).

    Args:
        step: Optimizer steps taken before it, 0 or more.
        steps: Number of soft steps.
        start: T of the first one, > 0.
        end: T of the last one, >= start.

    Returns:
        T, or None from `steps` on: the hard staircase. A single step has `start`.
    """
    if step >= steps:
        return None
    return start * (end / start) ** (step / max(steps - 1, 1))


class SoftStart(TrainerCallback):
    """Sets the temperature before each optimizer step, which all its passes then see.

    It depends on the step's number alone: a resumed run goes on as if never interrupted.

    Args:
        trainer: Has ``soften(step)``.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse what cannot be softened before the first batch."""
        self.trainer.soften(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set that of the step."""
        self.trainer.soften(state.global_step)
