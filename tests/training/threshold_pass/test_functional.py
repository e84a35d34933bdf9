"""The pass of the thresholds on a random part of each batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from trainer_models import (
    Images,
    arguments,
    assert_same_state,
    losses,
    small_net,
    trainer,
)

from timm_ternary.training.threshold_pass.functional import random_part
from timm_ternary.training.trainer import TernaryTrainer


def batch(n: int) -> dict[str, object]:
    """Each entry of an image says which image it is of."""
    number = torch.arange(n)
    return {
        "pixel_values": number.view(n, 1, 1, 1).expand(n, 3, 2, 2).float(),
        "labels": {"hard": number, "soft": number[:, None].repeat(1, 5)},
        "teacher_logits": number[:, None].repeat(1, 4),
        "rate": torch.tensor(3.0),
        "table": torch.arange(n + 1),
    }


@pytest.mark.parametrize(
    ("n", "fraction", "size"),
    [(32, 0.25, 8), (10, 0.5, 5), (10, 0.01, 2), (2, 0.1, 2), (1, 0.5, 1)],
)
def test_a_part_holds_the_same_images_in_every_entry(n: int, fraction: float, size: int) -> None:
    whole = batch(n)
    part, kept = random_part(whole, fraction, (3, 5, 7))
    index = part["labels"]["hard"]
    assert kept == size / n and len(index) == size
    assert torch.equal(index, index.unique())  # in order, none twice
    for value in (part["pixel_values"], part["labels"]["soft"], part["teacher_logits"]):
        assert torch.equal(value.flatten(1)[:, 0].long(), index)
    assert part["rate"] is whole["rate"] and part["table"] is whole["table"]
    assert len(whole["labels"]["hard"]) == n  # type: ignore[index]


def test_the_whole_batch_is_the_batch_itself() -> None:
    whole = batch(4)
    assert random_part(whole, 1.0, (0,))[0] is whole


def test_the_key_alone_decides_which_images() -> None:
    def chosen(*key: int) -> list[int]:
        return random_part(batch(32), 0.25, key)[0]["labels"]["hard"].tolist()

    first = chosen(3, 5, 7)
    torch.manual_seed(99)
    assert chosen(3, 5, 7) == first
    assert all(chosen(*key) != first for key in ((4, 5, 7), (3, 6, 7), (3, 5, 8), (-3, 5, 7)))
    often = torch.zeros(32)
    for step in range(400):
        often[chosen(0, step, 0)] += 1
    assert 60 < often.min() and often.max() < 140  # 100 each, standard deviation 8.7


def test_the_pass_sees_the_part_and_the_weights_see_all(tmp_path: Path) -> None:
    model = small_net(dropout=0.0)
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    options = {"num_train_epochs": 1, "gradient_accumulation_steps": 2}
    trainer(tmp_path, model, threshold_fraction=0.5, **options).train()
    assert [len(images) for images in seen] == [2, 2, 4, 4] * 5
    for step in range(5):
        small, large = seen[4 * step : 4 * step + 2], seen[4 * step + 2 : 4 * step + 4]
        for part, whole in zip(small, large, strict=True):
            found = [any(torch.equal(image, other) for other in whole) for image in part]
            assert found == [True, True]


def test_rate_zero_leaves_the_weights_pass_as_it_is(tmp_path: Path) -> None:
    def trained(fraction: float) -> TernaryTrainer:
        run = trainer(tmp_path, threshold_learning_rate=0.0, threshold_fraction=fraction)
        run.train()
        return run

    whole, part = trained(1.0), trained(0.5)
    assert losses(whole) == losses(part)
    assert_same_state(whole.model, part.model)


def test_resume_draws_the_same_images(tmp_path: Path) -> None:
    options = {"threshold_fraction": 0.5, "save_strategy": "steps", "save_steps": 7}
    options |= {"gradient_accumulation_steps": 2}
    whole = trainer(tmp_path / "a", **options)
    whole.train()
    resumed = trainer(tmp_path / "b", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-7"))
    assert_same_state(resumed.model, whole.model)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_gradient_is_that_of_the_mean_over_the_part(tmp_path: Path, accumulation: int) -> None:
    def summed(logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: int) -> torch.Tensor:
        return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch

    def averaged(logits: torch.Tensor, labels: torch.Tensor, **_: int) -> torch.Tensor:
        return F.cross_entropy(logits, labels) / accumulation

    data = Images(16)
    parts = torch.arange(16).chunk(accumulation)
    batches = [{"pixel_values": data.pixels[i], "labels": data.labels[i]} for i in parts]
    norms = []
    for function in (None, summed, averaged):
        run = TernaryTrainer(
            small_net(dropout=0.0),
            arguments(tmp_path, threshold_fraction=0.5),
            train_dataset=data,
            compute_loss_func=function,
        )
        run.create_optimizer()
        norms.append(run.update_thresholds(batches, 16 if function else None))
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4) and norms[0] > 0
