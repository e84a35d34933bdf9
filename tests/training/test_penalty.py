"""Methods with a penalty on the loss and a refresh an epoch, in TernaryTrainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from trainer_models import (
    Images,
    arguments,
    assert_same_state,
    small_net,
    trainer,
)

from timm_ternary import quantizers
from timm_ternary.nn.convert import quantizers_of
from timm_ternary.nn.trainable import latent_weight
from timm_ternary.training.trainer import TernaryTrainer

STRONG = {"method": "admm", "options": {"rho": 3.0}}


def _summed(logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: int) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("told", [False, True])
def test_the_penalty_counts_once_an_effective_batch(tmp_path: Path, told: bool) -> None:
    model = small_net(STRONG, dropout=0.0).double()
    data = Images(8)
    data.pixels = data.pixels.double()
    for name, quantizer in quantizers_of(model).items():
        latent = latent_weight(model.get_submodule(name))
        quantizer.reset(latent)
        quantizer.refresh(latent.detach())
    args = arguments(
        tmp_path,
        max_steps=1,
        gradient_accumulation_steps=2,
        learning_rate=0.1,
        momentum=0.0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
    )
    loss_function = _summed if told else None
    run = TernaryTrainer(model, args, train_dataset=data, compute_loss_func=loss_function)
    batches: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0].clone()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run.train()

    reference = small_net(STRONG, dropout=0.0).double().train()
    reference.load_state_dict({**model.state_dict(), **before}, strict=True)
    assert len(batches) == 2
    loss = torch.zeros((), dtype=torch.float64)
    for images in batches:
        labels = [data.labels[[torch.equal(i, p) for p in data.pixels].index(True)] for i in images]
        loss = loss + F.cross_entropy(reference(images), torch.stack(labels)) / 2
    for name, quantizer in quantizers_of(reference).items():
        offset = latent_weight(reference.get_submodule(name)) - quantizer.target + quantizer.dual
        loss = loss + 1.5 * offset.square().sum()
    parameters = dict(reference.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    after = dict(model.named_parameters())
    for name, gradient in zip(parameters, gradients, strict=True):
        expected = before[name] - 0.1 * gradient
        torch.testing.assert_close(after[name].detach(), expected, rtol=1e-9, atol=1e-12)


def test_the_threshold_pass_and_evaluation_are_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms, evaluated = [], []
    for penalized in (False, True):
        if penalized:
            monkeypatch.setattr(
                quantizers.get("tga"), "penalty", lambda self, _: 1e3 * self.threshold.sum()
            )
        run = trainer(tmp_path, max_steps=1, learning_rate=0.0)
        run.train()
        norms.append(run.state.log_history[0]["threshold_grad_norm"])
        evaluated.append(run.evaluate()["eval_loss"])
    assert norms[0] == norms[1] > 0
    assert evaluated[0] == evaluated[1]


def test_refreshed_between_epochs(tmp_path: Path) -> None:
    duals: list[float] = []
    run = trainer(tmp_path, small_net(STRONG), num_train_epochs=3, learning_rate=0.01)
    step = run.training_step

    def spy(*args: object) -> torch.Tensor:
        duals.append(quantizers_of(run.model)["second"].dual.abs().sum().item())
        return step(*args)

    run.training_step = spy  # type: ignore[method-assign]
    run.train()
    assert len(duals) == 30
    first, second, third = duals[:10], duals[10:20], duals[20:]
    assert set(first) == {0.0}
    assert len(set(second)) == len(set(third)) == 1
    assert 0 < second[0] != third[0] > 0


def test_evaluation_is_of_the_ternary_weights(tmp_path: Path) -> None:
    run = trainer(tmp_path, small_net(STRONG), num_train_epochs=2, learning_rate=0.01)
    run.train()
    data = Images(10, seed=2)
    float_model = small_net(None)
    state = {
        name.replace("parametrizations.weight.original", "weight"): value
        for name, value in run.model.state_dict().items()
        if "weight.0." not in name
    }
    for name, quantizer in quantizers_of(run.model).items():
        weight = quantizer.encode(latent_weight(run.model.get_submodule(name))).decode()
        assert len(weight.unique()) == 3
        state[f"{name}.weight"] = weight
    float_model.load_state_dict(state)
    with torch.no_grad():
        expected = F.cross_entropy(float_model.eval()(data.pixels), data.labels).item()
    assert run.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("at", [10, 15])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, at: int) -> None:
    shared = {"num_train_epochs": 3, "learning_rate": 0.01}
    whole = trainer(tmp_path, small_net(STRONG), save_strategy="steps", save_steps=at, **shared)
    whole.train()
    resumed = trainer(tmp_path, small_net(STRONG), **shared)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert_same_state(resumed.model, whole.model)
