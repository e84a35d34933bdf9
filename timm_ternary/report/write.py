"""The report of a model: a page and its figures, in a directory."""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..checkpoint.evaluation_file import Evaluation, read_evaluation
from ..checkpoint.run_files import PAGE_NAME, read_training, weights_mark
from ..checkpoint.weights_file import WEIGHTS_NAME
from ..files import atomic_write, sha256
from ..nn.convert import checked_code, ternary_layers
from ..nn.summary import ModelSummary, summarize
from . import head, sections
from .latent import find_latent
from .page import page
from .runs import Run, read_runs
from .sizes import file_sizes

__all__ = ["PAGE_NAME", "write_report"]

_OWN = re.compile(r"(weights|scale|training_\d+|accuracy|accuracy_zeros|confusion|kernels)\.png")


def write_report(
    model: nn.Module,
    directory: str | Path,
    *,
    title: str = "Ternary model",
    runs: Sequence[str | Path] = (),
    source: str | Path | None = None,
    evaluation: Evaluation | None = None,
) -> list[Path]:
    """Write index.html, which holds everything, and each of its figures as a PNG beside it.

    Args:
        model: A ternary model, trainable or packed. Of a packed one, latent weights and thresholds
            are those of the last checkpoint of its training, if `runs` has it.
        directory: Where to write, made if need be; files of the same names are replaced.
        title: Of the page.
        runs: Output directories of trainings, with history.json or ``checkpoint-*/``.
        source: The packed directory that `model` was loaded from; what a run wrote there of its
            data, accuracy and time is stated.
        evaluation: How the model does on a data set, instead of what `source` says.

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
    known, digest = _known(model, summary, logs, runs, source, evaluation)
    paths = [Path(run) for run in runs]
    latent = find_latent(model, paths) if summary.packed else None
    found = (
        sections.accuracy(logs),
        sections.confusion(known.evaluation),
        sections.weights(model, summary, latent),
        sections.scales(model, latent),
        sections.training(logs, summary),
        sections.accuracy_against_zeros(logs),
        sections.codes(model),
        sections.layers(model, summary, known.sizes, latent),
    )
    shown = [section for section in found if section is not None]
    files = {p.name: p.data for section in shown for p in section.pictures}
    text = page(
        title,
        head.lead(known),
        shown,
        facts=head.facts(known),
        compared=head.compared(known),
        head=weights_mark(digest),
    )
    if (directory / PAGE_NAME).is_file():
        for old in directory.glob("*.png"):
            if old.name not in files and _OWN.fullmatch(old.name):
                old.unlink()  # of the earlier report, which had a section more
    written = []
    # The page last: whoever finds it finds its figures too.
    for name, data in {**files, PAGE_NAME: text.encode("utf-8")}.items():
        written.append(_write(directory / name, data))
    return written[::-1]


def _known(
    model: nn.Module,
    summary: ModelSummary,
    logs: Sequence[Run],
    runs: Sequence[str | Path],
    source: str | Path | None,
    evaluation: Evaluation | None,
) -> tuple[head.Known, str | None]:
    """What the files say of the model, as far as they are of these weights; and their digest."""
    weights = None if source is None else Path(source) / WEIGHTS_NAME
    if weights is None or not weights.is_file():
        sizes = file_sizes(model, summary)
        return head.Known(summary, sizes, evaluation=evaluation, runs=tuple(logs)), None
    digest, place = sha256(weights), weights.parent
    training, own = read_training(place), None
    if training is not None and training.weights_sha256 != digest:
        training = None  # of another file, which this one has replaced
    if evaluation is None:
        evaluation = read_evaluation(place)
        if evaluation is not None and evaluation.weights_sha256 != digest:
            evaluation = None
    # read_runs takes each directory once, in order.
    order = list(dict.fromkeys(Path(run).resolve() for run in runs))
    if place.resolve() in order:
        own = logs[order.index(place.resolve())].name
    sizes = file_sizes(model, summary, weights)
    return head.Known(summary, sizes, training, evaluation, tuple(logs), own), digest


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
