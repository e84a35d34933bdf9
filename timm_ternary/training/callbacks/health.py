"""What ends a training in one line: values that are not finite, and data that do not suffice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ...nn.state_dict import readable_name
from ..fsdp import whole

__all__ = ["check_ended", "check_finite_model", "check_share", "check_streaming"]


@torch.no_grad()
def check_finite_model(model: nn.Module, step: int, checkpoint: str | None) -> None:
    """Refuse a model that holds NaN or infinite parameters.

    Args:
        model: Its parameters are looked at, all at once.
        step: Optimizer steps taken, for the error.
        checkpoint: The last good checkpoint, for the error; None: there is none.

    Raises:
        ValueError: Names the first parameter, e.g. ``layer1.0.conv1.threshold``.
    """
    named = {n: p.detach() for n, p in model.named_parameters() if p.is_floating_point()}
    # One number, so that the device is waited for once; the Euclidean norm is the fastest there
    # is (ResNet-18 on one core: 6 ms, the largest value 28 ms). It may overflow: look again then.
    # What lies in shards apart from what is whole: torch adds up either, not both.
    kinds: dict[type, list[Tensor]] = {}
    for value in named.values():
        kinds.setdefault(type(value), []).append(value)
    if all(torch.isfinite(whole(get_total_norm(values))) for values in kinds.values()):
        return
    name = next((n for n, p in named.items() if not torch.isfinite(whole(p)).all()), None)
    if name is None:
        return
    resume = (
        f"resume from {checkpoint} with --resume_from_checkpoint"
        if checkpoint
        else "there is no checkpoint to resume from"
    )
    raise ValueError(
        f"{readable_name(name)} is not finite after {step} optimizer steps: "
        f"lower --learning_rate or --threshold_learning_rate; {resume}"
    )


def check_share(images: int, batch: int, processes: int, *, split: bool, drop_last: bool) -> None:
    """Refuse a data set or a batch of which some process would get nothing.

    Args:
        images: Training images.
        batch: Images of a batch, of all processes where `split`, else of one.
        processes: Number of processes.
        split: A batch is divided among the processes (accelerate's ``split_batches``).
        drop_last: The last, incomplete batch is left out.

    Raises:
        ValueError: See above.
    """
    if split and batch < processes:
        raise ValueError(
            f"a batch of {batch} images cannot be split among {processes} processes: type "
            f"--per_device_train_batch_size {processes} or more, or start fewer processes"
        )
    if images < processes:
        raise ValueError(
            f"got {images} training images for {processes} processes, at least one each is "
            "needed: give more images, or start fewer processes"
        )
    whole = batch if split else batch * processes
    if drop_last and images < whole:
        raise ValueError(
            f"got {images} training images, fewer than one batch of {whole}, and "
            "dataloader_drop_last leaves incomplete ones out: lower --per_device_train_batch_size"
        )


def check_ended(
    state: Any, got: int, wanted: int, *, sized: bool, fresh: bool, checkpoint: str | None
) -> None:
    """Refuse data that end before they should.

    Args:
        state: The Trainer's.
        got: Batches that came for this optimizer step.
        wanted: Batches asked for.
        sized: The data set has a length, and so should have given them.
        fresh: The step is the first of its epoch.
        checkpoint: The last good checkpoint, for the error; None: there is none.

    Raises:
        ValueError: A data set is shorter than its length, or one without a length gives nothing.
    """
    if got >= wanted or not (sized or (fresh and got == 0)):
        return  # without a length, an epoch may end anywhere; the next one begins anew
    what = (
        "the training data ended early, before the length that they announce"
        if sized
        else "the training data gave no image in this epoch: a stream that can be read only once?"
    )
    kept = f"; {checkpoint} is kept" if checkpoint else ""
    raise ValueError(
        f"{what} (after {state.global_step} of {state.max_steps} optimizer steps): check the data "
        f"set, or lower --max_steps{kept}"
    )


def check_streaming(args: Any) -> None:
    """Refuse what needs the length of the training data, or would not read a stream as meant.

    Args:
        args: TrainingArguments.

    Raises:
        ValueError: See above.
    """
    if args.max_steps <= 0:
        raise ValueError(
            "a stream has no length: say how long to train, e.g. --max_steps 10000 (optimizer "
            "steps, all passes over the data together)"
        )
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if str(getattr(args, name).value) == "epoch":
            raise ValueError(
                f"{name} is epoch, but a stream is read in one epoch without an end: type --{name} "
                f"steps --{name.replace('strategy', 'steps')} NUMBER"
            )
    if args.dataloader_drop_last:
        raise ValueError(
            "dataloader_drop_last does nothing for a stream, whose batches are all complete: "
            "leave it out"
        )
    if args.accelerator_config.dispatch_batches is False and args.world_size > 1:
        raise ValueError(
            "dispatch_batches: false has each process read the whole stream, and evaluation count "
            "some images twice: leave it out of accelerator_config"
        )
