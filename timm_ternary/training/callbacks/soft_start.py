"""The soft start of a training: the schedule of the temperature, and who sets it."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from ...nn.convert import quantizers_of
from ...quantizers.base import Quantizer

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
    """Sets the temperature of all layers before each optimizer step, which all its passes then see.

    It depends on the step's number alone: a resumed run goes on as if never interrupted.

    Args:
        trainer: Has `steps_per_epoch`.

    Attributes:
        temperature: Of the step that runs, or None: the hard staircase.
    """

    temperature: float | None = None

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._quantizers: list[Quantizer] = []

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Set the first temperature, and refuse what cannot be softened before the first batch.

        Raises:
            ValueError: The model is not ternary, or its method has no thresholds; the soft start
                is longer than the run.
        """
        self._quantizers = list(quantizers_of(model).values())
        if not self._quantizers:
            raise ValueError("soft_epochs is for ternary models, this one is float: leave it out")
        steps = self._steps(args)
        if steps > state.max_steps:
            raise ValueError(
                f"soft_epochs={args.soft_epochs!r} are {steps} optimizer steps, but the run "
                f"has {state.max_steps}: lower soft_epochs, the rest trains the hard staircase"
            )
        self._soften(args, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set that of the step."""
        self._soften(args, state.global_step)

    def _steps(self, args: Any) -> int:
        return max(round(args.soft_epochs * self.trainer.steps_per_epoch), 1)

    def _soften(self, args: Any, step: int) -> None:
        start, end = args.soft_temperature or SOFT_TEMPERATURE
        self.temperature = soft_temperature_at(step, self._steps(args), start, end)
        for quantizer in self._quantizers:
            quantizer.soften(self.temperature)
