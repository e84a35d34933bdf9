"""ConsoleProgress stands in for transformers' progress callbacks: it is found and taken away."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainer_models import Images, arguments, small_net
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from timm_ternary.training.callbacks.progress import ConsoleProgress
from timm_ternary.training.trainer import TernaryTrainer


class Mine(ProgressCallback):
    """A caller's own."""


def _trainer(output: Path, *, disable_tqdm: bool, **options: object) -> TernaryTrainer:
    return TernaryTrainer(
        small_net(),
        arguments(output, max_steps=2, disable_tqdm=disable_tqdm, eval_strategy="epoch"),
        train_dataset=Images(),
        eval_dataset=Images(10, seed=2),
        **options,
    )


def _run(run: TernaryTrainer) -> None:
    run.train()
    run.evaluate()
    run.predict(run.eval_dataset)


@pytest.mark.parametrize("disable_tqdm", [True, False])
@pytest.mark.parametrize("kind", [ProgressCallback, PrinterCallback, ConsoleProgress])
@pytest.mark.parametrize("verb", ["remove_callback", "pop_callback"])
def test_it_is_silenced(
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    kind: type[TrainerCallback],
    verb: str,
    disable_tqdm: bool,
) -> None:
    run = _trainer(tmp_path, disable_tqdm=disable_tqdm)
    found = getattr(run, verb)(kind)
    assert isinstance(found, kind) == (verb == "pop_callback")
    capfd.readouterr()
    _run(run)
    assert capfd.readouterr() == ("", "")


def test_there_is_one_and_it_says_something(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    run = _trainer(tmp_path, disable_tqdm=False)
    shown = [c for c in run.callback_handler.callbacks if isinstance(c, ProgressCallback)]
    assert [type(callback) for callback in shown] == [ConsoleProgress]
    assert not any(type(c) is PrinterCallback for c in run.callback_handler.callbacks)
    capfd.readouterr()
    _run(run)
    out, err = capfd.readouterr()
    # Neither the bars of tqdm nor the printed dicts of the callbacks whose place it takes.
    assert out == "" and "loss" in err and "it/s" not in err and "{" not in err


def test_a_callback_of_the_caller_stays(tmp_path: Path) -> None:
    mine = Mine()
    run = _trainer(tmp_path, disable_tqdm=False, callbacks=[mine])
    callbacks = run.callback_handler.callbacks
    assert mine in callbacks
    assert [type(c) for c in callbacks if isinstance(c, ProgressCallback)] == [
        Mine,
        ConsoleProgress,
    ]
