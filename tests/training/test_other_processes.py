"""A run goes on with another number of processes, as if it had never stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from trainer_models import losses, small_net, trainer

pytestmark = [
    pytest.mark.multi_process,
    pytest.mark.skipif(
        Version(transformers.__version__) < Version("5.23"),
        reason="transformers 5.17 cannot load an optimizer in several processes on the CPU",
    ),
]

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


def _in_two_processes(output: Path, start: Path | None = None) -> list[dict[str, Any]]:
    """What each of two processes found, by method."""
    output.mkdir(exist_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [str(output), *([] if start is None else [str(start)])]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*torchrun, __file__, *words], env=environment, check=True, timeout=300)
    return [torch.load(output / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_the_number_of_processes_may_change(tmp_path: Path) -> None:
    whole = {method: _run(tmp_path / method, method, processes=1) for method in METHODS}
    # From one process to two: the checkpoints of the run above.
    more = _in_two_processes(tmp_path / "more", start=tmp_path)
    # From two to one: the checkpoints that those two have written.
    for method in METHODS:
        files = {p.name for p in (tmp_path / "more" / method / "checkpoint-6").iterdir()}
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= files
        (tmp_path / "more" / method / "checkpoint-6").rename(
            tmp_path / "more" / method / f"checkpoint-{STOP}"
        )
        fewer = _run(tmp_path / "fewer" / method, method, 1, start=tmp_path / "more" / method)
        for found in (more[0][method], more[1][method], fewer):
            assert len(found["losses"]) == len(whole[method]["losses"]) == 10
            assert found["losses"] == pytest.approx(whole[method]["losses"], rel=1e-6)
            for name, value in found["state"].items():
                assert torch.equal(value, whole[method]["state"][name]), f"{method}: {name}"


def _child(output: Path, start: Path | None) -> None:
    results = {}
    for method in METHODS:
        results[method] = _run(
            output / method, method, 2, start=None if start is None else start / method
        )
    torch.save(results, output / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _child(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
