"""A small model, small images and quick arguments, for the tests of the Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import Trainer

from timm_ternary.config import TernaryConfig
from timm_ternary.nn.convert import ternarize_
from timm_ternary.training.arguments.trainer import TernaryTrainingArguments
from timm_ternary.training.trainer import TernaryTrainer

CLASSES = 3


class SmallNet(nn.Module):
    """As timm's models: images in, logits out. Both parameter rules know its norms by name."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d, dropout: float = 0.3) -> None:
        super().__init__()
        groups = (2,) if norm is nn.GroupNorm else ()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.first_norm = norm(*groups, 4)
        self.second = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.second_norm = norm(*groups, 6)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first_norm(self.first(x)))
        x = F.relu(self.second_norm(self.second(x))).mean((2, 3))
        return self.head(self.dropout(x))


class Images(Dataset):
    """`count` fixed random images of 8 x 8 pixels, shifted by their class."""

    def __init__(self, count: int = 40, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, CLASSES, (count,), generator=generator)
        self.pixels = torch.randn(count, 3, 8, 8, generator=generator)
        self.pixels += self.labels[:, None, None, None] * 0.3

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


class StockTrainer(Trainer):
    """transformers' Trainer, told no more than how a model without `labels` gives a loss."""

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any
    ) -> Any:
        logits = model(inputs["pixel_values"])
        loss = F.cross_entropy(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss


def small_net(ternary: Any = "tga", **options: Any) -> SmallNet:
    """A SmallNet with the same weights each time; float where `ternary` is None."""
    torch.manual_seed(0)
    model = SmallNet(**options)
    return model if ternary is None else ternarize_(model, TernaryConfig.of(ternary))


def arguments(output: Path | str, **options: Any) -> TernaryTrainingArguments:
    """Two epochs on the CPU with a log at each step, unless `options` say otherwise."""
    quick: dict[str, Any] = {
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "weight_decay": 0.01,
        "optimizer": "sgd",
        "momentum": 0.9,
        "seed": 3,
        **options,
    }
    return TernaryTrainingArguments(str(output), **quick)


def trainer(output: Path, model: nn.Module | None = None, **options: Any) -> TernaryTrainer:
    """A TernaryTrainer on 40 images; `options` are arguments of the training."""
    data = options.pop("train_dataset", None) or Images()
    return TernaryTrainer(
        small_net() if model is None else model,
        arguments(output, **options),
        train_dataset=data,
        eval_dataset=Images(10, seed=2),
    )


def losses(finished: Trainer) -> list[float]:
    """The logged training losses, one a step."""
    return [entry["loss"] for entry in finished.state.log_history if "loss" in entry]


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    """Weights, thresholds and buffers are the same bits."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
