"""mixup and cutmix: the batch, both passes, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from trainer_models import (
    CLASSES,
    Images,
    SmallNet,
    arguments,
    assert_same_state,
    losses,
    small_net,
    trainer,
)

from timm_ternary.training.mixup import Mixer


def net(**options: Any) -> SmallNet:
    """A model that says its classes, as timm's do."""
    model = small_net(**options)
    model.num_classes = CLASSES
    return model


def batch(count: int = 6) -> dict[str, Any]:
    data = Images(count)
    return {"pixel_values": data.pixels, "labels": data.labels}


def mixer(mixup: float = 1.0, cutmix: float = 0.0, seed: int = 5) -> Mixer:
    return Mixer(mixup=mixup, cutmix=cutmix, classes=CLASSES, seed=seed)


@pytest.mark.parametrize("count", [6, 7, 1])
def test_mixup_is_the_formula(count: int) -> None:
    plain = batch(count)
    pixels, even = plain["pixel_values"].clone(), count - count % 2
    mixed = mixer()(plain, (3, 0))
    labels = F.one_hot(plain["labels"], CLASSES).float()
    np.random.seed([5, 3, 0])
    np.random.rand()
    share = np.random.beta(1.0, 1.0)
    for key, value in (("pixel_values", pixels), ("labels", labels)):
        expected = share * value[:even] + (1 - share) * value[:even].flip(0)
        torch.testing.assert_close(mixed[key], torch.cat([expected, value[even:]]))
    assert torch.equal(plain["pixel_values"], pixels) and plain["labels"].ndim == 1
    assert 0 < share < 1


def test_cutmix_cuts_a_box_and_shares_the_labels() -> None:
    plain = batch(4)
    mixed = mixer(0.0, 1.0)(plain, (0, 0))
    other = plain["pixel_values"].flip(0)
    taken = (mixed["pixel_values"] == other).all(1)[0]
    kept = (mixed["pixel_values"] == plain["pixel_values"]).all(1)[0]
    assert taken.any() and kept.any() and (taken | kept).all()
    share = 1 - taken.double().mean().item()
    labels = F.one_hot(plain["labels"], CLASSES).float()
    torch.testing.assert_close(mixed["labels"], share * labels + (1 - share) * labels.flip(0))


def test_what_is_drawn_depends_on_seed_and_place_alone() -> None:
    first = mixer()(batch(), (3, 0))
    state = np.random.get_state()[1].copy()
    np.random.rand(3)
    assert torch.equal(mixer()(batch(), (3, 0))["labels"], first["labels"])
    np.random.set_state(("MT19937", state, *np.random.get_state()[2:]))
    for other in (
        mixer()(batch(), (4, 0)),
        mixer()(batch(), (3, 1)),
        mixer(seed=6)(batch(), (3, 0)),
    ):
        assert not torch.equal(other["labels"], first["labels"])
    before = np.random.get_state()[1]
    mixer()(batch(), (3, 0))
    assert np.array_equal(np.random.get_state()[1], before)


def test_probabilities_as_labels_are_mixed_too() -> None:
    hard = batch()
    soft = {**hard, "labels": F.one_hot(hard["labels"], CLASSES).double()}
    assert torch.equal(mixer()(soft, (0, 0))["labels"], mixer()(hard, (0, 0))["labels"])


def test_both_passes_see_the_same_mixed_batch(tmp_path: Path) -> None:
    model, seen = net(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    run = trainer(tmp_path, model, mixup=1.0, max_steps=2, gradient_accumulation_steps=2)
    labels: list[torch.Tensor] = []
    compute = run.task_loss

    def spy(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels.append(inputs["labels"])
        return compute(model, inputs, *args, **kwargs)

    run.task_loss = spy  # type: ignore[method-assign]
    run.train()
    assert len(seen) == 8
    for step in (0, 4):
        for one in (0, 1):
            assert torch.equal(seen[step + one], seen[step + one + 2])
            assert torch.equal(labels[step + one], labels[step + one + 2])
            shares = labels[step + one]
            assert shares.shape == (4, CLASSES) and (shares > 0).sum() > 4
            torch.testing.assert_close(shares.sum(1), torch.ones(4))
    plain = Images().pixels
    assert not any(torch.equal(image, p) for batch in seen for image in batch for p in plain)


@pytest.mark.parametrize("extra", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_training_differs_and_evaluation_is_plain(tmp_path: Path, extra: dict[str, float]) -> None:
    mixed = trainer(tmp_path, net(), num_train_epochs=1, label_smoothing_factor=0.1, **extra)
    before = mixed.evaluate()
    assert (
        before["eval_loss"]
        == trainer(tmp_path, net(), label_smoothing_factor=0.1).evaluate()["eval_loss"]
    )
    mixed.train()
    alone = trainer(tmp_path, net(), num_train_epochs=1, label_smoothing_factor=0.1)
    alone.train()
    assert losses(mixed) != losses(alone)
    assert all(0 <= e["accuracy"] <= 1 for e in mixed.state.log_history if "loss" in e)


def test_accuracy_counts_the_larger_share(tmp_path: Path) -> None:
    run = trainer(tmp_path, net(dropout=0.0), mixup=1.0, max_steps=1, learning_rate=0.0)
    logits: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    compute = run.compute_loss

    def spy(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["return_outputs"] = True
        loss, outputs = compute(model, inputs, *args, **kwargs)
        logits.append(outputs["logits"].detach())
        labels.append(inputs["labels"])
        return loss

    run.compute_loss = spy  # type: ignore[method-assign]
    run.train()
    expected = (logits[-1].argmax(1) == labels[-1].argmax(1)).double().mean()
    assert run.state.log_history[0]["accuracy"] == pytest.approx(float(expected))


def test_resume_gives_the_same_bits(tmp_path: Path) -> None:
    options = {"mixup": 0.5, "cutmix": 1.0, "save_strategy": "steps", "save_steps": 3}
    options |= {"gradient_accumulation_steps": 2}
    whole = trainer(tmp_path / "a", net(), **options)
    whole.train()
    resumed = trainer(tmp_path / "b", net(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert losses(resumed) == losses(whole)
    assert_same_state(resumed.model, whole.model)


def test_bad_input(tmp_path: Path) -> None:
    for name in ("mixup", "cutmix"):
        with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
            arguments(tmp_path, **{name: -0.1})
    with pytest.raises(ValueError, match=r"mixup and cutmix need .* got SmallNet"):
        trainer(tmp_path, mixup=0.2)
