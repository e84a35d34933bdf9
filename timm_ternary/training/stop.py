"""A training that is told to end: SIGTERM, as schedulers send it some seconds before they kill."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from ..checkpoint.run_files import newest_checkpoint

__all__ = ["STATUS", "Sigterm", "Terminated", "way_on"]

STATUS = 128 + signal.SIGTERM
"""The exit status, 143, as a shell reports a program that SIGTERM has ended."""


class Terminated(SystemExit):
    """SIGTERM has come; unhandled, the program ends with `STATUS`.

    Attributes:
        line: What to tell the user; None in all processes but the first.
    """

    def __init__(self, line: str | None = None) -> None:
        super().__init__(STATUS)
        self.line = line


class Sigterm:
    """Inside, SIGTERM raises `Terminated`; a patient one lets a step end first.

    It leaves alone a handler that somebody else has installed, and does nothing outside the main
    thread, where there are no signals.

    Attributes:
        patient: The next SIGTERM is only noted, since `received` is asked for often enough; one
            after it raises all the same.
        received: One was noted.
    """

    def __init__(self) -> None:
        self.patient = self.received = False
        self._installed = False

    def __enter__(self) -> Sigterm:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._handle)
            self._installed = True
        return self

    def __exit__(self, *_: Any) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._installed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.patient and not self.received:
            self.received = True
            return
        raise Terminated


def way_on(output_dir: str | Path) -> str:
    """Where the last checkpoint of a training is that ends early, and what to type.

    Args:
        output_dir: Of the run.
    """
    found = newest_checkpoint(output_dir)
    if found is None:
        return "no checkpoint was written yet; to start anew type the same again"
    return f"the last checkpoint is {found}; to go on type the same with {_RESUME}"


_RESUME = "--resume_from_checkpoint true"
