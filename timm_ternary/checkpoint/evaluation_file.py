"""evaluation.json: how a weights file did on a data set, class by class.

A run writes it with the accuracy of the file loaded back, and reports read it. As of the other
files of a run, what is of another type than expected reads as if it were not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..confusion import Confusion
from ..errors.numbers import is_number
from ..files import read_json, write_json

__all__ = ["EVALUATION_NAME", "Evaluation", "read_evaluation", "write_evaluation"]

EVALUATION_NAME = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """The result of one weights file on one data set.

    Attributes:
        top1: Fraction of the images whose likeliest class is theirs, 0 to 1.
        confusion: Which classes were taken for which.
        dataset: Name of the data set, without paths; None where it is not known.
        split: Of the data set, or None.
        weights_sha256: Of the model.safetensors that was evaluated; None: of a model in memory.
    """

    top1: float
    confusion: Confusion
    dataset: str | None = None
    split: str | None = None
    weights_sha256: str | None = None


def write_evaluation(directory: Path, found: Evaluation) -> None:
    """Write evaluation.json to a directory, in full or not at all."""
    confusion = found.confusion
    write_json(
        directory / EVALUATION_NAME,
        {
            "weights_sha256": found.weights_sha256,
            "dataset": found.dataset,
            "split": found.split,
            "images": confusion.images,
            "top1": found.top1,
            "label_names": list(confusion.names),
            "confusion": confusion.to_list(),
        },
    )


def read_evaluation(directory: Path) -> Evaluation | None:
    """What `write_evaluation` wrote; None where there is no such file, or it states no result.

    Raises:
        ValueError: The file is damaged. One line.
    """
    path = directory / EVALUATION_NAME
    if not path.is_file():
        return None
    values = read_json(path)
    confusion = Confusion.from_list(values.get("label_names"), values.get("confusion"))
    top1: Any = values.get("top1")
    if confusion is None or not confusion.images or not is_number(top1, low=0, high=1):
        return None
    texts = {key: _text(values.get(key)) for key in ("dataset", "split", "weights_sha256")}
    return Evaluation(float(top1), confusion, **texts)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
