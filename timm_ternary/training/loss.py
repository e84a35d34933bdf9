"""The loss of a batch: against the labels, against a teacher, and the methods' own penalties."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn.trainable import latent_weight, quantizer_of
from .distill import distillation_loss

__all__ = ["label_loss", "penalty", "task_loss"]


def label_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy, the mean over the images, a scalar.

    Args:
        logits: ``(n, classes)``.
        labels: Classes ``(n,)``, or probabilities ``(n, classes)``, as of mixup.
        smoothing: ε, 0 to 1: labels become (1 - ε) · labels + ε / classes (Szegedy et al. 2016,
            section 7).

    Raises:
        ValueError: The shapes do not fit, or a class is beyond those of the logits (on a GPU the
            latter ends in torch's own error).
    """
    if labels.ndim > 1 and labels.shape != logits.shape:
        raise ValueError(
            f"labels have the shape {tuple(labels.shape)}, and the logits {tuple(logits.shape)}: "
            "give classes (n,), or probabilities (n, classes)"
        )
    target = labels.to(logits.dtype) if labels.ndim > 1 else labels.long()
    try:
        return F.cross_entropy(logits, target, label_smoothing=smoothing)
    except IndexError as error:  # "Target 7 is out of bounds."
        raise ValueError(
            f"labels lie between {int(target.min())} and {int(target.max())}, but the model has "
            f"the classes 0 … {logits.shape[1] - 1}: {error}"
        ) from error


def task_loss(
    logits: Tensor,
    labels: Tensor | None,
    teacher_logits: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    given: Tensor | None = None,
    alpha: float = 1.0,
    temperature: float = 1.0,
    share: float | Tensor = 1.0,
) -> Tensor:
    """What a model is to learn from a batch, a scalar: L, or with a teacher a·L + (1 - a)·w·D.

    L is the loss against the labels, D = T² · KL(teacher ‖ student) (`distillation_loss`). It
    depends on its arguments alone: nothing is counted, and no layer is penalized.

    Args:
        logits: ``(n, classes)``.
        labels: Classes ``(n,)`` or probabilities ``(n, classes)``; not looked at where L is given.
        teacher_logits: ``(n, classes)``; None: no teacher.
        smoothing: Of the labels, see `label_loss`.
        given: L, a scalar, where a model or function computes it itself; None: `label_loss`.
        alpha: a, 0 to 1.
        temperature: T > 0.
        share: w, the weight of a mean over these images where L is no such mean.

    Raises:
        ValueError: Neither labels nor a loss is given; the teacher has other classes.
    """
    if given is None and labels is None:
        raise ValueError("a batch for training needs labels beside pixel_values, got none")
    loss = label_loss(logits, labels, smoothing) if given is None else given  # type: ignore[arg-type]
    if teacher_logits is None:
        return loss
    soft = distillation_loss(logits, teacher_logits, temperature) * share
    return alpha * loss + (1 - alpha) * soft


def penalty(layers: Iterable[nn.Module]) -> Tensor | None:
    """The sum of the methods' penalties (``Quantizer.penalty``), a scalar; None where none has one.

    A frozen layer has none.

    Args:
        layers: Layers of training form.
    """
    found: list[Tensor] = []
    # By quantizer: layers whose weights are tied share one, and its penalty counts once.
    for quantizer, layer in {quantizer_of(layer): layer for layer in layers}.items():
        if quantizer is None or not latent_weight(layer).requires_grad:
            continue
        own = quantizer.penalty(latent_weight(layer))
        if own is not None:
            found.append(own)
    return torch.stack(found).sum() if found else None
