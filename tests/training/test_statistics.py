"""Batch norms of several processes: what is evaluated is what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from trainer_models import Images, small_net, trainer
from transformers import TrainerCallback
from two_processes import TwoProcesses

from timm_ternary.training.callbacks.ema import EMA_NAME
from timm_ternary.training.statistics import reduce_statistics

STEPS = 4
IMAGES = 16
"""For evaluation: whole batches, or the Trainer's mean loss would count some images twice."""
KINDS = {"plain": {}, "averaged": {"ema_decay": 0.5}}


class _Own(TrainerCallback):
    """The statistics of this process after each step, before anything is reduced."""

    def __init__(self) -> None:
        self.means: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.means.append(kwargs["model"].first_norm.running_mean.clone())


def child(output: Path) -> dict[str, Any]:
    """What each of two processes finds, by kind of run."""
    found = {}
    for kind, options in KINDS.items():
        run = trainer(
            output / kind,
            small_net(dropout=0.0),
            save_strategy="steps",
            eval_strategy="steps",
            max_steps=STEPS,
            save_steps=STEPS,
            eval_steps=STEPS,
            ddp_backend="gloo",
            **options,
        )
        run.eval_dataset = Images(IMAGES, seed=2)
        own = _Own()
        run.add_callback(own)
        run.train()
        found[kind] = {
            "own": own.means[-1],
            "before": own.means[-2],
            "state": run.model.state_dict(),
            "logged": [e for e in run.state.log_history if "eval_loss" in e][-1],
            "after": run.evaluate(),
        }
    return found


@pytest.mark.multi_process
@pytest.mark.parametrize("kind", KINDS)
def test_the_accuracy_is_that_of_the_file(two_processes: TwoProcesses, kind: str) -> None:
    output, ranks = two_processes
    first, second = (rank[kind] for rank in ranks)
    assert not torch.equal(first["own"], second["own"])  # each has seen its own images
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    name = EMA_NAME if kind == "averaged" else "model.safetensors"
    state = load_file(output / kind / f"checkpoint-{STEPS}" / name)
    if kind == "plain":
        mean = (first["own"] + second["own"]) / 2
        torch.testing.assert_close(state["first_norm.running_mean"], mean)
    for tensor, value in state.items():
        torch.testing.assert_close(first["state"][tensor], value, rtol=1e-6, atol=1e-7)
    model, data = small_net().eval(), Images(IMAGES, seed=2)
    model.load_state_dict(state)
    with torch.no_grad():
        logits = model(data.pixels)
    loss = F.cross_entropy(logits, data.labels).item()
    accuracy = (logits.argmax(1) == data.labels).double().mean().item()
    for rank in (first, second):
        for metrics in (rank["logged"], rank["after"]):
            assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-5)
            assert metrics["eval_accuracy"] == pytest.approx(accuracy)


def test_one_process_has_nothing_to_reduce() -> None:
    model = small_net()
    model(torch.randn(4, 3, 8, 8))
    before = {name: value.clone() for name, value in model.named_buffers()}
    reduce_statistics(model)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


class TestReestimated:
    """--bn_reestimate: what is evaluated and saved are statistics of the weights as they are."""

    def _run(self, path: Path, **options: Any) -> Any:
        run = trainer(
            path,
            small_net(dropout=0.0),
            max_steps=STEPS,
            eval_strategy="steps",
            eval_steps=STEPS,
            save_strategy="steps",
            save_steps=STEPS,
            learning_rate=0.05,
            **options,
        )
        run.eval_dataset = Images(IMAGES, seed=2)
        return run

    @pytest.mark.parametrize("kind", KINDS)
    def test_they_are_the_mean_over_the_batches(self, kind: str, tmp_path: Path) -> None:
        run = self._run(tmp_path, bn_reestimate=1000, **KINDS[kind])  # all there are
        run.train()
        model, means, after = run.model, [], run.evaluate()
        found = model.first_norm.running_mean.clone()
        hook = model.first_norm.register_forward_pre_hook(
            lambda _, given: means.append(given[0].mean((0, 2, 3)))
        )
        model.train()
        with torch.no_grad():
            for batch in run.get_train_dataloader():
                model(batch["pixel_values"])
                assert len(batch["pixel_values"]) == run.args.train_batch_size
        hook.remove()
        torch.testing.assert_close(found, torch.stack(means).mean(0))
        name = EMA_NAME if kind == "averaged" else "model.safetensors"
        stored = load_file(tmp_path / f"checkpoint-{STEPS}" / name)
        torch.testing.assert_close(stored["first_norm.running_mean"], found)
        logged = [entry for entry in run.state.log_history if "eval_loss" in entry][-1]
        assert logged["eval_loss"] == pytest.approx(after["eval_loss"], rel=1e-5)

    def test_training_is_the_same(self, tmp_path: Path) -> None:
        """No random number and no weight changes: only statistics, which training never reads."""
        plain = self._run(tmp_path / "a")
        other = self._run(tmp_path / "b", bn_reestimate=2)
        plain.train()
        other.train()
        own, found = plain.model.state_dict(), other.model.state_dict()
        differing = {name for name, t in own.items() if not torch.equal(t, found[name])}
        assert differing and all("running" in n or "tracked" in n for n in differing)

    def test_not_a_number_of_batches(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="bn_reestimate must be a whole number"):
            self._run(tmp_path, bn_reestimate=0)
