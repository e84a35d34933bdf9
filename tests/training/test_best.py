"""When training stops early, and which checkpoint it leaves in the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainer_models import (
    arguments,
    small_net,
    trainer,
)

from timm_ternary.models import ternary as ternary
from timm_ternary.nn.convert import pack_, quantizers_of
from timm_ternary.training import metrics
from timm_ternary.training.arguments.recipe import parse
from timm_ternary.training.run import ARGUMENTS, fit
from timm_ternary.training.start import build_model, find_start

EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def _says(*values: float) -> Callable[[Any], dict[str, float]]:
    """Metrics that report these accuracies in turn, the last one from then on."""
    left = list(values)

    def metrics(_: Any) -> dict[str, float]:
        return {"accuracy": left.pop(0) if len(left) > 1 else left[0]}

    return metrics


@pytest.mark.parametrize(
    "patience, threshold, accuracies, stops",
    [
        (2, 0.0, (0.1, 0.2, 0.2, 0.2), 4),
        (2, 0.0, (0.1, 0.3, 0.2, 0.4, 0.1, 0.1), 6),
        (2, 0.1, (0.1, 0.3, 0.35, 0.38), 4),
        (2, 0.0, (0.1, 0.3, 0.35, 0.38), 6),
        (1, 0.0, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), 10),
        (None, 0.0, (0.5,), 10),
    ],
)
def test_training_stops_when_nothing_gets_better(
    tmp_path: Path, patience: int | None, threshold: float, accuracies: Any, stops: int
) -> None:
    run = trainer(
        tmp_path,
        num_train_epochs=1,
        early_stopping_patience=patience,
        early_stopping_threshold=threshold,
        eval_strategy="steps",
        eval_steps=1,
    )
    run.compute_metrics = _says(*accuracies)
    run.train()
    assert run.state.global_step == stops


def test_a_plateau_is_where_the_accuracy_no_longer_grows(tmp_path: Path) -> None:
    rates = {}
    for name, accuracies in {"grows": (0.1, 0.2, 0.3, 0.4, 0.5), "stays": (0.5,)}.items():
        run = trainer(
            tmp_path / name,
            max_steps=5,
            early_stopping_patience=9,
            lr_scheduler_type="reduce_lr_on_plateau",
            lr_scheduler_kwargs={"patience": 0, "factor": 0.5},
            **EACH_STEP,
        )
        run.compute_metrics = _says(*accuracies)
        run.train()
        log = [e["learning_rate"] for e in run.state.log_history if "learning_rate" in e]
        rates[name] = log
    assert set(rates["grows"]) == {0.05}
    assert rates["stays"][-1] < 0.05 / 4


def test_saving_the_best_means_the_accuracy(tmp_path: Path) -> None:
    args = arguments(tmp_path, save_strategy="best", eval_strategy="epoch")
    assert args.metric_for_best_model == "accuracy" and args.greater_is_better


def test_it_looks_at_the_accuracy_that_is_really_reached(tmp_path: Path) -> None:
    options = {"learning_rate": 0.0, "eval_strategy": "epoch", "num_train_epochs": 9}
    run = trainer(tmp_path, early_stopping_patience=3, threshold_learning_rate=0.0, **options)
    model = run.model
    for norm in (model.first_norm, model.second_norm):
        norm.momentum = 0.0  # or the statistics would change what a fixed network finds
    run.train()
    assert run.state.epoch == 4
    assert run.state.best_metric == run.evaluate()["eval_accuracy"]


def test_a_second_training_counts_anew_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    options = {"early_stopping_patience": 3, "num_train_epochs": 1, **EACH_STEP}
    whole = trainer(tmp_path / "a", **options)
    whole.compute_metrics = _says(0.5, 0.4)
    whole.train()
    assert whole.state.global_step == 4
    whole.train()
    assert whole.state.global_step == 3 + 1
    resumed = trainer(tmp_path / "b", **options)
    resumed.compute_metrics = _says(0.4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert resumed.state.global_step == 4


def test_it_may_begin_when_a_training_resumes(tmp_path: Path) -> None:
    trainer(tmp_path, num_train_epochs=1, **EACH_STEP).train()
    run = trainer(tmp_path, num_train_epochs=1, early_stopping_patience=2, **EACH_STEP)
    run.compute_metrics = _says(0.5)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert run.state.global_step == 5
    saved = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    count = saved["stateful_callbacks"]["EarlyStopping"]["attributes"]
    assert count == {"early_stopping_patience_counter": 2}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"early_stopping_patience": 2}, r"type --eval_strategy epoch"),
        ({"early_stopping_patience": 0}, "must be a whole number >= 1, got 0"),
        ({"early_stopping_patience": 2.0}, r"must be a whole number >= 1, got 2\.0"),
        ({"early_stopping_threshold": 0.1}, "type --early_stopping_patience 5"),
        ({"early_stopping_patience": 2, "early_stopping_threshold": -1.0}, "finite number >= 0"),
    ],
)
def test_arguments(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        arguments(tmp_path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wanted", [{"load_best_model_at_end": True}, {"early_stopping_patience": 9}]
)
def test_the_best_is_that_of_the_highest_accuracy(tmp_path: Path, wanted: Any) -> None:
    args = arguments(tmp_path, **wanted, **EACH_STEP)
    assert args.metric_for_best_model == "accuracy" and args.greater_is_better is True
    args = arguments(tmp_path, metric_for_best_model="loss", **wanted, **EACH_STEP)
    assert args.metric_for_best_model == "loss" and args.greater_is_better is False
    assert arguments(tmp_path).metric_for_best_model is None


def test_a_metric_that_is_not_reported_is_named(tmp_path: Path) -> None:
    run = trainer(tmp_path, metric_for_best_model="acuracy", **EACH_STEP)
    with pytest.raises(ValueError, match=r"metric_for_best_model 'acuracy'; did you mean 'accura"):
        run.train()


@pytest.mark.parametrize("method", ["tga", "ttq"])
def test_the_best_checkpoint_is_what_remains(tmp_path: Path, method: str) -> None:
    """Alternate update with two optimizers in one, and joint update; stopped early besides."""
    run = trainer(
        tmp_path,
        small_net(method),
        num_train_epochs=1,
        load_best_model_at_end=True,
        early_stopping_patience=4,
        **EACH_STEP,
    )
    run.compute_metrics = _says(0.1, 0.5, 0.9, 0.3)
    run.train()
    assert run.state.global_step == 7
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    best, last = (load_file(tmp_path / f"checkpoint-{i}" / "model.safetensors") for i in (3, 7))
    state = run.model.state_dict()
    assert state.keys() == best.keys()
    for name, value in state.items():
        assert torch.equal(value, best[name]), name
    moved = {name for name, value in state.items() if not torch.equal(value, last[name])}
    for name, quantizer in quantizers_of(run.model).items():
        inner = f"{name}.parametrizations.weight"
        assert f"{inner}.original" in moved
        assert moved >= {f"{inner}.0.{own}" for own, _ in quantizer.named_parameters()}


def test_the_packed_result_is_the_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "Top1", lambda: _says(0.2, 0.8, 0.1))
    recipe = {
        "model": "resnet8_cifar_tern",
        "dataset": "digits",
        "max_train_samples": 64,
        "max_eval_samples": 16,
        "padding": 1,
        "max_steps": 3,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "per_device_train_batch_size": 16,
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "disable_tqdm": True,
        "load_best_model_at_end": True,
        **EACH_STEP,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    words = parse([str(tmp_path / "recipe.yaml")], *ARGUMENTS)
    fit(*words)
    packed = load_file(tmp_path / "out" / "model.safetensors")
    found = {}
    for step in (2, 3):
        start = find_start(words[0])
        model = build_model(words[0], start, num_classes=10, in_chans=1, data_cfg={})
        file = tmp_path / "out" / f"checkpoint-{step}" / "model.safetensors"
        model.load_state_dict(load_file(file))
        state = pack_(model).state_dict()
        assert state.keys() == packed.keys()
        found[step] = all(torch.equal(value, packed[name]) for name, value in state.items())
    assert found == {2: True, 3: False}
