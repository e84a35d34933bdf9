"""What a person sees of a run, on a terminal and in a log file."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from trainer_models import small_net, trainer
from transformers import TrainerControl, TrainerState

from timm_ternary.training.callbacks.progress import ConsoleProgress


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Seen:
    """A ConsoleProgress, the clock it reads, and what it has printed."""

    def __init__(self, *, terminal: bool = False, **moment: Any) -> None:
        self.file, self.clock = io.StringIO(), Clock()
        console = Console(file=self.file, force_terminal=terminal, width=200)
        self.callback = ConsoleProgress(console=console, moment=lambda: moment, clock=self.clock)
        self.state = TrainerState(max_steps=100, num_train_epochs=10)
        self.control = TrainerControl()

    def __call__(self, event: str, seconds: float = 0.0, steps: int = 0, **given: Any) -> str:
        """What an event prints that comes after so many seconds and steps."""
        self.clock.now += seconds
        self.state.global_step += steps
        self.state.epoch = self.state.global_step / 10
        begin = len(self.file.getvalue())
        getattr(self.callback, f"on_{event}")(None, self.state, self.control, **given)
        return self.file.getvalue()[begin:]


def test_without_a_terminal_a_line_a_minute() -> None:
    seen = Seen(phase="thresholds, then weights", loss=0.5, accuracy=0.25, zeros=0.46)
    schedule = SimpleNamespace(get_last_lr=lambda: [0.0125])
    seen("train_begin")
    assert seen("step_end", 59, 10, lr_scheduler=schedule) == ""
    assert seen("step_end", 1, 10, lr_scheduler=schedule) == (
        "epoch 2 of 10 (thresholds, then weights): loss 0.5000, train 25.00%, zeros 46.0%, "
        "rate 0.013, 0:04:00 left\n"
    )
    assert seen("step_end", 59, 10, lr_scheduler=schedule) == ""
    logged = seen("log", 1, logs={"loss": 0.4, "learning_rate": 0.01})
    assert logged.startswith("epoch 3 of 10 (thresholds, then weights): loss 0.4000, rate 0.01, ")
    assert seen("step_end", 59, 1, lr_scheduler=schedule) == ""  # a log counts as a line


def test_the_time_left_is_that_of_this_process() -> None:
    seen = Seen()
    seen.state.global_step = 90  # resumed
    seen("train_begin")
    assert "0:00:20 left" in seen("step_end", 80, 8)
    assert "left" not in seen("log", steps=2, logs={"loss": 1.0})


def test_only_the_first_process_speaks() -> None:
    seen = Seen()
    seen.state.is_world_process_zero = False
    seen("train_begin")
    assert seen("step_end", 1000, 1) == "" and seen("log", logs={"loss": 1.0}) == ""


def test_a_terminal_has_a_bar_with_the_words_beside_it() -> None:
    seen = Seen(terminal=True, phase="soft start", loss=0.5)
    seen("train_begin")
    seen("step_end", 5, 1)
    task = seen.callback._bar.tasks[0]
    assert task.description.startswith("epoch 0.1 of 10 (soft start): loss 0.5000, ")
    assert (task.completed, task.total) == (1, 100)
    seen("prediction_step")
    assert task.description == "evaluation"
    seen("train_end")
    assert seen.callback._bar is None


@pytest.mark.parametrize(
    ("options", "phase"),
    [
        ({"update": "alternate"}, "thresholds, then weights"),
        ({"update": "joint"}, "thresholds, weights"),
        ({"update": "joint", "soft_epochs": 1, "max_steps": 11}, "soft start"),
    ],
)
def test_a_run_says_its_phase_and_zeros(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], phase: str
) -> None:
    options = {"max_steps": 2, "logging_steps": 1} | options
    trainer(tmp_path, small_net(), **options).train()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert re.match(rf"epoch [\d.]+ of \d+ \({phase}\): loss \d+\.\d{{4}}, train ", lines[0])
    assert "zeros" in lines[0] and "rate" in lines[0] and "left" in lines[0]


def test_what_is_known_between_two_logs(tmp_path: Path) -> None:
    run = trainer(tmp_path, small_net(), max_steps=2, logging_steps=100)
    assert run.moment() == {"phase": "weights"}
    run.train()
    found = run.moment()
    assert found["loss"] > 0 and 0 <= found["accuracy"] <= 1 and 0 <= found["zeros"] <= 1
