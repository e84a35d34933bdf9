"""Loss scaling, as float16 trains with: it changes neither pass, and an overflow skips both."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from trainer_models import (
    Images,
    arguments,
    assert_same_state,
    losses,
    small_net,
)
from transformers import TrainerCallback

from timm_ternary.training.trainer import TernaryTrainer


class _States(TrainerCallback):
    """What the model holds before the first step and after each."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.states.append({n: p.detach().clone() for n, p in model.named_parameters()})

    on_step_end = on_train_begin


def _run(path: Path, method: str, scale: float | None, **options: Any) -> tuple[Any, _States]:
    """A run whose losses are scaled on the CPU, where accelerate does it for no type."""
    states = _States()
    # Clipping is off: accelerate would not scale the gradients back before it.
    fields = {"num_train_epochs": 1, "max_grad_norm": 0.0, **options.pop("fields", {})}
    args = arguments(path, **fields)
    run = TernaryTrainer(
        small_net(method), args, train_dataset=Images(), callbacks=[states], **options
    )
    if scale is not None:
        run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    run.train()
    return run, states


@pytest.mark.parametrize("method", ["tga", "ttq"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_scaling_changes_nothing(tmp_path: Path, method: str, accumulation: int) -> None:
    fields = {"gradient_accumulation_steps": accumulation}
    plain, _ = _run(tmp_path, method, None, fields=fields)
    scaled, _ = _run(tmp_path, method, 1024.0, fields=fields)  # a power of two: no rounding
    assert losses(scaled) == losses(plain)
    assert_same_state(scaled.model, plain.model)
    assert scaled.accelerator.scaler.get_scale() == 1024.0


@pytest.mark.parametrize("method, passes", [("tga", 2), ("ttq", 1)])
def test_an_overflow_skips_thresholds_and_weights(tmp_path: Path, method: str, passes: int) -> None:
    calls = 0

    def large(logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        # Finite, and times 1024 more than float32 holds, in the passes of the second step.
        factor = 1e37 if (calls - 1) // passes == 1 else 1.0
        return factor * F.cross_entropy(logits, labels)

    run, record = _run(tmp_path, method, 1024.0, compute_loss_func=large)
    assert run.accelerator.scaler.get_scale() == 512.0
    for step, (before, after) in enumerate(itertools.pairwise(record.states)):
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert any(".weight.0." in name for name in moved) == (step != 1)
        assert any(name.endswith("weight.original") for name in moved) == (step != 1)
    assert len(record.states) == 11 and calls == 10 * passes
