"""What the training log says beside the loss: accuracy, zeros, thresholds and scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from ..nn.trainable import latent_weight
from ..quantizers.base import Quantizer
from .batches import IGNORED
from .fsdp import whole

__all__ = [
    "Accuracy",
    "Top1",
    "names_one_class",
    "predicted_class",
    "ternary_statistics",
]


def names_one_class(labels: Any) -> Tensor | None:
    """Whether each row of labels ``(n, classes)`` is a distribution over the classes, ``(n,)``.

    Classes as one-hot vectors, or as mixup and distillation spread them, are; the labels of a
    multi-label task, of which an image has none or several, are not. None for labels of other
    shapes.
    """
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.shape[1] < 2:
        return None
    rows = labels.float()
    # Half precision rounds the parts, and their sum.
    return (rows >= 0).all(1) & ((rows.sum(1) - 1).abs() < 0.02)


def _counts(found: Any, labels: Any) -> Tensor | None:
    """Hits, images, and images that are not of one class, ``(3,)``; None: there is no accuracy.

    Args:
        found: Logits ``(n, classes)`` or classes ``(n,)``.
        labels: Classes ``(n,)``, of which those that the loss passes over do not count, or one row
            ``(n, classes)`` an image.
    """
    if not isinstance(found, Tensor) or not isinstance(labels, Tensor):
        return None  # several of either
    if labels.ndim == 0 or found.ndim == 0 or len(found) != len(labels):
        return None
    found = predicted_class(found, labels)
    single = names_one_class(labels)
    if single is not None:
        labels = labels.argmax(1)
    for classes in (found, labels):
        if classes.ndim != 1 or classes.is_floating_point():
            return None  # a number or a map to find, not a class
    hits = (found == labels).sum()
    images = (labels != IGNORED).sum()
    strange = torch.zeros_like(hits) if single is None else (~single).sum()
    return torch.stack([hits, images, strange]).double()


class Accuracy:
    """Top-1 accuracy over a window of batches, counted on the device without waiting for it.

    Labels ``(n, classes)`` that are no distributions over the classes are those of a multi-label
    task, which has no accuracy: from then on there is none.
    """

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._none = False

    @torch.no_grad()
    def add(self, logits: Any, labels: Any) -> None:
        """Count a batch: logits ``(n, classes)``; labels ``(n,)``, or as probabilities.

        Of outputs and labels of other kinds nothing is counted.
        """
        counts = None if self._none else _counts(logits, labels)
        if counts is not None:
            self._counts = counts if self._counts is None else self._counts + counts

    def peek(self) -> float | None:
        """The accuracy since the last `take`, 0 to 1, in this process; None without a batch."""
        if self._counts is None:
            return None
        hits, total, strange = self._counts.tolist()
        return None if strange else hits / max(total, 1.0)

    def take(self, accelerator: Any) -> float | None:
        """The accuracy since the last call, 0 to 1, over all processes; None without any."""
        if self._counts is None:
            return None
        hits, total, strange = accelerator.reduce(self._counts, reduction="sum").tolist()
        self._counts, self._none = None, strange > 0
        return None if self._none else hits / max(total, 1.0)


@torch.no_grad()
def ternary_statistics(model: nn.Module, quantizers: Mapping[str, Quantizer]) -> dict[str, float]:
    """Zeros and parameters of every layer as they are now.

    Returns:
        ``zeros``: fraction of all codes that are zero; ``zeros/<layer>``: of one layer;
        ``<parameter>/<layer>``, e.g. ``threshold/conv1``: its value, the mean over the channels.
    """
    if not quantizers:
        return {}
    zeros, totals, values = [], [], {}
    for name, quantizer in quantizers.items():
        layer = model.get_submodule(name)
        codes = quantizer.encode(whole(latent_weight(layer))).codes
        zeros.append((codes == 0).sum())
        totals.append(codes.numel())
        for parameter, value in quantizer.named_parameters():
            values[f"{parameter}/{name}"] = value.mean().double()
    # One transfer from the device, not one a layer.
    counts = torch.stack([*(z.double() for z in zeros), *values.values()]).tolist()
    fractions = [c / max(t, 1) for c, t in zip(counts, totals, strict=False)]
    return {
        "zeros": sum(counts[: len(totals)]) / max(sum(totals), 1),
        **{f"zeros/{name}": f for name, f in zip(quantizers, fractions, strict=True)},
        **dict(zip(values, counts[len(totals) :], strict=True)),
    }


def predicted_class(logits: Any, labels: Any) -> Any:
    """The best class, ``(n,)``: what is kept of logits ``(n, classes)`` to count the hits.

    Of several outputs that of the first; an output of another shape is kept as it is.
    """
    first = logits[0] if isinstance(logits, (tuple, list)) and logits else logits
    of_classes = isinstance(first, Tensor) and first.ndim == 2 and first.shape[1] > 1
    return first.argmax(1) if of_classes else first


class Top1:
    """``compute_metrics`` of a classifier: ``accuracy``, 0 to 1, where images have one class each.

    A multi-label task, and labels or outputs of other kinds, have none: nothing is reported.
    """

    def __init__(self) -> None:
        self._batches: list[Tensor | None] = []

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """``accuracy`` from classes ``(n,)`` or logits ``(n, classes)``.

        Args:
            prediction: Arrays or tensors, of all images or of a batch; lists of them, one a batch
                (``eval_do_concat_batches=False``).
            compute_result: Whether this is the last batch (``batch_eval_metrics``).
        """
        found, labels = prediction.predictions, prediction.label_ids
        if not (isinstance(found, list) and isinstance(labels, list)):
            found, labels = [found], [labels]
        for one, truth in zip(found, labels, strict=True):
            first = one[0] if isinstance(one, tuple) and one else one
            self._batches.append(_counts(_tensor(first), _tensor(truth)))
        if not compute_result:
            return {}
        batches, self._batches = self._batches, []
        counts = [batch for batch in batches if batch is not None]
        if not counts or len(counts) < len(batches):
            return {}
        hits, images, strange = torch.stack(counts).sum(0).tolist()
        return {} if strange or not images else {"accuracy": hits / images}


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
