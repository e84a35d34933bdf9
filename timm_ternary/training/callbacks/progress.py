"""What accompanies a run: the epoch, the methods' state, when to stop, and the console."""

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
from transformers import EarlyStoppingCallback, TrainerCallback

__all__ = ["ConsoleProgress", "EarlyStopping", "RefreshQuantizers", "SetEpoch", "SkipSeen"]

# What a line shows of the logs, in this order; log_history, metrics and trackers get all of it.
_SHOWN = {
    "loss": "loss {:.4f}",
    "accuracy": "train {:.2%}",
    "eval_loss": "held-out loss {:.4f}",
    "eval_accuracy": "held-out {:.2%}",
    "zeros": "zeros {:.1%}",
    "learning_rate": "rate {:.2g}",
}


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


class RefreshQuantizers(TrainerCallback):
    """Has the methods refresh their state between two epochs, also where a run resumes there.

    Args:
        trainer: Has ``refresh_quantizers()``.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._ended = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """No epoch has ended in this run."""
        self._ended = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refresh, but for the first epoch, and where a run resumes within an epoch."""
        epoch = state.epoch or 0
        resumed_between = state.global_step > 0 and abs(epoch - round(epoch)) < 1e-6
        if self._ended or resumed_between:
            self.trainer.refresh_quantizers()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The next one begins with a refresh: what is saved now is as the epoch left it."""
        self._ended = True


class EarlyStopping(EarlyStoppingCallback):
    """As transformers' callback; each training counts anew, or on from where it resumes."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the count of the checkpoint that training resumes from."""
        saved = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step else {}
        count = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
        self.early_stopping_patience_counter = count
        # A checkpoint of a training without it has no entry, which transformers 5.23 looks for.
        state.stateful_callbacks[type(self).__name__] = self.state()


class ConsoleProgress(TrainerCallback):
    """One line a log on stderr, and a bar where stderr is a terminal.

    Args:
        bar: Whether to show the bar at all.
        console: Where to write (default: stderr).
    """

    def __init__(self, *, bar: bool = True, console: Console | None = None) -> None:
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

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
