"""The report of a model: a page and its figures, in a directory."""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..files import atomic_write
from ..nn.convert import checked_code, ternary_layers
from ..nn.summary import ModelSummary, summarize
from . import sections
from .page import page
from .runs import read_runs

__all__ = ["PAGE_NAME", "write_report"]

PAGE_NAME = "index.html"
_OWN = re.compile(r"(weights|scale|training_\d+|accuracy|accuracy_zeros|kernels)\.png")


def write_report(
    model: nn.Module,
    directory: str | Path,
    *,
    title: str = "Ternary model",
    runs: Sequence[str | Path] = (),
) -> list[Path]:
    """Write index.html, which holds everything, and each of its figures as a PNG beside it.

    Args:
        model: A ternary model, trainable or packed.
        directory: Where to write, made if need be; files of the same names are replaced.
        title: Of the page.
        runs: Output directories of trainings, with history.json or ``checkpoint-*/``.

    Returns:
        The files, the page first.

    Raises:
        ValueError: The model is not ternary or not finite, a run has no log, or `directory`
            cannot be written. Nothing is written then.
    """
    directory = Path(directory)
    summary = summarize(model)
    for name, layer in ternary_layers(model).items():
        checked_code(name, layer)
    logs = read_runs(runs)
    _make(directory)
    found = [
        sections.layers(model, summary),
        sections.weights(model, summary),
        sections.scales(model, summary),
        sections.training(logs, summary),
        *sections.accuracy(logs),
        sections.codes(model),
    ]
    files = {p.name: p.data for section in found for p in section.pictures}
    text = page(title, _lead(summary), found)
    if (directory / PAGE_NAME).is_file():
        for old in directory.glob("*.png"):
            if old.name not in files and _OWN.fullmatch(old.name):
                old.unlink()  # of the earlier report, which had a section more
    written = []
    # The page last: whoever finds it finds its figures too.
    for name, data in {**files, PAGE_NAME: text.encode("utf-8")}.items():
        written.append(_write(directory / name, data))
    return written[::-1]


def _lead(summary: ModelSummary) -> str:
    form = "packed" if summary.packed else "trainable"
    return (
        f"{summary.method}, {form}: {len(summary.layers)} ternary layers with "
        f"{summary.ternary_weights:,} weights, {summary.zeros:.1%} of them zero; "
        f"{summary.packed_bytes:,} bytes packed, {summary.float_bytes:,} in float "
        f"({summary.float_bytes / summary.packed_bytes:.1f}x)."
    )


def _make(directory: Path) -> None:
    """Fail before the figures are drawn."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        if (directory / PAGE_NAME).is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{PAGE_NAME} is a directory")
    except OSError as error:
        raise ValueError(
            f"cannot write to {str(directory)!r} ({error.strerror}); name another directory"
        ) from error


def _write(path: Path, data: bytes) -> Path:
    with atomic_write(path, lambda scratch: scratch.write_bytes(data)):
        pass
    return path
