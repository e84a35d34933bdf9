"""A run goes on with another number of processes, as if it had never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainer_models import losses, small_net, trainer
from two_processes import RESUMES, RESUMING, TwoProcesses

pytestmark = RESUMING

METHODS = ("tga", "ttq")
"""Alternate and joint updates."""
STOP = 3
"""Optimizer steps before the stop: in the middle of the first of two epochs."""


def _run(output: Path, method: str, processes: int, start: Path | None = None) -> dict[str, Any]:
    """Train by steps of two micro-batches, of one process or of two."""
    run = trainer(
        output,
        small_net(method, norm=nn.GroupNorm, dropout=0.0),
        gradient_accumulation_steps=2 // processes,
        save_strategy="steps",
        save_steps=STOP,
        ddp_backend="gloo" if processes == 2 else None,
    )
    # A launcher that quietly starts one process would prove nothing.
    assert run.accelerator.num_processes == processes
    run.train(resume_from_checkpoint=None if start is None else str(start / f"checkpoint-{STOP}"))
    return {"state": run.model.state_dict(), "losses": losses(run)}


def prepare(output: Path) -> None:
    """What one process finds that is never stopped; its checkpoints are the two's starts."""
    whole = {method: _run(output / "one" / method, method, processes=1) for method in METHODS}
    torch.save(whole, output / "one.pt")


def child(output: Path) -> dict[str, Any]:
    """What each of two processes finds, by method."""
    if not RESUMES:
        return {}
    return {
        method: _run(output / "two" / method, method, 2, start=output / "one" / method)
        for method in METHODS
    }


def test_the_number_of_processes_may_change(tmp_path: Path, two_processes: TwoProcesses) -> None:
    output, more = two_processes
    whole = torch.load(output / "one.pt", weights_only=True)
    for method in METHODS:
        # From two to one: the checkpoints that those two have written.
        last = output / "two" / method / "checkpoint-6"
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in last.iterdir()}
        shutil.copytree(last, tmp_path / "two" / method / f"checkpoint-{STOP}")
        fewer = _run(tmp_path / "fewer" / method, method, 1, start=tmp_path / "two" / method)
        for found in (more[0][method], more[1][method], fewer):
            assert len(found["losses"]) == len(whole[method]["losses"]) == 10
            assert found["losses"] == pytest.approx(whole[method]["losses"], rel=1e-6)
            for name, value in found["state"].items():
                assert torch.equal(value, whole[method]["state"][name]), f"{method}: {name}"
