"""What the console shows of a run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from transformers import PrinterCallback, ProgressCallback

__all__ = ["ConsoleProgress"]

# What a line shows of the logs, in this order; log_history, metrics and trackers get all of it.
_SHOWN = {
    "loss": "loss {:.4f}",
    "accuracy": "train {:.2%}",
    "eval_loss": "held-out loss {:.4f}",
    "eval_accuracy": "held-out {:.2%}",
    "zeros": "zeros {:.1%}",
    "learning_rate": "rate {:.2g}",
}


class ConsoleProgress(ProgressCallback, PrinterCallback):
    """One line a log on stderr, and a bar where stderr is a terminal.

    In the place of transformers' ProgressCallback and PrinterCallback, and found by either class:
    ``trainer.remove_callback(ProgressCallback)`` silences it.

    Args:
        bar: Whether to show the bar at all.
        console: Where to write (default: stderr).
    """

    def __init__(self, *, bar: bool = True, console: Console | None = None) -> None:
        super().__init__()
        self._console = Console(stderr=True) if console is None else console
        self._wanted = bar and self._console.is_terminal
        self._bar: Progress | None = None
        self._task: Any = None
        self._pending: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar."""
        if self._wanted and state.is_world_process_zero:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
            self._bar = Progress(
                *columns, TimeRemainingColumn(), console=self._console, transient=True
            )
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print a line; a training log waits for the evaluation of the same step."""
        if not state.is_world_process_zero or not logs or not _SHOWN.keys() & logs.keys():
            return
        self._pending |= {key: logs[key] for key in _SHOWN if key in logs}
        if "loss" in logs and control.should_evaluate:
            return
        shown = [text.format(self._pending[k]) for k, text in _SHOWN.items() if k in self._pending]
        line = f"epoch {state.epoch or 0:.4g}: " + ", ".join(shown)
        self._console.print(line, highlight=False, soft_wrap=True)
        self._pending = {}

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """No bar of its own."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """No bar to close."""

    def on_predict(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """No bar to close."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was: the bar hides its cursor."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
