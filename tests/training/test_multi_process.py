"""Two real processes train as one process with two micro-batches does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainer_models import CLASSES, losses, small_net, trainer
from two_processes import RESUMES, TwoProcesses

pytestmark = pytest.mark.multi_process

METHODS = ("tga", "ttq", "tga, mixed and averaged")
"""Alternate and joint updates; mixup and a moving average."""
"""transformers 5.17 cannot load an optimizer in several processes on the CPU ("cpu:0")."""


def _run(output: Path, method: str, accumulation: int, resume: bool) -> dict[str, Any]:
    """Train a model without statistics of its own: those of batch norm differ by process."""
    name, *more = method.split(", ")
    model = small_net(name, norm=nn.GroupNorm, dropout=0.0)
    model.num_classes = CLASSES
    extra = {"mixup": 0.5, "cutmix": 1.0, "ema_decay": 0.8} if more else {}
    run = trainer(
        output,
        model,
        gradient_accumulation_steps=accumulation,
        save_strategy="no" if resume else "steps",
        save_steps=3,
        ddp_backend="gloo" if accumulation == 1 else None,
        **extra,
    )
    run.train(resume_from_checkpoint=str(output / "checkpoint-3") if resume else None)
    return {
        "world": run.accelerator.num_processes,
        "state": model.state_dict(),
        "losses": losses(run),
        "log": run.state.log_history[-2],
        "metrics": run.evaluate(),
    }


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one_with_two_batches(
    tmp_path: Path, two_processes: TwoProcesses, method: str
) -> None:
    one = _run(tmp_path, method, accumulation=2, resume=False)
    assert one["world"] == 1
    both = [rank[method] for rank in two_processes.found]
    for rank in both:
        assert rank["world"] == 2
        assert rank["state"].keys() == one["state"].keys()
        for name, value in rank["state"].items():
            assert torch.equal(value, one["state"][name]), name
            assert torch.equal(value, both[0]["state"][name])
            assert not RESUMES or torch.equal(value, rank["resumed"][name]), f"resume: {name}"
    first, log = both[0], one["log"]
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-6)
    for key in ("accuracy", "zeros", "threshold_learning_rate"):
        assert first["log"][key] == pytest.approx(log[key]), key
    assert ("threshold_grad_norm" in log) == method.startswith("tga")
    if method.startswith("tga"):
        assert first["log"]["threshold_grad_norm"] == pytest.approx(log["threshold_grad_norm"])
    assert first["metrics"]["eval_accuracy"] == one["metrics"]["eval_accuracy"]


def child(output: Path) -> dict[str, Any]:
    """What each of two processes finds, by method."""
    results = {}
    for method in METHODS:
        result = _run(output / method, method, accumulation=1, resume=False)
        # A launcher that quietly starts one process would prove nothing.
        assert torch.distributed.get_world_size() == result["world"] == 2
        if RESUMES:
            result["resumed"] = _run(output / method, method, accumulation=1, resume=True)["state"]
        results[method] = result
    return results
