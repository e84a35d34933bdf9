"""What is counted when nobody says what to count, and what is best by default."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainer_models import CLASSES, Images, arguments, small_net, trainer
from transformers import AutoConfig, EvalPrediction, Trainer
from transformers.models.timm_wrapper import TimmWrapperForImageClassification

from timm_ternary.nn.convert import ternarize_
from timm_ternary.training.metrics import Accuracy, Top1, names_one_class, predicted_class
from timm_ternary.training.trainer import TernaryTrainer

EACH_STEP: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"}
BEST = {**EACH_STEP, "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}


class Several(Images):
    """Images of which each has none, one or several classes."""

    def __init__(self, count: int = 24, seed: int = 1) -> None:
        super().__init__(count, seed)
        generator = torch.Generator().manual_seed(seed)
        self.labels = (torch.rand(count, CLASSES, generator=generator) > 0.5).float()
        self.labels[0] = 1.0


def _bce(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels)


def _several(output: Path, *, loss: Any = _bce, **options: Any) -> TernaryTrainer:
    extra = {k: options.pop(k) for k in ("compute_metrics", "callbacks") if k in options}
    args = arguments(output, **{"max_steps": 3, **options})
    return TernaryTrainer(
        small_net(),
        args,
        train_dataset=Several(),
        eval_dataset=Several(10, seed=2),
        compute_loss_func=loss,
        **extra,
    )


def _wrapper(problem: str | None) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "timm_wrapper",
        architecture="test_resnet",
        num_labels=CLASSES,
        problem_type=problem,
    )
    return ternarize_(TimmWrapperForImageClassification(config))


@pytest.mark.parametrize("found", ["logits", "classes"])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_top1_of_one_class_an_image(found: str, kind: Any) -> None:
    logits = np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [0.5, 0.4]], dtype=np.float32)
    labels = np.array([1, 0, 0, 1])
    given = logits if found == "logits" else logits.argmax(1)
    assert Top1()(EvalPrediction(kind(given), kind(labels))) == {"accuracy": 0.5}
    assert Top1()(EvalPrediction((kind(given), kind(logits)), kind(labels))) == {"accuracy": 0.5}
    passed_over = np.where(labels == 0, labels, -100)
    assert Top1()(EvalPrediction(kind(given), kind(passed_over))) == {"accuracy": 0.5}
    rows = np.array([[0.0, 1.0], [0.7, 0.3], [1.0, 0.0], [0.2, 0.8]])
    assert Top1()(EvalPrediction(kind(given), kind(rows))) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    "found, labels",
    [
        (np.zeros((3, 4)), np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])),  # multi-label
        (np.zeros(3, int), np.array([[1, 0.0], [1, 1], [0, 1]])),
        (np.zeros((3, 1)), np.zeros(3)),  # a number
        (np.zeros((3, 1)), np.array([0, 1, 0])),  # one logit for two classes
        (np.zeros(3), np.array([0, 1, 0])),
        (np.zeros((3, 2)), np.zeros((3, 1))),
        (np.zeros((3, 2, 4, 4)), np.zeros((3, 4, 4), int)),  # a map
        (np.zeros((3, 2)), (np.zeros(3, int), np.zeros(3, int))),  # two tasks
        ((np.zeros((3, 2)),), {"a": np.zeros(3, int)}),
        (np.zeros((4, 2)), np.zeros(3, int)),
        (np.zeros((0, 2)), np.zeros(0, int)),
        ((), np.zeros(3, int)),
    ],
)
def test_what_has_no_top1_reports_none(found: Any, labels: Any) -> None:
    assert Top1()(EvalPrediction(found, labels)) == {}
    counted = Accuracy()
    as_tensors = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in (found, labels)]
    counted.add(*as_tensors)
    assert not counted.take(_Alone())
    if isinstance(labels, np.ndarray):
        predicted_class(*as_tensors)


class _Alone:
    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        return value


def test_rows_of_one_class() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.3, 0.7], [1.0, 1.0], [0.0, 0.0], [1.5, -0.5]])
    assert names_one_class(rows).tolist() == [True, True, False, False, False]
    assert names_one_class(rows.bfloat16())[1] and names_one_class(rows[:, 0]) is None


def test_a_window_without_accuracy_is_the_last_with_any() -> None:
    counted, labels = Accuracy(), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    counted.add(torch.eye(2), labels[:1].expand(2, 2))
    assert counted.take(_Alone()) == 0.5
    counted.add(torch.eye(2), labels)
    assert counted.take(_Alone()) is None
    # By chance of one class each: the task is what it was.
    counted.add(torch.eye(2), labels[:1].expand(2, 2))
    assert counted.take(_Alone()) is None


@pytest.mark.parametrize(
    "options", [{}, {"batch_eval_metrics": True, "per_device_eval_batch_size": 4}]
)
@pytest.mark.parametrize("concat", [True, False])
def test_however_evaluation_gathers_it(tmp_path: Path, options: Any, concat: bool) -> None:
    run = trainer(tmp_path, max_steps=1, eval_do_concat_batches=concat, **options)
    data = run.eval_dataset
    with torch.no_grad():
        hits = run.model.eval()(data.pixels).argmax(1) == data.labels
    for _ in range(2):
        assert run.evaluate()["eval_accuracy"] == pytest.approx(hits.double().mean().item())
    assert run.predict(data).metrics["test_accuracy"] == run.evaluate()["eval_accuracy"]


def test_several_labels_an_image_train_and_evaluate(tmp_path: Path) -> None:
    run = _several(tmp_path, **EACH_STEP)
    run.train()
    found = run.evaluate()
    assert "eval_loss" in found and "eval_accuracy" not in found
    assert not any("accuracy" in name for entry in run.state.log_history for name in entry)
    predicted = run.predict(run.eval_dataset)
    assert predicted.predictions.shape == (10, CLASSES) and "test_accuracy" not in predicted.metrics


@pytest.mark.parametrize(
    "kind, patience", [("linear", None), ("reduce_lr_on_plateau", 9), ("greedy", 9)]
)
def test_the_best_of_several_labels_is_the_smallest_loss(
    tmp_path: Path, kind: str, patience: int | None
) -> None:
    options: dict[str, Any] = {} if kind == "linear" else {"lr_scheduler_type": kind}
    run = _several(tmp_path, early_stopping_patience=patience, **options, **BEST)
    run.train()
    losses = [e["eval_loss"] for e in run.state.log_history if "eval_loss" in e]
    assert (run.args.metric_for_best_model, run.args.greater_is_better) == ("loss", False)
    assert run.state.best_metric == min(losses) and len(losses) == 3
    if kind != "linear":
        assert run.lr_scheduler.mode == "min" and run.lr_scheduler.best == min(losses)


def test_a_greedy_schedule_and_a_plateau_watch_the_accuracy_grow(tmp_path: Path) -> None:
    for kind in ("greedy", "reduce_lr_on_plateau"):
        args = arguments(tmp_path, lr_scheduler_type=kind, **BEST)
        assert args.lr_scheduler_kwargs["mode"] == "max"
        args = arguments(
            tmp_path, lr_scheduler_type=kind, lr_scheduler_kwargs={"mode": "min"}, **BEST
        )
        assert args.lr_scheduler_kwargs["mode"] == "min"


def test_early_stopping_of_several_labels_counts_the_loss(tmp_path: Path) -> None:
    run = _several(
        tmp_path,
        max_steps=9,
        learning_rate=0.0,
        early_stopping_patience=2,
        threshold_learning_rate=0.0,
        **EACH_STEP,
    )
    for norm in (run.model.first_norm, run.model.second_norm):
        norm.momentum = 0.0
    run.train()
    assert run.state.global_step == 3


@pytest.mark.parametrize("stock", [True, False])
def test_with_metrics_of_ones_own_the_best_is_the_trainers(tmp_path: Path, stock: bool) -> None:
    def metrics(_: EvalPrediction) -> dict[str, float]:
        return {"f1": 0.5}

    kind = _Stock if stock else TernaryTrainer
    run = kind(
        small_net(),
        arguments(tmp_path, max_steps=2, **BEST),
        train_dataset=Images(),
        eval_dataset=Images(10, seed=2),
        compute_metrics=metrics,
    )
    if stock:  # what transformers' own arguments would say
        run.args.metric_for_best_model, run.args.greater_is_better = "loss", False
    run.train()
    assert (run.args.metric_for_best_model, run.args.greater_is_better) == ("loss", False)
    logged = [e["eval_loss"] for e in run.state.log_history if "eval_loss" in e]
    assert run.state.best_metric == min(logged) and "eval_accuracy" not in run.evaluate()


class _Stock(Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        logits = model(inputs["pixel_values"])
        loss = F.cross_entropy(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss


def test_what_the_caller_says_is_best_stays(tmp_path: Path) -> None:
    said = {"metric_for_best_model": "f1", "greater_is_better": False, **BEST}
    for given in ({"compute_metrics": lambda _: {"f1": 1.0}}, {}):
        run = _several(tmp_path, **said, **given)
        assert (run.args.metric_for_best_model, run.args.greater_is_better) == ("f1", False)
    args = arguments(tmp_path, greater_is_better=True, **BEST)
    assert args.settle_best(accuracy=False) and args.greater_is_better is True
    # The same arguments for another Trainer, without metrics of its own.
    assert args.settle_best(accuracy=True) and args.metric_for_best_model == "accuracy"


def test_metrics_set_later_get_logits(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []
    run = trainer(tmp_path, max_steps=1)
    run.compute_metrics = lambda found: seen.append(found.predictions.shape) or {}
    run.evaluate()
    assert seen == [(10, CLASSES)]


@pytest.mark.parametrize("problem", ["multi_label_classification", None])
def test_the_wrapper_of_transformers_with_several_labels(
    tmp_path: Path, problem: str | None
) -> None:
    run = TernaryTrainer(
        _wrapper(problem),
        arguments(tmp_path, max_steps=2, per_device_train_batch_size=8, **BEST),
        train_dataset=Several(),
        eval_dataset=Several(10, seed=2),
    )
    run.train()
    assert run.state.best_metric is not None and run.args.metric_for_best_model == "loss"
    assert not any("accuracy" in name for entry in run.state.log_history for name in entry)


WARNING = "Label smoothing is not compatible with multi-label classification"


@pytest.mark.parametrize("kind", [Trainer, TernaryTrainer])
def test_smoothing_warns_as_the_trainer_does(tmp_path: Path, kind: Any) -> None:
    args = arguments(tmp_path, label_smoothing_factor=0.1, max_steps=1)
    model = _wrapper("multi_label_classification")
    with pytest.warns(UserWarning, match=WARNING):
        run = kind(model, args, train_dataset=Several())
    assert run.label_smoother is None
    run.train()


def test_smoothing_of_a_plain_model_warns_at_the_first_batch(tmp_path: Path) -> None:
    losses = []
    for smoothing in (0.0, 0.2):
        # The loss of this package: without compute_loss_func there is something to smooth.
        run = _several(tmp_path, loss=None, label_smoothing_factor=smoothing, learning_rate=0.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run.train()
        assert any(WARNING in str(w.message) for w in caught) == (smoothing > 0)
        losses.append([e["loss"] for e in run.state.log_history if "loss" in e])
    assert losses[0] == losses[1]


def test_smoothing_of_one_class_an_image_goes_on(tmp_path: Path) -> None:
    model = small_net()
    model.num_classes = CLASSES
    run = trainer(tmp_path, model, max_steps=1, label_smoothing_factor=0.1, mixup=0.2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=WARNING)
        run.train()
    assert run._smoothing == 0.1


def test_cross_entropy_of_several_labels_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _several(tmp_path).train()
        trainer(tmp_path, max_steps=1).train()
        assert "multi-label" not in caplog.text
        _several(tmp_path, loss=None).train()
    (line,) = [r.getMessage() for r in caplog.records if "multi-label" in r.getMessage()]
    assert "compute_loss_func" in line and "\n" not in line
