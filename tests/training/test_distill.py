"""Distillation: the loss, the frozen teacher, and where it has no say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.task.distillation import DistillationTeacher, LogitDistillationTask
from torch import nn
from torch.nn import functional as F
from trainer_models import (
    Images,
    arguments,
    assert_same_state,
    losses,
    small_net,
    trainer,
)

from timm_ternary.checkpoint.directory import save_float
from timm_ternary.training import distill
from timm_ternary.training.distill import Teacher, distillation_loss, load_teacher


def teacher_net() -> nn.Module:
    """Another float SmallNet, far from the student."""
    model = small_net(None, dropout=0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The model that every name of a teacher stands for."""
    model = teacher_net()
    monkeypatch.setattr(distill, "load_model", lambda *_, **__: model)
    return model


def test_value_is_that_of_the_formula() -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64).float()
    p, q = ((x / 3).softmax(-1) for x in (teacher, student))
    expected = 9 * (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, 3.0), expected)
    assert distillation_loss(student, student, 3.0) == pytest.approx(0, abs=1e-6)


def test_the_whole_loss_equals_timms_task(tmp_path: Path, known: nn.Module) -> None:
    options = {"distill_alpha": 0.3, "distill_temperature": 2.0, "label_smoothing_factor": 0.1}
    run = trainer(tmp_path, small_net(dropout=0.0), teacher="x", **options)
    data = Images(6)
    run.model.pretrained_cfg = known.pretrained_cfg = {"mean": (0.5,) * 3, "std": (1.0,) * 3}
    task = LogitDistillationTask(
        run.model,
        DistillationTeacher(known),
        criterion=nn.CrossEntropyLoss(label_smoothing=0.1),
        task_loss_weight=0.3,
        temperature=2.0,
    )
    expected = task.train()(data.pixels, data.labels)["loss"]
    batch = {"pixel_values": data.pixels, "labels": data.labels}
    torch.testing.assert_close(run.compute_loss(run.model.train(), batch), expected)
    assert set(batch) == {"pixel_values", "labels"}


def test_probabilities_as_labels(tmp_path: Path, known: nn.Module) -> None:
    run = trainer(tmp_path, small_net(dropout=0.0), teacher="x", distill_alpha=0.3)
    data = Images(6)
    hard = {"pixel_values": data.pixels, "labels": data.labels}
    soft = {"pixel_values": data.pixels, "labels": F.one_hot(data.labels, 3).float()}
    model = run.model.train()
    torch.testing.assert_close(run.compute_loss(model, soft), run.compute_loss(model, hard))


def test_both_passes_learn_from_the_teacher(tmp_path: Path, known: nn.Module) -> None:
    before = {name: value.clone() for name, value in known.state_dict().items()}
    calls: list[int] = []
    known.register_forward_hook(lambda *_: calls.append(1))
    options = {"max_steps": 1, "gradient_accumulation_steps": 2}
    alone = trainer(tmp_path, **options)
    alone.train()
    # Weights stand still: what moves the thresholds is the first pass.
    still = {**options, "learning_rate": 0.0, "weight_decay": 0.0, "threshold_learning_rate": 0.05}
    pairs = []
    for extra in ({}, {"teacher": "x", "distill_alpha": 0.2}):
        run = trainer(tmp_path, **still, **extra)
        run.train()
        pairs.append([v for n, v in run.model.named_parameters() if n.endswith("threshold")])
    # The head's; batch norm undoes what the thresholds before it scale.
    assert not torch.equal(pairs[0][-1], pairs[1][-1])
    assert len(calls) == 2  # two micro-batches, each of which the student sees twice
    moved = {**options, "threshold_learning_rate": 0.0}
    taught = trainer(tmp_path, teacher="x", distill_alpha=0.2, **moved)
    taught.train()
    untaught = trainer(tmp_path, **moved)
    untaught.train()
    assert losses(taught) != losses(untaught)
    assert not torch.equal(taught.model.head.bias, untaught.model.head.bias)
    assert all(torch.equal(value, before[name]) for name, value in known.state_dict().items())
    assert not known.training and not any(p.requires_grad for p in known.parameters())


def test_alpha_one_is_no_teacher(tmp_path: Path, known: nn.Module) -> None:
    taught = trainer(tmp_path, teacher="x", distill_alpha=1.0)
    taught.train()
    alone = trainer(tmp_path)
    alone.train()
    assert losses(taught) == losses(alone)
    assert_same_state(taught.model, alone.model)


