"""What ends a training in one line: values that are not finite, and data that do not suffice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...errors.wording import unknown
from ...nn.state_dict import readable_name
from ..fsdp import whole

__all__ = [
    "HealthCheck",
    "check_ended",
    "check_epochs",
    "check_finite_model",
    "check_metric",
    "check_share",
    "check_streaming",
]


class HealthCheck(TrainerCallback):
    """Ends training before a step of a model that is not finite, or where the data end early.

    The Trainer has no event before a checkpoint is written nor where batches are fetched: there it
    asks `check_model` and `check_batches`.

    Attributes:
        last_good: The last checkpoint that holds a finite model, for the errors; None: there is
            none.
    """

    last_good: str | None = None

    def __init__(self) -> None:
        self._fresh = True

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The next optimizer step is the first of an epoch."""
        self._fresh = True

    def on_step_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Look at the parameters, unless `logging_nan_inf_filter` is off.

        The loss may look well: tga takes a threshold that is NaN for one of 3 sigma, and ttq makes
        zeros of all weights that share a group with one that is NaN. The Trainer waits for the
        device once a step too, unless that field tells it not to.
        """
        if args.logging_nan_inf_filter:
            self.check_model(model, state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What has been written was finite."""
        folder = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        self.last_good = str(Path(str(args.output_dir)) / folder)

    def way_on(self) -> str:
        """What to add to an error that ends training: the last good checkpoint, if there is one."""
        if self.last_good is None:
            return ""
        return f"; to go on add --resume_from_checkpoint {self.last_good}"

    def check_model(self, model: nn.Module, state: Any) -> None:
        """As `check_finite_model`; `state` is the Trainer's."""
        check_finite_model(model, state.global_step, self.last_good)

    def check_batches(self, state: Any, got: int, wanted: int, *, sized: bool) -> None:
        """As `check_ended`, for the batches of the next optimizer step."""
        fresh, self._fresh = self._fresh, False
        check_ended(state, got, wanted, sized=sized, fresh=fresh, checkpoint=self.last_good)


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


def check_epochs(args: Any) -> None:
    """Refuse what counts epochs, for a data set without a length.

    Args:
        args: TernaryTrainingArguments.

    Raises:
        ValueError: `lr_milestones` or `soft_epochs` is given.
    """
    for name in ("lr_milestones", "soft_epochs"):
        if getattr(args, name):
            raise ValueError(
                f"{name} count epochs, and this data set has no length: leave {name} out, or "
                "use a data set with a length"
            )


def check_metric(wanted: str | None, metrics: Mapping[str, float]) -> None:
    """Refuse a `metric_for_best_model` that the evaluation does not report.

    Args:
        wanted: Its name, with ``eval_`` or without; None: nothing is asked for.
        metrics: What is reported, by names with ``eval_``.

    Raises:
        ValueError: It is not among them.
    """
    if wanted is not None and f"eval_{wanted.removeprefix('eval_')}" not in metrics:
        names = (name.removeprefix("eval_") for name in metrics if name.startswith("eval_"))
        raise ValueError(unknown("metric_for_best_model", wanted, sorted(names)))


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
    if args.bn_reestimate is not None:
        raise ValueError(
            "bn_reestimate reads training images a second time, which a stream cannot: leave it out"
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
