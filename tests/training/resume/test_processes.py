"""Several processes resume from the same checkpoint, or end with the same line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from trainer_models import small_net, trainer
from transformers import TrainerCallback
from two_processes import RESUMES, RESUMING, TwoProcesses

from timm_ternary.training.resume.record import damage

pytestmark = RESUMING


class _Begin(TrainerCallback):
    """Where a training begins."""

    step: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step


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
    begin = _Begin()
    run.add_callback(begin)
    run.train(resume_from_checkpoint=True)
    found: dict[str, Any] = {"began": begin.step, "ended": run.state.global_step}
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
    for rank in (first, second):
        assert (rank["began"], rank["ended"]) == (2, 5)
    assert damage(output / "checkpoint-4") is None  # written again
