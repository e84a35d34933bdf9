"""What a person wants to know when a run has ended, read from the directory that it wrote."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from ..checkpoint.config_json import CONFIG_NAME, read_config
from ..checkpoint.evaluation_file import EVALUATION_NAME, Evaluation, read_evaluation
from ..checkpoint.run_files import (
    HISTORY_NAME,
    METRICS_NAME,
    TRAINING_NAME,
    TrainingFacts,
    read_training,
)
from ..checkpoint.weights_file import WEIGHTS_NAME, read_file
from ..errors.printable import printable
from ..names import ternary_name
from .arguments.recipe import load_yaml

__all__ = ["outcome"]

_FILES = (CONFIG_NAME, METRICS_NAME, TRAINING_NAME, HISTORY_NAME, EVALUATION_NAME)


def outcome(
    directory: Path,
    *,
    dataset: Mapping[str, Any] | str | None = None,
    recipe: str | None = None,
) -> list[str]:
    """The last lines of a run: its files and their size, how good it is, and what to type next.

    Args:
        directory: The output_dir of a finished run.
        dataset: As the run was given it, for the commands.
        recipe: The recipe of the run; the next step of a float one stands beside it.

    Raises:
        ValueError: A file of the directory is damaged.
    """
    facts = read_training(directory) or TrainingFacts()
    evaluation = read_evaluation(directory)
    lines = [_files(directory)]
    if evaluation is not None:
        lines.append(_accuracy(evaluation, facts))
    data = [] if dataset is None else ["--dataset", _text(dataset)]
    first, *rest = _next(directory, facts, data, recipe)
    return [*lines, f"next: {shlex.join(first)}", *(f"      {shlex.join(words)}" for words in rest)]


def _files(directory: Path) -> str:
    path = directory / WEIGHTS_NAME
    file, size = read_file(path), decimal(path.stat().st_size)
    if file.is_packed:
        values = sum(math.prod(shape) for shape in file.weight_shapes.values())
        full = 4 * values  # in float32
        size += f", {full / path.stat().st_size:.1f} times less than the {decimal(full)} in float"
    others = ", ".join(name for name in _FILES if (directory / name).is_file())
    return f"{printable(directory)} holds {WEIGHTS_NAME} ({size}), {others}"


def _accuracy(evaluation: Evaluation, facts: TrainingFacts) -> str:
    own, confusion = evaluation.top1, evaluation.confusion
    line = f"accuracy {own:.2%} of {confusion.images} held-out images"
    base = facts.base.float_accuracy if facts.base is not None else None
    if base is not None:
        points = 100 * (own - base)
        line += f"; of the float network it started from {base:.2%} ({points:+.2f} points)"
    most = max(confusion.classes(), key=lambda entry: entry.images)
    line += f"; of always saying {printable(most.name, 40)!r} {confusion.majority:.2%}"
    if own <= confusion.majority:
        line += ": no better than that; train longer, or with another --learning_rate"
    return line


def _next(
    directory: Path, facts: TrainingFacts, data: list[str], recipe: str | None
) -> list[list[str]]:
    """Commands, each as its words."""
    here = str(directory)
    if facts.ternary is not None:
        return [
            ["timm-ternary", "evaluate", here, *data, "--per-class"],
            ["timm-ternary", "report", here],
            ["timm-ternary", "push", here, "USER/NAME"],
        ]
    architecture = read_config(directory / CONFIG_NAME).architecture or ""
    words = ["--model", ternary_name(architecture), "--checkpoint", here]
    step = _step_after(recipe)
    if step is None:
        words += ["--teacher", here, *data, "--output_dir", f"{here}_ternary"]
        return [["timm-ternary", "train", *words]]
    if "teacher" in load_yaml(step):
        words += ["--teacher", here]
    return [["timm-ternary", "train", str(step), *words, *data]]


def _step_after(recipe: str | None) -> Path | None:
    """The recipe of the ternary run, NAME_tga.yaml, beside that of a float one, NAME_float.yaml."""
    if recipe is None or not Path(recipe).stem.endswith("_float"):
        return None
    path = Path(recipe)
    found = path.with_name(path.name.replace("_float", "_tga"))
    return found if found.is_file() else None


def _text(dataset: Mapping[str, Any] | str) -> str:
    return dataset if isinstance(dataset, str) else json.dumps(dict(dataset))
