"""The head of a report: accuracy, data, sizes, and what is compared; each as the files say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..checkpoint.evaluation_file import Evaluation
from ..checkpoint.run_files import TrainingFacts
from ..nn.summary import ModelSummary
from .page import Table
from .runs import Run, final
from .sizes import Sizes

__all__ = ["Known", "compared", "facts", "lead"]


@dataclass(frozen=True)
class Known:
    """What is known of the model that a report is of.

    Attributes:
        summary: Its layers.
        sizes: Bytes of its file.
        training: What the run says of itself that made it; None where none is known.
        evaluation: How it did on a data set; None where that was not measured.
        runs: The trainings that were given, its own among them.
        own: Name of its own training among `runs`, or None.
    """

    summary: ModelSummary
    sizes: Sizes
    training: TrainingFacts | None = None
    evaluation: Evaluation | None = None
    runs: tuple[Run, ...] = ()
    own: str | None = None

    @property
    def float_accuracy(self) -> float | None:
        """Top-1 of the float model that training began from, on the same images; 0 to 1."""
        base = None if self.training is None else self.training.base
        return None if base is None else base.float_accuracy

    @property
    def accuracy(self) -> float | None:
        """Top-1 of the model, 0 to 1: measured on its file, else what its run says."""
        if self.evaluation is not None:
            return self.evaluation.top1
        own = next((run for run in self.runs if run.name == self.own), None)
        return None if own is None else _final_accuracy(own)


def lead(known: Known) -> str:
    """One sentence on accuracy and size."""
    sizes, parts = known.sizes, []
    if known.accuracy is not None:
        parts.append(f"{_percent(known.accuracy)} right")
        if known.float_accuracy is not None:
            parts[0] += f" ({_percent(known.float_accuracy)} in float)"
    parts.append(
        f"{sizes.packed:,} bytes instead of {sizes.full:,} in float: {sizes.ratio:.1f} "
        "times smaller"
    )
    return "; ".join(parts) + "."


def facts(known: Known) -> list[tuple[str, str]]:
    """Names and texts: what is not known is not there, but how to have the accuracy measured."""
    summary, sizes = known.summary, known.sizes
    form = "packed" if summary.packed else "trainable"
    encoding = f"{sizes.encoding}, " if sizes.encoding else ""
    return [
        ("Accuracy", _accuracy(known)),
        *_data(known),
        (
            "Size",
            f"{sizes.packed:,} bytes ({encoding}{sizes.packed_bits:.2f} bits a ternary weight), "
            f"{sizes.full:,} in float32",
        ),
        (
            "Ternary",
            f"{len(summary.layers):,} layers with {summary.ternary_weights:,} weights, "
            f"{summary.zeros:.1%} of them zero; by {summary.method}, {form}",
        ),
        *_compared_names(known),
    ]


def compared(known: Known) -> Table | None:
    """Float base, this model and the other runs side by side; None where there is one alone."""
    sizes = known.sizes
    rows: list[tuple[str, ...]] = []
    if known.float_accuracy is not None and known.training is not None:
        base = known.training.base
        name = (base and base.name) or "float"
        rows.append(
            (f"{name} (float base)", _percent(known.float_accuracy), "", "", _b(sizes.full))
        )
    zeros, name = f"{known.summary.zeros:.1%}", known.own or "this model"
    here = _percent(known.accuracy)
    rows.append((f"{name} (this report)", here, known.summary.method, zeros, _b(sizes.packed)))
    for run in known.runs:
        if run.name == known.own:
            continue
        share = final(run, "zeros")
        rows.append(
            (
                run.name,
                _percent(_final_accuracy(run)),
                run.method or "",
                "" if share is None else f"{share:.1%}",
                "" if run.bytes is None else _b(run.bytes),
            )
        )
    head = ("compared", "top-1", "method", "zeros", "bytes")
    return Table(head, tuple(rows)) if len(rows) > 1 else None


def _final_accuracy(run: Run) -> float | None:
    """Top-1 of what a run left, loaded back; else of its last evaluation."""
    found = run.number("reloaded_accuracy")
    return final(run, "eval_accuracy") if found is None else found


def _accuracy(known: Known) -> str:
    if known.accuracy is None:
        return "not measured; type timm-ternary report MODEL OUTDIR --dataset NAME"
    text = f"{_percent(known.accuracy)} top-1"
    found = known.evaluation
    if found is not None:
        text += f" of {found.confusion.images:,} images"
    if known.float_accuracy is not None:
        change = 100 * (known.accuracy - known.float_accuracy)
        text += f"; {_percent(known.float_accuracy)} in float ({change:+.2f} points)"
    if found is not None:
        text += f"; always guessing the most frequent class: {_percent(found.confusion.majority)}"
    return text


def _data(known: Known) -> Iterator[tuple[str, str]]:
    found, run = known.evaluation, known.training
    name = found.dataset if found is not None else run and run.dataset.name
    if not name:
        return
    split = found.split if found is not None else run and run.dataset.eval_split
    text = name + (f", split {split}" if split else "")
    if found is not None:
        used = sum(1 for row in found.confusion.classes() if row.images)
        text += f": {found.confusion.images:,} images of {used:,} classes"
    if run is not None and run.dataset.train_images:
        text += f"; trained on {run.dataset.train_images:,}"
        text += f" (split {run.dataset.train_split})" if run.dataset.train_split else ""
    yield "Data set", text


def _compared_names(known: Known) -> Iterator[tuple[str, str]]:
    others = [run.name for run in known.runs if run.name != known.own]
    parts = []
    if known.float_accuracy is not None:
        parts.append("the float model that training began from")
    if others:
        parts.append(f"{'run' if len(others) == 1 else 'runs'} {', '.join(others)}")
    if parts:
        yield "Compared with", "; ".join(parts)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _b(count: int) -> str:
    return f"{count:,}"
