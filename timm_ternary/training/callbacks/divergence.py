"""A loss that explodes is pointed out: all numbers of such a run are finite, and worth nothing."""

from __future__ import annotations

import logging
import math
from typing import Any

from transformers import TrainerCallback

from ...errors.numbers import is_number

__all__ = ["Divergence", "limit"]

_logger = logging.getLogger(__name__)

FACTOR = 20.0
"""How many times as bad as guessing a loss may be: far above what any run that learns logs, and far
below one that diverges (issue 9: 225,441 for 10 classes, where the limit is 46)."""


def limit(guess: float | None, smallest: float) -> float:
    """The loss beyond which training has diverged.

    Args:
        guess: Cross entropy of guessing, ln(classes); None where the loss is another one.
        smallest: The smallest loss logged so far, infinite for none: what then stands for it.
    """
    return FACTOR * max(smallest if guess is None else guess, 1.0)


class Divergence(TrainerCallback):
    """Warns once a training where a logged loss, of training or evaluation, is beyond `limit`.

    Args:
        guess: As `limit`.
    """

    def __init__(self, guess: float | None) -> None:
        self.guess = guess
        self._smallest = math.inf
        self._said = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Each training is watched anew."""
        self._smallest, self._said = math.inf, False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Look at the losses of a log."""
        for name in ("loss", "eval_loss", "train_loss"):
            value: Any = (logs or {}).get(name)
            if not is_number(value):
                continue
            if value > limit(self.guess, self._smallest):
                self._say(args, state, float(value))
            self._smallest = min(self._smallest, float(value))

    def _say(self, args: Any, state: Any, loss: float) -> None:
        if self._said or not state.is_world_process_zero:
            return
        self._said = True
        usual = (
            f"it was {self._smallest:,.4g}"
            if self.guess is None
            else f"guessing gives {self.guess:.4g}"
        )
        rates = f"--learning_rate (now {args.learning_rate:g})"
        if args.threshold_learning_rate is not None:
            rates += f" or --threshold_learning_rate (now {args.threshold_learning_rate:g})"
        _logger.warning(
            "the loss is %s after %d optimizer steps, where %s: training diverges; lower %s",
            f"{loss:,.0f}",
            state.global_step,
            usual,
            rates,
        )
