"""SIGTERM ends a training in one line, after a checkpoint of the step."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_files import recipe
from safetensors.torch import load_file
from trainer_models import trainer
from transformers import TrainerCallback
from two_processes import TwoProcesses

from timm_ternary import train
from timm_ternary.training import run
from timm_ternary.training.callbacks.stop_at_step import StopAtStep
from timm_ternary.training.resume.record import damage
from timm_ternary.training.stop import Sigterm, Terminated


def _told() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class _Tell(TrainerCallback):
    """Sends SIGTERM where the step of that number begins, `times` times."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.step, self.times = step, times

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            for _ in range(self.times):
                _told()


def _telling(monkeypatch: pytest.MonkeyPatch, *where: int) -> None:
    class Trainer(run.TernaryTrainer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, callbacks=[_Tell(*where)])

    monkeypatch.setattr(run, "TernaryTrainer", Trainer)


def _line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The only line of the end, at exit status 143."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        train.main(words)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    lines = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("epoch ")]
    (line,) = lines
    return line


@pytest.mark.parametrize("strategy", ["no", "best"])
def test_a_checkpoint_of_the_step_from_which_training_goes_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
) -> None:
    options = {"model": "resnet8_cifar_tern", "max_steps": 4, "save_strategy": strategy}
    if strategy == "best":
        options |= {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}
    whole = train.main(recipe(tmp_path / "whole", **options))
    words = recipe(tmp_path, **options)
    with monkeypatch.context() as patch:
        _telling(patch, 1)
        line = _line(words, capsys)
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert line == (
        f"terminated (SIGTERM): the last checkpoint is {checkpoint}; to go on type the same with "
        "--resume_from_checkpoint true"
    )
    assert damage(checkpoint) is None
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoint-2"}
    resumed = train.main([*words, "--resume_from_checkpoint", "true"])
    assert resumed["eval_loss"] == whole["eval_loss"]
    one, other = (
        load_file(p / "out" / "model.safetensors") for p in (tmp_path, tmp_path / "whole")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_told_twice_it_ends_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _telling(monkeypatch, 1, 2)
    words = recipe(tmp_path, model="resnet8_cifar", save_strategy="steps", save_steps=1)
    assert "checkpoint-1; to go on type" in _line(words, capsys)


@pytest.mark.parametrize("stage", ["load_data", "summarize"])
def test_before_and_after_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    stock = getattr(run, stage)

    def told(*args: Any, **options: Any) -> Any:
        _told()
        return stock(*args, **options)

    monkeypatch.setattr(run, stage, told)
    line = _line(recipe(tmp_path, model="resnet8_cifar_tern"), capsys)
    assert line.startswith("terminated (SIGTERM): no checkpoint was written yet; to start anew")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_after_the_last_step_it_is_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _telling(monkeypatch, 2)  # the third of three steps
    line = _line(recipe(tmp_path, model="resnet8_cifar"), capsys)
    assert "checkpoint-3" in line
    state = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3


def test_a_worker_that_dies_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        _told()
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    monkeypatch.setattr(run.TernaryTrainer, "training_step", die)
    assert _line(recipe(tmp_path, model="resnet8_cifar"), capsys).startswith("terminated (SIGTERM)")


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupt(_Tell):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == self.step:
                raise KeyboardInterrupt

    class Trainer(run.TernaryTrainer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, callbacks=[Interrupt(2)])

    monkeypatch.setattr(run, "TernaryTrainer", Trainer)
    with pytest.raises(SystemExit) as caught:
        train.main(recipe(tmp_path, model="resnet8_cifar", save_strategy="steps", save_steps=1))
    assert caught.value.code == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("interrupted; the last checkpoint is ") and "checkpoint-2; to go" in last


def test_whoever_else_handles_it_keeps_it() -> None:
    def mine(*_: Any) -> None:
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with Sigterm():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    failed = []

    def elsewhere() -> None:
        with Sigterm() as sigterm:
            failed.append(sigterm.received)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert failed == [False]


def child(output: Path) -> dict[str, Any]:
    """One of two processes is told to stop; what each of them finds."""
    with Sigterm() as sigterm:
        job = trainer(output, max_steps=8, ddp_backend="gloo")
        job.add_callback(StopAtStep(sigterm, job.accelerator))
        if torch.distributed.get_rank() == 1:
            job.add_callback(_Tell(2))
        try:
            job.train()
        except Terminated:
            return {"step": job.state.global_step, "received": sigterm.received}
    return {}


@pytest.mark.multi_process
def test_all_processes_stop_at_the_same_step(two_processes: TwoProcesses) -> None:
    output, (first, second) = two_processes
    assert first == {"step": 3, "received": False}
    assert second == {"step": 3, "received": True}
    assert damage(output / "checkpoint-3") is None
    names = {path.name for path in (output / "checkpoint-3").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth"} < names
    record = json.loads((output / "checkpoint-3" / "resume.json").read_text())
    assert {"rng_state_0.pth", "rng_state_1.pth"} < record["files"].keys()
