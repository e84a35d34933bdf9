"""A run whose loss explodes warns, once, and one that learns does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainer_models import CLASSES, Images, arguments, small_net, trainer

from timm_ternary.training.callbacks.divergence import limit
from timm_ternary.training.trainer import TernaryTrainer


def _net(method: str | None = "tga") -> nn.Module:
    model = small_net(method)
    model.num_classes = CLASSES
    return model


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [m for r in caplog.records if "diverges" in (m := r.getMessage())]


@pytest.mark.parametrize("method", ["tga", "ttq", None])
@pytest.mark.parametrize("options", [{}, {"logging_strategy": "no"}])
def test_a_rate_of_a_million(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, options: dict[str, Any]
) -> None:
    rates = {"learning_rate": 1e6, "threshold_learning_rate": 0.1}
    run = trainer(tmp_path, _net(method), **rates, max_steps=3, **options)
    run.train()
    run.evaluate()
    (line,) = _said(caplog)
    assert line.startswith("the loss is ") and "where guessing gives 1.099" in line
    assert line.endswith("lower --learning_rate (now 1e+06) or --threshold_learning_rate (now 0.1)")


@pytest.mark.parametrize("method", ["tga", "admm"])
def test_a_run_that_learns_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    trainer(tmp_path, _net(method)).train()
    assert not _said(caplog)


def test_a_loss_of_ones_own_is_compared_with_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    factor = [1e3]

    def own(logits: torch.Tensor, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, labels) * factor[0]

    args = arguments(tmp_path, learning_rate=1e-6, max_steps=4)
    run = TernaryTrainer(_net(), args, train_dataset=Images(), compute_loss_func=own)
    run.train()
    assert not _said(caplog)
    run.log({"loss": 1e6})
    assert len(_said(caplog)) == 1 and "where it was" in _said(caplog)[0]


def test_limit() -> None:
    assert limit(math.log(10), math.inf) == pytest.approx(46.05, abs=0.01)
    assert limit(math.log(2), math.inf) == 20
    assert limit(None, math.inf) == math.inf
    assert limit(None, 5.0) == 100