def test_evaluation_and_files_know_no_teacher(tmp_path: Path, known: nn.Module) -> None:
    one = trainer(tmp_path, teacher="x", distill_alpha=0.0).evaluate()
    assert one["eval_loss"] == trainer(tmp_path).evaluate()["eval_loss"]
    run = trainer(tmp_path, teacher="x", max_steps=1, save_strategy="steps", save_steps=1)
    run.train()
    assert run.model.state_dict().keys() == small_net().state_dict().keys()
    known_ids = {id(p) for p in known.parameters()}
    assert not known_ids & {id(p) for g in run.optimizer.param_groups for p in g["params"]}


def test_a_loss_that_is_told_the_number_of_labels(tmp_path: Path, known: nn.Module) -> None:
    def summed(logits: Any, labels: Any, num_items_in_batch: Any) -> Any:
        return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch

    data = Images(8)
    args = {"teacher": "x", "distill_alpha": 0.4}
    run = trainer(tmp_path, small_net(dropout=0.0, norm=nn.GroupNorm), **args)
    told = trainer(tmp_path, small_net(dropout=0.0, norm=nn.GroupNorm), **args)
    told.compute_loss_func = summed
    halves = [
        {"pixel_values": data.pixels[part], "labels": data.labels[part]}
        for part in (slice(0, 4), slice(4, 8))
    ]
    whole = {"pixel_values": data.pixels, "labels": data.labels}
    parts = [told.compute_loss(told.model.train(), h, num_items_in_batch=8) for h in halves]
    torch.testing.assert_close(sum(parts), run.compute_loss(run.model.train(), whole))


def test_images_are_normalized_as_the_teacher_knows_them() -> None:
    model = nn.Flatten()
    model.pretrained_cfg = {"mean": (0.5,), "std": (0.25,)}
    teacher = Teacher(model, {"mean": (0.1,), "std": (0.2,)}, torch.device("cpu"))
    pixels = torch.rand(2, 1, 2, 2)
    seen = teacher((pixels - 0.1) / 0.2)
    torch.testing.assert_close(seen, ((pixels - 0.5) / 0.25).flatten(1))


def _directory(path: Path, names: list[str]) -> Path:
    model = timm.create_model("resnet8_cifar", num_classes=len(names), in_chans=1)
    model.pretrained_cfg = {**dict(model.pretrained_cfg), "label_names": names}
    model.pretrained_cfg |= {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.3,)}
    save_float(model, path)
    return path


@pytest.mark.parametrize(
    "names, message",
    [
        (["a", "b", "c"], "has 3 classes, but the student has 2"),
        (["a", "x"], "class 1 of teacher .* is 'x', but of the student 'b'"),
    ],
)
def test_other_classes_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    student = timm.create_model("resnet8_cifar", num_classes=2, in_chans=1)
    student.pretrained_cfg = {**dict(student.pretrained_cfg), "label_names": ["a", "b"]}
    student.pretrained_cfg |= {"input_size": (1, 8, 8), "mean": (0.4,), "std": (0.2,)}
    directory = _directory(tmp_path / "t", names)
    with pytest.raises(ValueError, match=message):
        load_teacher(str(directory), student, torch.device("cpu"))
    good = load_teacher(str(_directory(tmp_path / "g", ["a", "b"])), student, torch.device("cpu"))
    assert good(torch.zeros(3, 1, 8, 8)).shape == (3, 2)


def test_a_student_that_does_not_say_its_classes(tmp_path: Path, known: nn.Module) -> None:
    known.head = nn.Linear(6, 7)
    with pytest.raises(ValueError, match="has 7 classes, but the student has 3"):
        trainer(tmp_path, teacher="x").train()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"distill_alpha": 0.2}, "distill_alpha is for a teacher: type --teacher"),
        ({"teacher": "x", "distill_alpha": 1.5}, "between 0 and 1, got 1.5"),
        ({"teacher": "x", "distill_temperature": 0}, "must be positive"),
        ({"teacher": "x", "distill_temperature": "2"}, "distill_temperature must be a finite"),
    ],
)
def test_arguments(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **values)


def test_a_name_without_weights_is_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resnet8_cifar"):
        trainer(tmp_path, teacher="resnet8_cifar")
