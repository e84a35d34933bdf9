"""What a report says of a model and of its runs, section by section; or why there is nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..nn.convert import config_of, ternary_layers
from ..nn.packed import PackedWeight
from ..nn.summary import ModelSummary
from ..nn.trainable import latent_weight
from . import curves, histograms, kernels, scale_curve
from .drawing import png
from .page import Picture, Section, Table
from .runs import Run

__all__ = ["accuracy", "codes", "layers", "scales", "training", "weights"]

_NO_RUN = "No training run was given: type --run with the output_dir of a training."


def _no_latent(model: Any) -> str:
    """Why a packed model has no histogram, and the command that draws those of its training."""
    config = config_of(model)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    size = cfg.get("input_size") or ("C",)
    words = ["timm-ternary", "report", str(cfg.get("architecture", "MODEL")), "OUTDIR"]
    words += ["--checkpoint", "DIR/checkpoint-N/model.safetensors"]
    words += ["--num-classes", str(getattr(model, "num_classes", "N")), "--in-chans", str(size[0])]
    if config is not None:
        words += ["--ternary", json.dumps(config.to_dict())]
    return (
        "The model is packed: a packed file holds codes and scales, no latent weights and no "
        "thresholds. Those of a training are in its checkpoints (--save_strategy epoch): type "
        f"{shlex.join([*words, '--run', 'DIR'])}"
    )


def layers(model: nn.Module, summary: ModelSummary) -> Section:
    """The table: zeros, scales, bytes and the normality of every layer."""
    modules = ternary_layers(model)
    head = ("layer", "shape", "weights", "zeros", "scale +", "scale -", "packed", "float", "W")
    rows = []
    for row in summary.layers:
        module = modules[row.name]
        normality = None
        if not isinstance(module, PackedWeight):
            normality = histograms.normality(latent_weight(module).detach().float().cpu().numpy())
        rows.append(
            (
                row.name,
                "x".join(map(str, row.shape)),
                f"{row.weights:,}",
                f"{row.zeros:.1%}",
                f"{row.pos:.3g}",
                f"{row.neg:.3g}",
                f"{row.packed_bytes:,}",
                f"{row.float_bytes:,}",
                "" if normality is None else f"{normality:.3f}",
            )
        )
    sizes = (sum(row.packed_bytes for row in summary.layers), 4 * summary.ternary_weights)
    count, packed, dense = f"{summary.ternary_weights:,}", f"{sizes[0]:,}", f"{sizes[1]:,}"
    total = ("all", "", count, f"{summary.zeros:.1%}", "", "", packed, dense, "")
    text = (
        "Packed and float are bytes: codes in 2 bits with their scales, and the same weights in "
        "float32. Scales are means over the channels. W is the Shapiro-Wilk statistic of the "
        f"latent weights, 1 for a Gaussian, of at most {histograms.SAMPLE:,} weights drawn with a "
        "fixed seed."
    )
    return Section("Layers", text, table=Table(head, tuple(rows), total))


def weights(model: nn.Module, summary: ModelSummary) -> Section:
    """Histograms."""
    title, names = "Weights", [row.name for row in summary.layers]
    shown = min(len(names), histograms.MOST_LAYERS)
    text = f"{shown} of {len(names)} layers. " if shown < len(names) else ""
    if summary.packed:
        text += "Bars: the values of the weights and how many have them. " + _no_latent(model)
        alt = f"Shares of the ternary values in {shown} layers"
    else:
        text += (
            "Latent weights (blue) and the Gaussian of their mean and deviation (red); thresholds "
            "where the codes change (dashed) and ternary values (green arrows). W: see above."
        )
        alt = f"Histograms of the latent weights of {shown} layers with fitted Gaussians"
    picture = Picture("weights.png", alt, png(histograms.figure(model)))
    return Section(title, text, (picture,))


def scales(model: nn.Module, summary: ModelSummary) -> Section:
    """S as a function of the threshold."""
    title = "Scale and threshold"
    if summary.packed:
        return Section(title, "Left out. " + _no_latent(model))
    found = scale_curve.curves(model)
    if not found:
        text = f"Left out: the method {summary.method} trains no threshold that its scale follows."
        return Section(title, text)
    shown = min(len(found), scale_curve.MOST_LAYERS)
    text = (
        f"The scale S (blue) and its derivative (orange) against the threshold δ, of {shown} of "
        f"{len(found)} layers; dashed: the threshold now. |δ| counts, clipped at 3 "
        "standard deviations. With a scale for each channel: of the first output channel."
    )
    alt = f"Scale and its derivative as functions of the threshold in {shown} layers"
    return Section(title, text, (Picture("scale.png", alt, png(scale_curve.figure(found))),))


def training(runs: Sequence[Run], summary: ModelSummary) -> Section:
    """Zeros, thresholds and scales of layers over training, a figure a run."""
    title, pictures = "Layers over training", []
    order = [row.name for row in summary.layers]
    for k, run in enumerate(runs, 1):
        drawing = curves.layers_over_training(run, order)
        if drawing is not None:
            alt = f"Zeros and trained parameters of layers over the epochs of {run.name}"
            pictures.append(Picture(f"training_{k}.png", alt, png(drawing), run.name))
    if not runs:
        return Section(title, f"Left out. {_NO_RUN}")
    if not pictures:
        return Section(title, "Left out: no log holds anything of single layers.")
    text = (
        "Zeros, as fractions, and the parameters that the method trains; means over the channels. "
        f"Up to {curves.MOST_LAYERS} layers."
    )
    return Section(title, text, tuple(pictures))


def accuracy(runs: Sequence[Run]) -> list[Section]:
    """Accuracies over training, and against zeros."""
    titles = "Accuracy over training", "Accuracy against zeros"
    if not runs:
        return [Section(title, f"Left out. {_NO_RUN}") for title in titles]
    texts = (
        "Evaluation (solid) and training (dashed).",
        "One point a run, at its end.",
    )
    missing = (
        "Left out: no log holds an accuracy.",
        "Left out: it takes two runs or more whose zeros and accuracy are known.",
    )
    names = ", ".join(run.name for run in runs)
    alts = f"Accuracy over the epochs of {names}", f"Accuracy against zeros of {names}"
    drawings = curves.accuracy_curves(runs), curves.accuracy_against_zeros(runs)
    files = "accuracy.png", "accuracy_zeros.png"
    return [
        Section(titles[k], missing[k])
        if drawings[k] is None
        else Section(titles[k], texts[k], (Picture(files[k], alts[k], png(drawings[k])),))
        for k in range(2)
    ]


def codes(model: nn.Module) -> Section:
    """Kernels as tiles."""
    title, found = "Kernels", kernels.convolutions(model)
    if not found:
        return Section(title, "Left out: no convolution has kernels larger than 1x1.")
    shown = min(len(found), kernels.MOST_LAYERS)
    text = (
        f"Codes of {shown} of {len(found)} convolutions larger than 1x1: grey 0, black -1, white "
        f"+1. The first {kernels.TILES} output channels downwards, the first {kernels.TILES} "
        "input channels to the right (depthwise: output channels row by row); of several bases "
        "the first."
    )
    alt = f"Ternary kernels of {shown} convolutions as grey, black and white tiles"
    return Section(title, text, (Picture("kernels.png", alt, png(kernels.figure(found))),))
