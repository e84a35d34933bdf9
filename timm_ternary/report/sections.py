"""What a report says of a model and of its runs, section by section; or what to type for it.

What does not apply (thresholds of a method without, kernels of a model without) is no section.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..checkpoint.evaluation_file import Evaluation
from ..nn.convert import ternary_layers
from ..nn.packed import PackedWeight
from ..nn.summary import ModelSummary
from ..nn.trainable import latent_weight
from . import curves, histograms, kernels, mistakes, scale_curve
from .drawing import png
from .latent import Latent
from .page import Picture, Section, Table
from .runs import Run
from .sizes import Sizes

__all__ = [
    "accuracy",
    "accuracy_against_zeros",
    "codes",
    "confusion",
    "layers",
    "scales",
    "training",
    "weights",
]

# Classes of the table below the confusion matrix: of more, those with the lowest accuracy.
_MOST_ROWS = 40

_REPORT = "timm-ternary report MODEL OUTDIR"
_NO_RUN = f"Left out; type {_REPORT} --run DIR, the output_dir of a training."


def accuracy(runs: Sequence[Run]) -> Section:
    """Accuracy over training."""
    title = "Accuracy over training"
    if not runs:
        return Section(title, _NO_RUN)
    drawing = curves.accuracy_curves(runs)
    if drawing is None:
        text = (
            "Left out: no log holds an accuracy; type timm-ternary train with --eval_strategy epoch"
        )
        return Section(title, text)
    alt = f"Accuracy over the epochs of {', '.join(run.name for run in runs)}"
    text = "Evaluation (solid) and training (dashed)."
    return Section(title, text, (Picture("accuracy.png", alt, png(drawing)),))


def confusion(found: Evaluation | None) -> Section:
    """The confusion matrix, and a table of the classes."""
    title = "Which classes are taken for which"
    if found is None:
        return Section(title, f"Left out; type {_REPORT} --dataset NAME")
    size, rows = len(found.confusion.names), found.confusion.classes()
    shown = [row for row in rows if row.images]
    listed = shown
    if len(shown) > _MOST_ROWS:
        listed = sorted(shown, key=lambda row: row.accuracy or 0)[:_MOST_ROWS]
    matrix = size <= mistakes.MOST_CLASSES
    if matrix:
        text = "Rows are the classes of the images, columns what they were taken for."
    else:
        text = f"The most frequent mistakes among {size:,} classes."
    if len(listed) < len(shown):
        text += f" The table lists the {len(listed)} classes of {len(shown):,} that did worst."
    drawing, pictures = mistakes.figure(found.confusion), tuple[Picture, ...]()
    if drawing is not None:
        alt = "Confusion matrix" if matrix else "Pairs of classes that are taken for one another"
        pictures = (Picture("confusion.png", alt, png(drawing)),)
    cells = tuple(
        (
            row.name,
            f"{row.images:,}",
            f"{row.correct:,}",
            "" if row.accuracy is None else f"{row.accuracy:.1%}",
            row.mistaken_for or "",
        )
        for row in listed
    )
    head = ("class", "images", "correct", "accuracy", "most often taken for")
    return Section(title, text, pictures, Table(head, cells))


def weights(model: nn.Module, summary: ModelSummary, latent: Latent | str | None) -> Section:
    """Histograms: of the latent weights where they are known, else of the values.

    Args:
        latent: Of a packed model; the reason where there is none. None for a trainable one.
    """
    title, names = "Weights", [row.name for row in summary.layers]
    shown = min(len(names), histograms.MOST_LAYERS)
    text = f"{shown} of {len(names)} layers. " if shown < len(names) else ""
    if isinstance(latent, str):
        text += f"The values and how many weights have them. Latent weights: {latent}."
        alt = f"Shares of the ternary values in {shown} layers"
    else:
        text += (
            "Latent weights (blue) and the Gaussian of their mean and deviation (red); thresholds "
            "where the codes change (dashed) and ternary values (green arrows). W is the "
            "Shapiro-Wilk statistic, 1 for a Gaussian."
        )
        alt = f"Histograms of the latent weights of {shown} layers with fitted Gaussians"
        if latent is not None:
            text += f" From {_source(latent)}"
            model = latent.model
    picture = Picture("weights.png", alt, png(histograms.figure(model)))
    return Section(title, text, (picture,))


def scales(model: nn.Module, latent: Latent | str | None) -> Section | None:
    """S as a function of the threshold; None where the method trains none."""
    title = "Scale and threshold"
    if isinstance(latent, str):
        return Section(title, f"Left out: {latent}.")
    found = scale_curve.curves(model if latent is None else latent.model)
    if not found:
        return None
    shown = min(len(found), scale_curve.MOST_LAYERS)
    text = (
        f"The scale S (blue) and its derivative (orange) against the threshold δ, of {shown} of "
        f"{len(found)} layers; dashed: the threshold now. |δ| counts, clipped at 3 "
        "standard deviations. With a scale for each channel: of the first output channel."
    )
    alt = f"Scale and its derivative as functions of the threshold in {shown} layers"
    return Section(title, text, (Picture("scale.png", alt, png(scale_curve.figure(found))),))


def training(runs: Sequence[Run], summary: ModelSummary) -> Section | None:
    """Zeros, thresholds and scales of layers over training, a figure a run."""
    title, pictures = "Layers over training", []
    order = [row.name for row in summary.layers]
    for k, run in enumerate(runs, 1):
        drawing = curves.layers_over_training(run, order)
        if drawing is not None:
            alt = f"Zeros and trained parameters of layers over the epochs of {run.name}"
            pictures.append(Picture(f"training_{k}.png", alt, png(drawing), run.name))
    if not runs:
        return Section(title, _NO_RUN)
    if not pictures:
        return None
    text = (
        "Zeros, as fractions, and the parameters that the method trains; means over the channels. "
        f"Up to {curves.MOST_LAYERS} layers."
    )
    return Section(title, text, tuple(pictures))


def accuracy_against_zeros(runs: Sequence[Run]) -> Section | None:
    """A point a run; None for fewer than two with both numbers, which compare nothing."""
    drawing = curves.accuracy_against_zeros(runs)
    if drawing is None:
        return None
    alt = f"Accuracy against zeros of {', '.join(run.name for run in runs)}"
    picture = Picture("accuracy_zeros.png", alt, png(drawing))
    return Section("Accuracy against zeros", "One point a run, at its end.", (picture,))


def codes(model: nn.Module) -> Section | None:
    """Kernels as tiles; None where no convolution has any larger than 1x1."""
    found = kernels.convolutions(model)
    if not found:
        return None
    shown = min(len(found), kernels.MOST_LAYERS)
    text = (
        f"Codes of {shown} of {len(found)} convolutions larger than 1x1: grey 0, black -1, white "
        f"+1. The first {kernels.TILES} output channels downwards, the first {kernels.TILES} "
        "input channels to the right (depthwise: output channels row by row); of several bases "
        "the first."
    )
    alt = f"Ternary kernels of {shown} convolutions as grey, black and white tiles"
    picture = Picture("kernels.png", alt, png(kernels.figure(found)))
    return Section("Kernels", text, (picture,))


def layers(
    model: nn.Module, summary: ModelSummary, sizes: Sizes, latent: Latent | str | None
) -> Section:
    """The table: zeros, scales, bytes and the normality of every layer; its total is the file's."""
    shown = latent.model if isinstance(latent, Latent) else model
    modules = ternary_layers(shown)
    equal = all(row.pos == row.neg for row in summary.layers)
    rows = tuple(
        (
            row.name,
            "x".join(map(str, row.shape)),
            f"{row.weights:,}",
            f"{row.zeros:.1%}",
            f"{row.pos:.3g}" if equal else "",
            "" if equal else f"{row.pos:.3g}",
            "" if equal else f"{row.neg:.3g}",
            f"{sizes.layers[row.name]:,}",
            f"{row.float_bytes:,}",
            _normality(modules[row.name]),
        )
        for row in summary.layers
    )
    head = (
        *("layer", "shape", "weights", "zeros", "scale", "scale +", "scale -", "bytes"),
        *("bytes in float", "W"),
    )
    packed = sum(sizes.layers[row.name] for row in summary.layers)
    full = sum(row.float_bytes for row in summary.layers)
    rest = (sizes.packed - sizes.header[0] - packed, sizes.full - sizes.header[1] - full)
    blank = ("",) * 6
    foot = [("everything else, in float", *blank, *map(_count, rest), "")]
    if any(sizes.header):
        foot.append(("names, shapes, digests", *blank, *map(_count, sizes.header), ""))
    zeros, count = f"{summary.zeros:.1%}", f"{summary.ternary_weights:,}"
    totals = map(_count, (sizes.packed, sizes.full))
    foot.append(("the whole file", "", count, zeros, "", "", "", *totals, ""))
    text = "Scales are means over the channels."
    if any(row[-1] for row in rows):
        text += (
            " W is the Shapiro-Wilk statistic of the latent weights, 1 for a Gaussian, of at most "
            f"{histograms.SAMPLE:,} weights drawn with a fixed seed."
        )
    return Section("Layers", text, table=Table(head, rows, tuple(foot)))


def _normality(layer: nn.Module) -> str:
    if isinstance(layer, PackedWeight):
        return ""
    found = histograms.normality(latent_weight(layer).detach().float().cpu().numpy())
    return "" if found is None else f"{found:.3f}"


def _count(value: int) -> str:
    return f"{value:,}"


def _source(latent: Latent) -> str:
    if latent.agreement == 1:
        return f"{latent.source}."
    return f"{latent.source}, which shares {latent.agreement:.1%} of the codes with the file."
