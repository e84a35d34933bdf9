"""The main job on bundled data: float training, ternary training, packing, loading back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..checkpoint.directory import load_packed
from ..checkpoint.run_files import FIGURE_NAME, METRICS_NAME
from ..checkpoint.weights_file import WEIGHTS_NAME
from ..files import bundled, write_json
from ..nn.select import HOSTS
from ..nn.summary import summarize
from ..report import weight_histograms
from ..training.arguments.recipe import parse
from ..training.run import ARGUMENTS, Run, fit

__all__ = ["QuickstartMetrics", "quickstart"]


@dataclass(frozen=True)
class QuickstartMetrics:
    """What `quickstart` measured; metrics.json holds the same.

    Attributes:
        float_accuracy, ternary_accuracy, reloaded_accuracy: Top-1 on the held-out images, 0 to 1.
        float_bytes, packed_bytes: Sizes of the two model.safetensors files.
        zeros: Fraction of zero codes over all ternary layers.
        ternary_layers, layers: Ternary layers, and convolutions and linear layers in all.
        seconds: Wall time.
    """

    float_accuracy: float
    ternary_accuracy: float
    reloaded_accuracy: float
    float_bytes: int
    packed_bytes: int
    zeros: float
    ternary_layers: int
    layers: int
    seconds: float


def quickstart(
    output: str | Path = "timm-ternary-quickstart", say: Callable[[str], object] = print
) -> QuickstartMetrics:
    """Train a CIFAR-style ResNet on scikit-learn's handwritten digits, float and then ternary.

    Writes ``float/`` and ``ternary/`` (directories that timm loads; the second packed),
    ``metrics.json`` and ``weights.png``, the latent weights with their thresholds (also in
    ``ternary/``, for its card). An earlier result in `output` is replaced.

    Args:
        output: Directory to write, made if need be.
        say: Called with a line before each step.

    Returns:
        What was measured on the held-out digits.
    """
    # Networks for 8x8 images leave a second thread nothing but waiting: on a busy machine two
    # threads took 70 and 137 s, one 48 and 60 (interleaved, 2 cores, torch 2.15).
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _quickstart(Path(output), say)
    finally:
        torch.set_num_threads(threads)


def _quickstart(output: Path, say: Callable[[str], object]) -> QuickstartMetrics:
    start = time.perf_counter()
    say("1/3  float training on handwritten digits")
    first = _fit("float", output / "float")
    say("2/3  ternary training: thresholds and weights in turn")
    second = _fit("tga", output / "ternary", "--checkpoint", str(output / "float"))
    figure = weight_histograms(second.model, output / FIGURE_NAME)
    shutil.copyfile(figure, output / "ternary" / FIGURE_NAME)
    say("3/3  loading the packed directory back")
    reloaded = load_packed(output / "ternary")  # `fit` has measured its accuracy
    summary = summarize(reloaded)
    metrics = QuickstartMetrics(
        float_accuracy=first.metrics["eval_accuracy"],
        ternary_accuracy=second.metrics["eval_accuracy"],
        reloaded_accuracy=second.metrics["reloaded_accuracy"],
        float_bytes=(output / "float" / WEIGHTS_NAME).stat().st_size,
        packed_bytes=(output / "ternary" / WEIGHTS_NAME).stat().st_size,
        zeros=summary.zeros,
        ternary_layers=len(summary.layers),
        layers=sum(isinstance(module, HOSTS) for module in reloaded.modules()),
        seconds=time.perf_counter() - start,
    )
    write_json(output / METRICS_NAME, asdict(metrics))
    return metrics


def _fit(method: str, directory: Path, *options: str) -> Run:
    """Run the bundled recipe digits/resnet8_`method`."""
    recipe = bundled(f"recipes/digits/resnet8_{method}.yaml")
    words = [str(recipe), "--output_dir", str(directory)]
    return fit(*parse([*words, *options], *ARGUMENTS))
