"""Two real processes with two workers each: every image of a stream once, none twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from streams import numbered
from torch import Tensor, nn
from trainer_models import arguments
from two_processes import TwoProcesses

from timm_ternary.data.datasets.in_memory import collate
from timm_ternary.training.image_trainer import ImageTrainer

pytestmark = pytest.mark.multi_process


class Levels(nn.Module):
    """The image's grey level, as one of 16 classes, of which it sees only the even ones."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        level = x.flatten().long() // 2 * 2
        return self.scale * nn.functional.one_hot(level, 16)


def _trainer(output: Path, count: int) -> ImageTrainer:
    return ImageTrainer(
        Levels(),
        arguments(
            output,
            max_steps=3,
            per_device_train_batch_size=3,
            per_device_eval_batch_size=2,
            dataloader_num_workers=2,
            ddp_backend="gloo",
        ),
        train_dataset=numbered(count, endless=True),
        eval_dataset=numbered(count),
        data_collator=collate,
    )


def _levels(batch: Any) -> list[int]:
    return [int(level) for level in batch["pixel_values"].flatten()]


def child(output: Path) -> dict[int, Any]:
    """What each of two processes finds, by the number of images."""
    results = {}
    for count in (13, 14):
        run = _trainer(output, count)
        assert run.accelerator.num_processes == 2
        loader = iter(run.get_train_dataloader())
        train = [_levels(next(loader)) for _ in range(4)]
        predicted = run.predict(run.eval_dataset)
        results[count] = {
            "train": train,
            "predicted": predicted.predictions.argmax(1).tolist(),
            "accuracy": run.evaluate()["eval_accuracy"],
        }
    return results


@pytest.mark.parametrize("count", [13, 14])
def test_two_processes_see_every_image_once(two_processes: TwoProcesses, count: int) -> None:
    first, second = (rank[count] for rank in two_processes.found)
    # Pass 0 is 0, 1, 2, ...; pass 1 begins with image 1.
    order = [*range(count), *range(1, count), 0]
    shared = [level for pair in zip(first["train"], second["train"], strict=True) for level in pair]
    assert [level for levels in shared for level in levels] == order[:24]
    for rank in (first, second):
        assert rank["predicted"] == [level // 2 * 2 for level in range(count)]
        # Labels are level % 3.
        hits = sum(level // 2 * 2 == level % 3 for level in range(count))
        assert rank["accuracy"] == pytest.approx(hits / count)
