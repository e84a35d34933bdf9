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
from .fsdp import whole

__all__ = [
    "Accuracy",
    "predicted_class",
    "ternary_statistics",
    "top1",
]


class Accuracy:
    """Top-1 accuracy over a window of batches, counted on the device without waiting for it."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits ``(n, classes)``; labels ``(n,)``, or as probabilities."""
        if labels.ndim == logits.ndim:
            labels = labels.argmax(-1)
        hits = (logits.argmax(-1) == labels).sum()
        counts = torch.stack([hits, torch.full_like(hits, labels.numel())]).double()
        self._counts = counts if self._counts is None else self._counts + counts

    def take(self, accelerator: Any) -> float | None:
        """The accuracy since the last call, 0 to 1, over all processes; None without a batch."""
        if self._counts is None:
            return None
        hits, total = accelerator.reduce(self._counts, reduction="sum").tolist()
        self._counts = None
        return hits / max(total, 1.0)


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


def predicted_class(logits: Any, labels: Tensor) -> Tensor:
    """The best class, ``(n,)``: what is kept of the logits, ``(n, classes)``, to count the hits."""
    return (logits[0] if isinstance(logits, (tuple, list)) else logits).argmax(-1)


def top1(prediction: EvalPrediction) -> dict[str, float]:
    """``accuracy``, 0 to 1, from classes ``(n,)`` or logits ``(n, classes)``."""
    found, labels = prediction.predictions, prediction.label_ids
    if isinstance(found, tuple):
        found = found[0]
    if found.ndim > 1:
        found = found.argmax(-1)
    return {"accuracy": float(np.mean(found == labels))}
