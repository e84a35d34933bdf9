"""The files that a training run leaves beside its model, and training.json as a type.

A run writes (training/run.py) and cards, reports and pushes read: what is not there, is of another
type or is no finite number reads as None, so that the files of other versions can be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..errors.numbers import is_number
from ..files import read_json

__all__ = [
    "CHECKPOINT_PREFIX",
    "FIGURE_NAME",
    "HISTORY_NAME",
    "METRICS_NAME",
    "PAGE_NAME",
    "REPORT_NAME",
    "STATE_NAME",
    "TRAINING_NAME",
    "BaseFacts",
    "DatasetFacts",
    "HardwareFacts",
    "TrainingFacts",
    "newest_checkpoint",
    "read_metrics",
    "read_training",
    "report_files",
    "weights_mark",
]

TRAINING_NAME, METRICS_NAME, HISTORY_NAME = "training.json", "metrics.json", "history.json"
FIGURE_NAME = "weights.png"
REPORT_NAME, PAGE_NAME = "report", "index.html"
"""Of the report of a directory: the folder in it, and the page there with its figures beside it."""
_MARK = '<meta name="timm_ternary:weights" content="{}">\n'

_T = TypeVar("_T")

# transformers' own names, which importing it here would cost seconds to ask for.
CHECKPOINT_PREFIX, STATE_NAME = "checkpoint-", "trainer_state.json"


@dataclass(frozen=True)
class DatasetFacts:
    """The images of a run.

    Attributes:
        name: As on the command line, without paths.
        hub_id: On the Hub, if it is there.
        config: Its configuration on the Hub.
        train_split, eval_split: Names of the splits.
        train_images, eval_images: Their numbers; None for a stream.
        classes: Number of classes.
    """

    name: str | None = None
    hub_id: str | None = None
    config: str | None = None
    train_split: str | None = None
    train_images: int | None = None
    eval_split: str | None = None
    eval_images: int | None = None
    classes: int | None = None


@dataclass(frozen=True)
class BaseFacts:
    """The weights that a run started from.

    Attributes:
        name: Of a file or directory without its path, of a repository, or timm's.
        hub_id: On the Hub, if they are there.
        float_accuracy: Top-1 of the float model on the same images, 0 to 1.
    """

    name: str | None = None
    hub_id: str | None = None
    float_accuracy: float | None = None


@dataclass(frozen=True)
class HardwareFacts:
    """What a run ran on.

    Attributes:
        cpu: Its name.
        cores: Those that the process might use.
        gpus: The accelerators of all processes.
        processes: Their number.
    """

    cpu: str | None = None
    cores: int | None = None
    gpus: list[Any] = field(default_factory=list)
    processes: int | None = None


@dataclass(frozen=True)
class TrainingFacts:
    """training.json: what a run says of itself. ``to_dict`` and ``from_dict`` are inverse.

    Attributes:
        weights_sha256: Of the model.safetensors that the run wrote.
        dataset: The images.
        base: The weights it started from; None: random ones.
        ternary: How the model was made ternary, as `TernaryConfig.to_dict`; None: it is float.
        arguments: Those that differ from their defaults.
        seconds: Of the whole training; None where only a part of it was timed.
        steps: Optimizer steps.
        epochs: Passes over the images.
        hardware: What it ran on.
        versions: Of Python and the libraries, by name.
        date: Day of its end, ISO 8601.
        evaluation: The command that measures the accuracy again; DIR stands for the directory.
        left_out: Why another entry is None, by its name.
    """

    weights_sha256: str | None = None
    dataset: DatasetFacts = field(default_factory=DatasetFacts)
    base: BaseFacts | None = None
    ternary: dict[str, Any] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    steps: int | None = None
    epochs: float | None = None
    hardware: HardwareFacts = field(default_factory=HardwareFacts)
    versions: dict[str, Any] = field(default_factory=dict)
    date: str | None = None
    evaluation: str | None = None
    left_out: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As the file holds it, in this order."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingFacts:
        """What a file of any version says of these; unknown keys are passed over."""
        return _typed(cls, values)


def read_training(directory: Path) -> TrainingFacts | None:
    """What the run says of itself that wrote a directory; None where there is no training.json.

    Raises:
        ValueError: The file is damaged. One line.
    """
    path = directory / TRAINING_NAME
    return TrainingFacts.from_dict(read_json(path)) if path.is_file() else None


def read_metrics(directory: Path) -> dict[str, Any] | None:
    """What a run measured; None where there is no metrics.json.

    Raises:
        ValueError: The file is damaged. One line.
    """
    path = directory / METRICS_NAME
    return read_json(path) if path.is_file() else None


def weights_mark(digest: str | None) -> str:
    """What the head of a report says of the weights that it is of; nothing where that is None.

    Args:
        digest: sha256 of their model.safetensors.
    """
    return "" if digest is None else _MARK.format(digest)


def report_files(directory: Path, digest: str) -> list[Path]:
    """The report of a directory: its page and figures, if it is of the weights with this digest."""
    page = directory / REPORT_NAME / PAGE_NAME
    if not page.is_file():
        return []
    with page.open(encoding="utf-8", errors="replace") as file:
        if weights_mark(digest) not in file.read(4096):
            return []
    return [page, *sorted(path for path in page.parent.glob("*.png") if path.is_file())]


def newest_checkpoint(directory: str | Path) -> Path | None:
    """The newest checkpoint of a run that was written in full: the Trainer writes its state last.

    Args:
        directory: The output_dir.
    """
    found = [
        path.parent
        for path in Path(directory).glob(f"{CHECKPOINT_PREFIX}*/{STATE_NAME}")
        if path.parent.name.removeprefix(CHECKPOINT_PREFIX).isdigit()
    ]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _typed(cls: type[_T], values: Mapping[str, Any]) -> _T:
    """A dataclass of those `values` that are of its fields' types; the others take the defaults."""
    found = {name: _value(hint, values.get(name)) for name, hint in get_type_hints(cls).items()}
    return cls(**{name: value for name, value in found.items() if value is not None})


def _value(hint: Any, value: Any) -> Any:
    """`value` if it is of the type that `hint` names, else None."""
    if isinstance(hint, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    if is_dataclass(hint):
        return _typed(hint, value) if isinstance(value, Mapping) else None  # type: ignore[arg-type]
    kind = get_origin(hint) or hint
    if kind is float:
        return value if is_number(value) else None
    return value if isinstance(value, kind) and not isinstance(value, bool) else None
