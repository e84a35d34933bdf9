"""What the console shows of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
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
_QUIET_SECONDS = 60.0
"""Without a terminal, a line is printed after this long without one."""
_BAR_SECONDS = 2.0
"""The words beside the bar are renewed this often: they wait for the device."""


class ConsoleProgress(ProgressCallback, PrinterCallback):
    """One line a log on stderr; between them a bar on a terminal, elsewhere a line a minute.

    A line says the phase, the epoch, loss, accuracy, zeros, rate and the time left.

    In the place of transformers' ProgressCallback and PrinterCallback, and found by either class:
    ``trainer.remove_callback(ProgressCallback)`` silences it.

    Args:
        bar: Whether to show the bar at all.
        console: Where to write (default: stderr).
        moment: What is known between two logs: ``phase`` in words, and any entry of a log.
        clock: Seconds, from any beginning.
    """

    def __init__(
        self,
        *,
        bar: bool = True,
        console: Console | None = None,
        moment: Callable[[], Mapping[str, Any]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._console = Console(stderr=True) if console is None else console
        self._wanted = bar and self._console.is_terminal
        self._moment, self._clock = moment, clock
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._pending: dict[str, float] = {}
        # When this process began, and at which step; when it last said something.
        self._began = self._said = clock()
        self._first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar, and the clock."""
        self._began = self._said = self._clock()
        self._first = state.global_step
        if self._wanted and state.is_world_process_zero:
            columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar; without one, say once a minute how it stands."""
        if not state.is_world_process_zero:
            return
        silent = self._clock() - self._said
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)
            if silent >= _BAR_SECONDS:
                self._said = self._clock()
                self._bar.update(self._task, description=self._now(state, kwargs))
        elif silent >= _QUIET_SECONDS:
            self._print(self._now(state, kwargs))

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The phase is another while the model is evaluated."""
        if self._bar is not None:
            self._bar.update(self._task, description="evaluation")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print a line; a training log waits for the evaluation of the same step."""
        if not state.is_world_process_zero or not logs or not _SHOWN.keys() & logs.keys():
            return
        self._pending |= {key: logs[key] for key in _SHOWN if key in logs}
        if "loss" in logs and control.should_evaluate:
            return
        self._print(self._line(state, self._pending))
        self._pending = {}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was: the bar hides its cursor."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _now(self, state: Any, given: Mapping[str, Any]) -> str:
        """A line of what is known between two logs."""
        values = dict(self._moment())
        schedule = given.get("lr_scheduler")
        if schedule is not None:
            values["learning_rate"] = float(schedule.get_last_lr()[0])
        return self._line(state, values)

    def _line(self, state: Any, values: Mapping[str, Any]) -> str:
        phase = values.get("phase") or self._moment().get("phase")
        epoch = f"epoch {state.epoch or 0:.4g}"
        if state.num_train_epochs and state.max_steps:
            epoch += f" of {state.num_train_epochs:g}"
        shown = [text.format(values[key]) for key, text in _SHOWN.items() if key in values]
        if (left := self._left(state)) is not None:
            shown.append(f"{left} left")
        head = f"{epoch} ({phase})" if phase else epoch
        return f"{head}: " + ", ".join(shown)

    def _left(self, state: Any) -> timedelta | None:
        """At the rate of this process so far."""
        done, todo = state.global_step - self._first, state.max_steps - state.global_step
        if done <= 0 or todo <= 0:
            return None
        return timedelta(seconds=round((self._clock() - self._began) / done * todo))

    def _print(self, line: str) -> None:
        self._said = self._clock()
        self._console.print(line, highlight=False, soft_wrap=True)
