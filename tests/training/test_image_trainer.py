"""ImageTrainer by itself: float models, and arguments that stay those of the caller."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trainer_models import Images, arguments, assert_same_state, losses, small_net, trainer

from timm_ternary.training import ImageTrainer, TernaryTrainer


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_arguments_are_those_of_the_caller(tmp_path: Path, smoothing: float) -> None:
    config = {"gradient_accumulation_kwargs": {"num_steps": 2}}
    args = arguments(
        tmp_path, label_smoothing_factor=smoothing, max_steps=1, accelerator_config=config
    )
    run = ImageTrainer(small_net(None), args, train_dataset=Images())
    assert run.args is args
    assert args.label_smoothing_factor == smoothing
    assert args.gradient_accumulation_steps == 2  # the Trainer takes it from accelerator_config


def test_arguments_of_a_refused_trainer_stay(tmp_path: Path) -> None:
    args = arguments(tmp_path, label_smoothing_factor=0.2)
    with pytest.raises(RuntimeError, match="model"):
        ImageTrainer(None, args)
    assert args.label_smoothing_factor == 0.2


def test_a_float_model_trains_as_with_the_other_trainer(tmp_path: Path) -> None:
    options = {"lr_milestones": [1.0], "nesterov": True, "label_smoothing_factor": 0.1}
    runs = []
    for kind in (ImageTrainer, TernaryTrainer):
        runs.append(kind(small_net(None), arguments(tmp_path, **options), train_dataset=Images()))
        runs[-1].train()
    image, ternary = runs
    assert losses(image) == losses(ternary)
    assert_same_state(image.model, ternary.model)
    assert isinstance(image.optimizer.optimizer, torch.optim.SGD)
    assert image.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    assert image.steps_per_epoch == 10


def test_no_method_is_overridden_on_three_rungs() -> None:
    rungs = [kind for kind in TernaryTrainer.__mro__ if kind.__module__.startswith("timm_ternary")]
    assert [kind.__name__ for kind in rungs] == ["TernaryTrainer", "HubMixin", "ImageTrainer"]
    names = [name for kind in rungs for name, value in vars(kind).items() if callable(value)]
    assert max(names.count(name) for name in names) == 2


def test_hits_are_counted_in_training_only(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=1, gradient_accumulation_steps=2)
    run.train()
    run.evaluate()
    logs: dict[str, float] = {"loss": 1.0}
    run.log(logs)
    assert "accuracy" not in logs
