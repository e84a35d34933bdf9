"""The moving average: its values, where it is seen, and that it survives a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from trainer_models import (
    Images,
    arguments,
    assert_same_state,
    losses,
    small_net,
    trainer,
)
from transformers import TrainerCallback

from timm_ternary.nn.convert import quantizers_of
from timm_ternary.training.callbacks.ema import EMA_NAME
from timm_ternary.training.resume.record import RECORD_NAME
from timm_ternary.training.trainer import TernaryTrainer

METHODS = ("tga", "ttq")
"""Alternate and joint updates."""


class _Record(TrainerCallback):
    """The state of the model after each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states.append({n: v.clone() for n, v in kwargs["model"].state_dict().items()})


def _run(
    output: Path, method: str = "tga", **options: Any
) -> tuple[TernaryTrainer, list[dict[str, Tensor]]]:
    run = trainer(output, small_net(method), **{"num_train_epochs": 1, **options})
    record = _Record()
    run.add_callback(record)
    run.train()
    return run, record.states


def _average(states: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """The formula, written out; whole numbers are counts and taken as they are."""
    average = {name: value.clone() for name, value in states[0].items()}
    for state in states[1:]:
        for name, value in state.items():
            if value.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * value
            else:
                average[name] = value.clone()
    return average


@pytest.mark.parametrize("method", METHODS)
def test_training_leaves_the_average(tmp_path: Path, method: str) -> None:
    run, states = _run(tmp_path, method, ema_decay=0.8)
    expected, final = _average(states, 0.8), run.model.state_dict()
    assert final.keys() == expected.keys() and len(states) == 10
    for name, value in final.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    averaged = [name for name in final if not torch.equal(final[name], states[-1][name])]
    assert any("parametrizations.weight.original" in name for name in averaged)
    assert any(".weight.0." in name for name in averaged)  # thresholds and scales
    assert any(name.endswith("running_mean") for name in averaged)


@pytest.mark.parametrize("method", METHODS)
def test_it_does_not_disturb_training(tmp_path: Path, method: str) -> None:
    run, states = _run(tmp_path, method, ema_decay=0.8, eval_strategy="steps", eval_steps=2)
    alone, plain = _run(tmp_path, method, eval_strategy="steps", eval_steps=2)
    assert losses(run) == losses(alone)
    for one, other in zip(states, plain, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_evaluation_sees_the_ternarized_average(tmp_path: Path) -> None:
    run, states = _run(tmp_path, ema_decay=0.8, eval_strategy="steps", eval_steps=6)
    logged = next(e for e in run.state.log_history if "eval_loss" in e and e["step"] == 6)
    model, data = small_net(), Images(10, seed=2)

    def loss(state: dict[str, Tensor]) -> float:
        model.load_state_dict(state)
        return F.cross_entropy(model.eval()(data.pixels), data.labels).item()

    assert logged["eval_loss"] == pytest.approx(loss(_average(states[:6], 0.8)), rel=1e-4)
    assert abs(logged["eval_loss"] - loss(states[5])) > 1e-3
    assert run.evaluate()["eval_loss"] == pytest.approx(loss(_average(states, 0.8)), rel=1e-4)
    codes = [q.encode(_latent(run.model, name)).codes for name, q in quantizers_of(model).items()]
    assert all(set(code.unique().tolist()) <= {-1, 0, 1} for code in codes)


def _latent(model: nn.Module, name: str) -> Tensor:
    layer: Any = model.get_submodule(name)
    return layer.parametrizations.weight.original.detach()


@pytest.mark.parametrize("method", METHODS)
def test_resume_gives_the_same_bits(tmp_path: Path, method: str) -> None:
    options = {"ema_decay": 0.9, "save_strategy": "steps", "save_steps": 3}
    whole, _ = _run(tmp_path / "a", method, **options)
    resumed = trainer(tmp_path / "b", small_net(method), num_train_epochs=1, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert_same_state(resumed.model, whole.model)
    last = tmp_path / "a" / "checkpoint-9"
    raw, average = load_file(last / "model.safetensors"), load_file(last / EMA_NAME)
    assert raw.keys() == average.keys()
    assert any(not torch.equal(raw[name], average[name]) for name in raw)


def test_the_best_checkpoints_average_is_loaded_at_the_end(tmp_path: Path) -> None:
    steps = {"eval_steps": 2, "save_steps": 2, "eval_strategy": "steps", "save_strategy": "steps"}
    run, _ = _run(
        tmp_path,
        ema_decay=0.8,
        learning_rate=0.5,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        **steps,
    )
    best = run.state.best_model_checkpoint
    assert best is not None
    average = load_file(Path(best) / EMA_NAME)
    assert all(torch.equal(v, average[n]) for n, v in run.model.state_dict().items())
    assert run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric)


def test_a_checkpoint_without_an_average_is_refused(tmp_path: Path) -> None:
    _run(tmp_path, save_strategy="steps", save_steps=5)
    checkpoint = tmp_path / "checkpoint-5"
    assert not (checkpoint / EMA_NAME).exists()
    run = trainer(tmp_path, ema_decay=0.9)
    with pytest.raises(
        ValueError, match=r"ema_decay is unset there, 0\.9 here.*without --ema_decay"
    ):
        run.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / RECORD_NAME).unlink()  # as an earlier version wrote it
    with pytest.raises(ValueError, match="trained without ema_decay"):
        run.train(resume_from_checkpoint=str(checkpoint))
    save_file({"other": torch.zeros(1)}, checkpoint / EMA_NAME)
    with pytest.raises(ValueError, match="belongs to another model"):
        run.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / EMA_NAME).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"{EMA_NAME} is cut off or damaged"):
        run.train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("value", [1.0, -0.1, "0.9"])
def test_arguments(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="ema_decay must be"):
        arguments(tmp_path, ema_decay=value)
