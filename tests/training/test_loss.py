"""The loss of a batch as a function of its arguments alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from trainer_models import small_net

from timm_ternary import quantizers
from timm_ternary.nn.convert import quantizers_of
from timm_ternary.training.distill import distillation_loss
from timm_ternary.training.loss import label_loss, penalty, task_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]])
LABELS = torch.tensor([0, 1])


def test_labels_are_classes_or_probabilities() -> None:
    hard = label_loss(LOGITS, LABELS)
    log = LOGITS.log_softmax(1)
    torch.testing.assert_close(hard, -(log[0, 0] + log[1, 1]) / 2)
    soft = F.one_hot(LABELS, 3).double()
    torch.testing.assert_close(label_loss(LOGITS, soft), hard)
    smoothed = label_loss(LOGITS, LABELS, 0.3)
    torch.testing.assert_close(smoothed, 0.7 * hard - 0.3 * log.mean())
    torch.testing.assert_close(label_loss(LOGITS, 0.7 * soft + 0.1), smoothed)


def test_a_teacher_takes_its_share() -> None:
    teacher = LOGITS.flip(1)
    own = label_loss(LOGITS, LABELS, 0.1)
    soft = distillation_loss(LOGITS, teacher, 2.0)
    options = {"smoothing": 0.1, "alpha": 0.25, "temperature": 2.0}
    torch.testing.assert_close(
        task_loss(LOGITS, LABELS, teacher, **options), 0.25 * own + 0.75 * soft
    )
    torch.testing.assert_close(
        task_loss(LOGITS, LABELS, teacher, share=0.5, **options), 0.25 * own + 0.375 * soft
    )
    assert torch.equal(task_loss(LOGITS, LABELS, **options), own)  # without one, alpha is nothing


def test_a_loss_that_is_given_replaces_that_of_the_labels() -> None:
    given = torch.tensor(5.0)
    assert task_loss(LOGITS, None, given=given) is given
    with pytest.raises(ValueError, match="needs labels beside pixel_values"):
        task_loss(LOGITS, None)


def test_penalties_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_net("tga")
    layers = [model.get_submodule(name) for name in quantizers_of(model)]
    assert penalty(layers) is None
    assert penalty([]) is None
    monkeypatch.setattr(quantizers.get("tga"), "penalty", lambda self, weight: weight.sum())
    expected = sum(layer.parametrizations.weight.original.sum() for layer in layers)
    torch.testing.assert_close(penalty(layers), expected)
