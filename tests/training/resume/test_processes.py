"""Several processes resume from the same checkpoint, or end with the same line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from trainer_models import small_net, trainer
from two_processes import TwoProcesses

RESUMES = Version(transformers.__version__) >= Version("5.23")

pytestmark = [
    pytest.mark.multi_process,
    pytest.mark.skipif(
        not RESUMES,
        reason="transformers 5.17 cannot load an optimizer in several processes on the CPU",
    ),
]


def child(output: Path) -> dict[str, Any]:
    """The newest checkpoint is torn, by the random numbers of the second process."""
    if not RESUMES:
        return {}
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "ddp_backend": "gloo"}
    trainer(output, **options).train()
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        path = output / "checkpoint-4" / "rng_state_1.pth"
        path.write_bytes(path.read_bytes()[:-10])
    run = trainer(output, **options | {"max_steps": 5})
    run.train(resume_from_checkpoint=True)
    found = {"good": run.health.last_good, "steps": len(run.state.log_history)}
    other = trainer(output, small_net("ttq"), **options)
    try:
        other.train(resume_from_checkpoint=True)
    except ValueError as error:
        found["refusal"] = str(error)
    return found


def test_the_first_process_decides_for_both(two_processes: TwoProcesses) -> None:
    output, (first, second) = two_processes
    assert first["refusal"] == second["refusal"]
    assert "method is 'tga' there, 'ttq' here" in first["refusal"]
    # From step 2, since 4 was torn: the log goes on from there, without a gap.
    assert first["steps"] == second["steps"] == 6  # five steps, and the end
    assert first["good"] == second["good"] == str(output / "checkpoint-4")
