"""Accuracy with what was taken for what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from timm_ternary.evaluation import accuracy, class_names


def _batches(labels: list[int], guesses: list[int], size: int) -> list[dict[str, torch.Tensor]]:
    logits = torch.nn.functional.one_hot(torch.tensor(guesses), 7).float()
    pairs = zip(logits.split(size), torch.tensor(labels).split(size), strict=True)
    return [{"pixel_values": x, "labels": y} for x, y in pairs]


@pytest.mark.parametrize("size", [1, 2, 6])
def test_the_counts_agree_with_the_accuracy(size: int) -> None:
    labels, guesses = [0, 0, 0, 6, 1, 1], [0, 2, 2, 6, 1, 0]
    found = accuracy(nn.Identity(), _batches(labels, guesses, size))
    assert found.counts == {(0, 0): 1, (0, 2): 2, (6, 6): 1, (1, 1): 1, (1, 0): 1}
    assert found.top1 == 3 / 6 and found.images == 6
    confusion = found.confusion(["a", "b"])
    # Classes that the data have no name for are called by their number.
    assert confusion.names == ("a", "b", "2", "3", "4", "5", "6")
    assert confusion.pairs(1)[0].predicted_name == "2"


def test_names_are_the_data_s_or_else_the_model_s() -> None:
    model = nn.Identity()
    model.pretrained_cfg = {"label_names": ["cat", "dog"]}  # type: ignore[assignment]
    model.num_classes = 2  # type: ignore[assignment]
    assert list(class_names(model, ["x", "y"])) == ["x", "y"]
    assert list(class_names(model, ["0", "1"])) == ["cat", "dog"]
