"""What the files of a packed directory say of its model, and what they do not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch

from .. import packing
from ..checkpoint.directory import StoredDirectory, open_directory
from ..checkpoint.pair import STAND_IN
from ..checkpoint.run_files import (
    FIGURE_NAME,
    METRICS_NAME,
    REPORT_NAME,
    TRAINING_NAME,
    TrainingFacts,
    read_metrics,
    read_training,
    report_files,
)
from ..checkpoint.weights_file import WEIGHTS_NAME, StoredWeights, file_bytes, packed_tensors
from ..config import TernaryConfig
from ..errors.numbers import is_number
from ..nn.state_dict import weight_key

__all__ = ["CardFacts", "LayerFacts", "card_facts", "file_sizes", "printable"]

# Of `left_out` in training.json, in the words of a card.
_WORDS = {
    "base": "base checkpoint",
    "float_accuracy": "float accuracy",
    "seconds": "training time",
    "evaluation": "evaluation command",
}
# Figures of a report that a card shows, and what they show.
_SHOWN = {
    "accuracy.png": "Accuracy over training",
    "confusion.png": "Which classes are taken for which",
    FIGURE_NAME: "Weights, thresholds and ternary values of each layer",
}


@dataclass(frozen=True)
class LayerFacts:
    """One ternary layer.

    Attributes:
        name: Module name.
        shape: Of the weight.
        weights: Their number.
        zeros: Fraction of codes that are 0.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    zeros: float


@dataclass
class CardFacts:
    """What a card may state; texts are single lines of printable characters.

    Attributes:
        architecture: timm's name.
        ternary: How the model was made ternary.
        encoding: Of model.safetensors.
        input_size: (C, H, W).
        label_names: Names of the classes, or none.
        num_classes: Their number, or None.
        layers: The ternary ones.
        sizes: Bytes of the weights file in ``float`` and in each encoding.
        training: What training.json says of these weights; None where it says nothing of them.
        accuracies: Top-1, 0 to 1, of ``float``, ``ternary`` and ``reloaded``; those measured.
        figures: Those in the directory that are of these weights: what they show, and their places.
        missing: Name of what is not stated, and why.
    """

    architecture: str
    ternary: TernaryConfig
    encoding: str
    input_size: tuple[int, ...]
    label_names: tuple[str, ...]
    num_classes: int | None
    layers: tuple[LayerFacts, ...]
    sizes: dict[str, int]
    training: TrainingFacts | None = None
    accuracies: dict[str, float] = field(default_factory=dict)
    figures: tuple[tuple[str, str], ...] = ()
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """Number of ternary weights."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> float:
        """Fraction of zero codes over all ternary layers."""
        return sum(x.zeros * x.weights for x in self.layers) / max(self.weights, 1)

    @property
    def run(self) -> TrainingFacts:
        """`training`, or one that states nothing."""
        return self.training or TrainingFacts()


def card_facts(directory: str | Path | StoredDirectory) -> CardFacts:
    """What the files of a packed directory say.

    Args:
        directory: As `save_packed` or a run writes it, or one that is open already.

    Raises:
        ValueError: It is not packed, or a file in it is damaged. One line.
    """
    opened = open_directory(directory)
    path, stored, config = opened.file.path, opened.weights, opened.config
    if stored.config is None or stored.encoding is None:
        raise ValueError(
            f"{path}: not packed by timm_ternary, and only packed models have a card; "
            "type: timm-ternary train RECIPE.yaml, or timm-ternary pack MODEL DIR"
        )
    facts = CardFacts(
        architecture=printable(str(config.architecture)),
        ternary=stored.config,
        encoding=stored.encoding,
        input_size=config.input_size,
        label_names=_label_names(config.label_names),
        num_classes=config.num_classes,
        layers=tuple(
            LayerFacts(printable(name), tuple(code.shape), code.shape.numel(), code.zeros)
            for name, code in stored.codes.items()
        ),
        sizes={},
        figures=_figures(opened),
    )
    facts.sizes = file_sizes(stored, facts.missing) | {stored.encoding: path.stat().st_size}
    _measured(opened, facts)
    if not facts.figures:
        facts.missing["figure"] = (
            f"no {FIGURE_NAME} that is newer than {WEIGHTS_NAME}, and no report; type: "
            "timm-ternary report DIR"
        )
    return facts


def _label_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of the classes, but not those that transformers makes up: LABEL_0, LABEL_1, ..."""
    found = tuple(map(printable, names))
    made_up = all(name == f"LABEL_{index}" for index, name in enumerate(found))
    return () if made_up else found


