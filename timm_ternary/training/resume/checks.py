"""Where the Trainer asks: what to resume from, and whether what it loads is what it expects."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ...checkpoint.run_files import CHECKPOINT_PREFIX
from ...errors.wording import flat
from .choose import choose
from .compare import check_fits
from .record import damage

__all__ = ["best_is_whole", "checkpoint_directory", "resumable", "same_optimizer"]

_logger = logging.getLogger(__name__)

# What torch's optimizers and schedules raise at states of others, and torch.load at no state.
_OTHERS = (pickle.UnpicklingError, ValueError, KeyError, AttributeError, TypeError)


def checkpoint_directory(output_dir: Any, state: Any) -> Path:
    """Where the Trainer writes the checkpoint of the step that `state` is at."""
    return Path(str(output_dir)) / f"{CHECKPOINT_PREFIX}{state.global_step}"


def resumable(trainer: Any, asked: Any, facts: Mapping[str, Any]) -> str | None:
    """The checkpoint to resume from, whole and of this run; None: none is asked for.

    The first process decides for all of them. What may change and does is logged as warnings.

    Args:
        trainer: An ImageTrainer.
        asked: As ``Trainer.train`` takes it.
        facts: Of the run.

    Raises:
        ValueError: See `choose` and `check_fits`; in all processes. One line.
    """
    decided: list[Any] = [None, None]
    if trainer.is_world_process_zero():
        try:
            found = choose(asked, trainer.args.output_dir)
            if found is not None:
                for line in check_fits(found, facts, trainer.model, trainer.args):
                    _logger.warning("%s", line)
                decided[0] = str(found)
        except (OSError, ValueError) as error:
            decided[1] = flat(error)
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(decided)
    checkpoint, refusal = decided
    if refusal is not None:
        raise ValueError(refusal)
    return checkpoint


@contextmanager
def same_optimizer(trainer: Any, checkpoint: Any) -> Iterator[None]:
    """Around the loading of an optimizer and a schedule.

    Checkpoints of earlier versions do not say what they are of, and the state of another optimizer
    is refused by none, or by a traceback.

    Args:
        trainer: Has `optimizer` and `lr_scheduler`.
        checkpoint: Its directory, for the error; None: nothing is loaded.

    Raises:
        ValueError: The groups of parameters, or their settings, are others. One line.
    """
    keys = [group.keys() for group in trainer.optimizer.param_groups]
    other = (
        f"{checkpoint} has the state of another optimizer or schedule than this run's: give the "
        "optimizer, update and frozen layers that it was trained with, or leave "
        "resume_from_checkpoint out to start anew"
    )
    try:
        yield
    except _OTHERS as error:
        raise ValueError(f"{other} ({flat(error)[:200]})") from error
    if checkpoint is None:
        return
    loaded = [group.keys() for group in trainer.optimizer.param_groups]
    if any(not own <= new for own, new in zip(keys, loaded, strict=True)):
        raise ValueError(other)


def best_is_whole(state: Any) -> bool:
    """Whether the best checkpoint can be loaded; a warning says so where it cannot.

    Args:
        state: The Trainer's.
    """
    directory = Path(str(state.best_model_checkpoint))
    reason = damage(directory) if directory.is_dir() else None
    if reason is not None:
        _logger.warning(
            "%s, the best checkpoint, is torn: %s; the model stays as the last step left it",
            directory,
            reason,
        )
    return reason is None
