"""Ends a training at the next step where SIGTERM has come, with a checkpoint of that step."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from ..stop import Sigterm, Terminated

__all__ = ["StopAtStep"]


class StopAtStep(TrainerCallback):
    """Asks at the end of each optimizer step; all processes stop at the same one.

    Args:
        sigterm: Of this process; it is patient while training goes on.
        accelerator: Of the Trainer: tells whether any process was told to stop.
    """

    def __init__(self, sigterm: Sigterm, accelerator: Any) -> None:
        self.sigterm, self.accelerator = sigterm, accelerator
        self._stopping = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From now on a step can be waited for."""
        self.sigterm.patient, self._stopping = True, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint at once, whatever else the step asks for."""
        if self._told():
            self._stopping = control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint is there: end, without what usually follows a training.

        Raises:
            Terminated: SIGTERM had come.
        """
        if self._stopping:
            raise Terminated

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """There are no more steps to wait for.

        Raises:
            Terminated: SIGTERM came after the last of them.
        """
        self.sigterm.patient = False
        if self._told():
            raise Terminated

    def _told(self) -> bool:
        """Whether any process was told to stop. All processes must call."""
        told = self.sigterm.received
        if self.accelerator.num_processes == 1:
            return told
        flag = torch.tensor(float(told), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item() > 0)
