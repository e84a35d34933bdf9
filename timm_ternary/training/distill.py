"""Distillation: a student learns from the labels and from a trained, frozen teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.task.distillation import DistillationTeacher
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.names import load_model
from ..nn.timm_wrapper import unwrap

__all__ = ["TEACHER_LOGITS", "Teacher", "class_count", "distillation_loss", "load_teacher"]

TEACHER_LOGITS = "teacher_logits"
"""Key of a batch under which the teacher's logits, ``(n, classes)``, travel to both passes."""


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the images.

    The soft part of scheme B of Apprentice (Mishra & Marr 2018, arXiv:1711.05852); T² keeps its
    gradient as large at any T (Hinton, Vinyals & Dean 2015, section 2). The same values as
    ``timm.task.LogitDistillationTask``, which owns the student's forward pass and so cannot serve
    two passes over one batch.

    Args:
        logits: Of the student, ``(n, classes)``.
        teacher_logits: ``(n, classes)``.
        temperature: T > 0.

    Raises:
        ValueError: The shapes differ.
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"the teacher has {teacher_logits.shape[-1]} classes, but the student has "
            f"{logits.shape[-1]}: type --teacher of a model for the same classes"
        )
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class Teacher:
    """A frozen model in evaluation mode; no part of the student, of its files or of an optimizer.

    Args:
        model: The teacher, ``forward(images) -> logits``.
        cfg: timm's pretrained_cfg of the student: images come normalized by its mean and std.
        device: Where to run.
    """

    def __init__(self, model: nn.Module, cfg: Mapping[str, Any], device: torch.device) -> None:
        self.model = DistillationTeacher(model.requires_grad_(False).to(device), device=device)
        self._from: tuple[Tensor, Tensor] | None = None
        own = _cfg(model)
        differs = any(tuple(cfg.get(k) or ()) != tuple(own.get(k) or ()) for k in ("mean", "std"))
        if differs and cfg.get("mean") and cfg.get("std"):
            mean, std = (torch.tensor(cfg[k], device=device) for k in ("mean", "std"))
            self._from = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of images ``(n, channels, height, width)`` of the student."""
        if self._from is not None:
            images = self.model.normalize_input(images, *self._from)
        logits: Tensor = self.model.eval()(images)
        return logits.detach()


def load_teacher(name: str, student: nn.Module, device: torch.device) -> Teacher:
    """The teacher that `name` names, checked against the student.

    Args:
        name: A timm name (its published weights), a directory, ``local-dir:PATH``, ``hf-hub:ID``.
        student: The model that is trained.
        device: Where to run.

    Raises:
        ValueError: No such model, no weights; other classes, channels or image size. One line.
    """
    model = load_model(name, pretrained=True)
    cfg = _cfg(student)
    _check_classes(name, model, student)
    size, own = tuple(cfg.get("input_size") or ()), tuple(_cfg(model).get("input_size") or ())
    if size and own and size[0] != own[0]:
        raise ValueError(
            f"teacher {name!r} takes images of {own[0]} channels, but the student of {size[0]}"
        )
    if size and own and _cfg(model).get("fixed_input_size") and size != own:
        raise ValueError(
            f"teacher {name!r} takes images of {own[-1]} pixels only, but the student sees "
            f"{size[-1]}: type --image_size {own[-1]}, or another --teacher"
        )
    return Teacher(model, cfg, device)


def class_count(model: nn.Module) -> int | None:
    """Classes of a model of timm or transformers; None where it does not say."""
    number = getattr(model, "num_classes", None)
    if number is None:
        number = getattr(getattr(model, "config", None), "num_labels", None)
    return number if isinstance(number, int) else None


def _check_classes(name: str, teacher: nn.Module, student: nn.Module) -> None:
    theirs, ours = class_count(teacher), class_count(student)
    if theirs is not None and ours is not None and theirs != ours:
        raise ValueError(
            f"teacher {name!r} has {theirs} classes, but the student has {ours}: "
            "type --teacher of a model that was trained on the same classes"
        )
    known, wanted = (list(_cfg(m).get("label_names") or ()) for m in (teacher, student))
    if not known or not wanted:
        return
    for index, (one, other) in enumerate(zip(known, wanted, strict=False)):
        if str(one) != str(other):
            raise ValueError(
                f"class {index} of teacher {name!r} is {one!r}, but of the student {other!r}: "
                "type --teacher of a model that was trained on the same classes, in this order"
            )


def _cfg(model: nn.Module) -> dict[str, Any]:
    """timm's pretrained_cfg of a model, or of the one in transformers' wrapper."""
    return dict(getattr(unwrap(model), "pretrained_cfg", None) or {})
