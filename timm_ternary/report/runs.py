"""What training runs left behind: the log of the Trainer and the final metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.run_files import (
    CHECKPOINT_PREFIX,
    HISTORY_NAME,
    METRICS_NAME,
    STATE_NAME,
    newest_checkpoint,
    read_training,
)
from ..checkpoint.weights_file import WEIGHTS_NAME
from ..errors.foreign import FileError
from ..errors.numbers import is_number
from ..files import LOG_BYTES, read_json

__all__ = [
    "Run",
    "Series",
    "final",
    "find_log",
    "layer_series",
    "outcome",
    "read_runs",
    "series",
]

Series = tuple[list[float], list[float]]
"""Epochs and values."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        name: Its directory's name; the whole path where several runs have one name.
        entries: The log, in order.
        metrics: Final ones; empty where there is no metrics.json.
        method: Name of its method, ``float`` for none; None where training.json does not say.
        bytes: Of its model.safetensors, or None.
    """

    name: str
    entries: tuple[dict[str, Any], ...]
    metrics: dict[str, Any]
    method: str | None = None
    bytes: int | None = None

    def number(self, *keys: str) -> float | None:
        """The first of the final metrics `keys` that is a finite number."""
        return next((v for key in keys if (v := _number(self.metrics.get(key))) is not None), None)


def find_log(directory: str | Path) -> Path | None:
    """history.json of a run, else trainer_state.json of it or of its last checkpoint, else None."""
    directory = Path(directory)
    for path in (directory / HISTORY_NAME, directory / STATE_NAME):
        if path.is_file():
            return path
    checkpoint = newest_checkpoint(directory)
    return None if checkpoint is None else checkpoint / STATE_NAME


def read_runs(directories: Sequence[str | Path]) -> list[Run]:
    """Read the runs in `directories`, each once.

    Raises:
        ValueError: A directory does not exist or holds no log, or a file is damaged.
    """
    paths = list({Path(directory).resolve(): Path(directory) for directory in directories}.values())
    names = [path.resolve().name for path in paths]
    runs = []
    for path, name in zip(paths, names, strict=True):
        log = find_log(path)
        if log is None:
            raise ValueError(
                f"run {str(path)!r}: no directory with {HISTORY_NAME} or "
                f"{CHECKPOINT_PREFIX}*/{STATE_NAME}; type --run with the output_dir of a training"
            )
        metrics, weights = path / METRICS_NAME, path / WEIGHTS_NAME
        training = read_training(path)
        ternary = training and training.ternary
        method = None if training is None else str((ternary or {}).get("method", "float"))
        runs.append(
            Run(
                name=name if names.count(name) == 1 else str(path),
                entries=_entries(log),
                metrics=read_json(metrics) if metrics.is_file() else {},
                method=method,
                bytes=weights.stat().st_size if weights.is_file() else None,
            )
        )
    return runs


def series(run: Run, key: str) -> Series:
    """The finite values of `key` in the log and the epochs they belong to."""
    found: Series = ([], [])
    for entry in run.entries:
        epoch, value = _number(entry.get("epoch")), _number(entry.get(key))
        if epoch is not None and value is not None:
            found[0].append(epoch)
            found[1].append(value)
    return found


def layer_series(run: Run) -> dict[str, dict[str, Series]]:
    """What the log holds of single layers: ``{"zeros": {"conv1": ...}, "threshold": ...}``."""
    keys = dict.fromkeys(key for entry in run.entries for key in entry if "/" in key)
    found: dict[str, dict[str, Series]] = {}
    for key in keys:
        parameter, _, layer = key.partition("/")
        values = series(run, key)
        if values[0]:
            found.setdefault(parameter, {})[layer] = values
    return found


def outcome(run: Run) -> tuple[float, float] | None:
    """Fraction of zeros and accuracy, 0 to 1, at the end; None where either is not known."""
    zeros, accuracy = final(run, "zeros"), final(run, "eval_accuracy")
    return None if zeros is None or accuracy is None else (zeros, accuracy)


def final(run: Run, key: str) -> float | None:
    """A number at the end of a run: of its final metrics, else the last of its log."""
    value, logged = run.number(key), series(run, key)[1]
    return value if value is not None or not logged else logged[-1]


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _entries(path: Path) -> tuple[dict[str, Any], ...]:
    if path.name == HISTORY_NAME:
        entries = read_json(path, LOG_BYTES, list)
    else:
        entries = read_json(path, LOG_BYTES).get("log_history")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FileError(f"{path}: it holds no list of log entries")
    return tuple(entries)
