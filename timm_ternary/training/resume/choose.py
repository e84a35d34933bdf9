"""Which checkpoint a run resumes from: the one that is named, or the newest that is whole."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from ...checkpoint.run_files import CHECKPOINT_PREFIX
from ...errors.printable import shown
from .record import damage, incomplete

__all__ = ["check_asked", "checkpoints", "choose"]

_logger = logging.getLogger(__name__)

_NEWEST, _NONE = ("yes", "true", "auto"), ("no", "false")
_ANEW = "leave resume_from_checkpoint out to start anew"
_SHOWN = 3


def check_asked(asked: Any, output_dir: str | Path) -> str | None:
    """What `resume_from_checkpoint` means, after a glance: ``"true"``, a directory, or None.

    Args:
        asked: ``True``, ``"true"`` or ``"auto"``: the newest checkpoint; ``None``, ``False`` or
            ``"no"``: none; else a checkpoint's directory.
        output_dir: Of the run.

    Raises:
        ValueError: There is no such directory, it is no checkpoint, or there is none. One line.
    """
    if asked is None or str(asked).lower() in _NONE:
        return None
    if str(asked).lower() in _NEWEST:
        if not checkpoints(output_dir):
            raise ValueError(
                f"there is no checkpoint in {str(output_dir)!r} to resume from: {_ANEW}"
            )
        return _NEWEST[1]
    if not isinstance(asked, (str, PathLike)):
        raise ValueError(
            f"resume_from_checkpoint must be true or a checkpoint's directory, got {shown(asked)}"
        )
    path = Path(asked).expanduser()
    if not path.is_dir():
        raise ValueError(f"resume_from_checkpoint: there is no directory {str(asked)!r}")
    if (held := checkpoints(path)) and not path.name.startswith(CHECKPOINT_PREFIX):
        raise ValueError(
            f"resume_from_checkpoint: {str(asked)!r} is no checkpoint, but holds some: type "
            f"--resume_from_checkpoint {held[0]}"
        )
    return str(path)


def choose(asked: Any, output_dir: str | Path) -> Path | None:
    """The checkpoint to resume from, all of whose files were looked at; None: start anew.

    Where the newest is asked for and torn, the newest whole one is taken, and a warning says so.

    Args:
        asked, output_dir: As `check_asked`.

    Raises:
        ValueError: As `check_asked`; or the one that is named is torn (names whole ones), or all
            are. One line.
    """
    meant = check_asked(asked, output_dir)
    if meant is None:
        return None
    if meant != _NEWEST[1]:
        return _named(Path(meant))
    torn: list[str] = []
    for path in checkpoints(output_dir):
        reason = _unfit(path)
        if reason is None:
            if torn:
                _logger.warning("%s; resuming from the newest whole one, %s", _list(torn), path)
            return path
        torn.append(f"{path.name} is torn: {reason}")
    raise ValueError(f"no checkpoint in {str(output_dir)!r} is whole ({_list(torn)}): {_ANEW}")


def checkpoints(directory: str | Path) -> list[Path]:
    """The checkpoints in an output_dir, the newest first, whole or not."""
    found = [
        path
        for path in Path(directory).glob(f"{CHECKPOINT_PREFIX}*")
        if _step(path) is not None and path.is_dir()
    ]
    return sorted(found, key=lambda path: _step(path) or 0, reverse=True)


def _step(path: Path) -> int | None:
    number = path.name.removeprefix(CHECKPOINT_PREFIX)
    return int(number) if number.isascii() and number.isdigit() and len(number) < 19 else None


def _named(path: Path) -> Path:
    reason = _unfit(path)
    if reason is None:
        return path
    others = (other for other in checkpoints(path.absolute().parent) if other != path.absolute())
    whole = list(islice((other for other in others if _unfit(other) is None), _SHOWN))
    if not whole:
        raise ValueError(f"{path} is torn: {reason}; no other beside it is whole: {_ANEW}")
    names = ", ".join(other.name for other in whole)
    raise ValueError(
        f"{path} is torn: {reason}; whole ones beside it: {names}; type "
        f"--resume_from_checkpoint {path.parent / whole[0].name}"
    )


def _unfit(path: Path) -> str | None:
    return damage(path) or incomplete(path)


def _list(reasons: Iterable[str]) -> str:
    """Some of several reasons, in one line."""
    known = list(reasons)
    more = f"; and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return "; ".join(known[:_SHOWN]) + more
