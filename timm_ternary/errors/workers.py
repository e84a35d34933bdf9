"""What the data loader raises where one of its worker processes dies, in one line."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["one_line"]

_DEATH = re.compile(r"DataLoader worker \(pid.*\) (?:is killed by signal: (.+?)\.|exited unexp)")

_ENDED = "a worker process of the data loader ended unexpectedly"
_WHY = {
    "Killed": ", mostly for want of memory",
    "Bus error": ", mostly for want of shared memory: docker run --shm-size 8g",
}


@contextmanager
def one_line(option: str, after: Callable[[], str] = str) -> Iterator[None]:
    """Inside, the death of a worker process becomes one line: which signal, and what to type.

    torch raises it wherever the main process is at that moment, not only where it waits for images.

    Args:
        option: What sets the number of workers, e.g. ``"--dataloader_num_workers"``.
        after: Gives what else there is to say then.

    Raises:
        OSError: A worker was killed, or ended by itself.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        death = _death(error)
        if death is None:
            raise
        raise OSError(f"{death}; type {option} 0, which starts none{after()}") from error


def _death(error: BaseException | None) -> str | None:
    """What became of a worker, if `error` is of that; the signal may stand in what led to it."""
    found = None
    while error is not None:
        match = _DEATH.search(str(error)) if isinstance(error, RuntimeError) else None
        if match is not None:
            if match[1] is None:
                found = _ENDED
            else:
                return (
                    "a worker process of the data loader was killed "
                    f"({match[1]}{_WHY.get(match[1], '')})"
                )
        elif isinstance(error, (ConnectionError, EOFError)) and _between_processes(error):
            found = _ENDED  # while it was handing over a batch
        error = error.__cause__ or error.__context__
    return found


def _between_processes(error: BaseException) -> bool:
    """Whether it was raised where processes hand over data, not e.g. in a download."""
    frames = traceback.walk_tb(error.__traceback__)
    return any("multiprocessing" in frame.f_code.co_filename for frame, _ in frames)