def _figures(opened: StoredDirectory) -> tuple[tuple[str, str], ...]:
    """Those of its report that a reader of the card wants, else the histograms of the weights."""
    report = {path.name for path in report_files(opened.path, opened.sha256)}
    found = tuple((alt, f"{REPORT_NAME}/{name}") for name, alt in _SHOWN.items() if name in report)
    if not found and _is_newer(opened.path / FIGURE_NAME, opened.file.path):
        return ((_SHOWN[FIGURE_NAME], FIGURE_NAME),)
    return found


def _is_newer(figure: Path, weights: Path) -> bool:
    """Whether there is a figure, and it was drawn after the weights were written."""
    return figure.is_file() and figure.stat().st_mtime >= weights.stat().st_mtime


def file_sizes(stored: StoredWeights, missing: dict[str, str]) -> dict[str, int]:
    """Bytes of the weights file in float and in each encoding, counted by writing it in memory.

    Args:
        stored: Of a packed file.
        missing: Gets the reason where an encoding's library is not installed.
    """
    dense = {name: tensor.contiguous() for name, tensor in stored.dense.items()}
    ternary = set(map(weight_key, stored.codes))
    rest = {name: tensor for name, tensor in dense.items() if name not in ternary}
    sizes = {"float": len(safetensors.torch.save(dense, {"format": "pt", **STAND_IN}))}
    assert stored.config is not None and stored.architecture is not None
    for encoding in packing.ENCODINGS:
        try:
            tensors, metadata = packed_tensors(
                stored.codes,
                rest,
                config=stored.config,
                encoding=encoding,
                architecture=stored.architecture,
            )
        except ValueError as error:  # of zstd, without its library
            missing[f"size in {encoding}"] = str(error)
        else:
            sizes[encoding] = len(file_bytes(tensors, {**metadata, **STAND_IN}))
    return sizes


def _measured(opened: StoredDirectory, facts: CardFacts) -> None:
    """Add what training.json and metrics.json say of the weights file."""
    training, metrics = read_training(opened.path), read_metrics(opened.path)
    if training is None:
        facts.missing["base checkpoint, data set, accuracy, training"] = (
            f"no {TRAINING_NAME} in the directory (timm-ternary train writes it)"
        )
        return
    if training.weights_sha256 != opened.sha256:
        facts.missing["base checkpoint, data set, accuracy, training"] = (
            f"{TRAINING_NAME} describes another {WEIGHTS_NAME} than the one in the directory"
        )
        return
    training = facts.training = TrainingFacts.from_dict(_clean(training.to_dict()))
    for name, reason in training.left_out.items():
        facts.missing[_WORDS.get(name, name)] = str(reason)
    base = training.base
    found: dict[str, Any] = {"float": None if base is None else base.float_accuracy}
    if metrics is None:
        facts.missing["ternary accuracy, reloaded accuracy"] = f"no {METRICS_NAME} in the directory"
    else:
        found |= {"ternary": metrics.get("eval_accuracy")}
        found |= {"reloaded": metrics.get("reloaded_accuracy")}
    facts.accuracies = {name: value for name, value in found.items() if _is_share(value)}
    for name in found.keys() - facts.accuracies.keys():
        source = TRAINING_NAME if name == "float" else METRICS_NAME
        if name != "float" or base is not None:
            facts.missing.setdefault(f"{name} accuracy", f"not in {source}")


def _is_share(value: Any) -> bool:
    return is_number(value, low=0, high=1)


def printable(text: str) -> str:
    """`text` on one line, of printable characters: no value may begin a line of the card."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _clean(value: Any) -> Any:
    """All texts in a JSON value on one line."""
    if isinstance(value, dict):
        return {_clean(key): _clean(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_clean(entry) for entry in value]
    return printable(value) if isinstance(value, str) else value
