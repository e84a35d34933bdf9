"""mixup and cutmix: batches of pairs of images, with the labels of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments.trainer import TernaryTrainingArguments
from .distill import class_count

__all__ = ["Mixer", "mixer_for"]


class Mixer:
    """timm's Mixup for batches of the Trainer; what it draws depends on `key` alone.

    mixup (Zhang et al. 2018, arXiv:1710.09412): ``λ · image + (1 - λ) · other``; cutmix (Yun et
    al. 2019, arXiv:1905.04899): a box of the other. λ ~ Beta(alpha, alpha) once a batch; with both
    on, either with probability 1/2. Labels become probabilities in the same shares.

    Args:
        mixup: alpha of mixup; 0 turns it off.
        cutmix: alpha of cutmix; 0 turns it off.
        classes: The number of classes.
        seed: Of the run.
    """

    def __init__(self, *, mixup: float, cutmix: float, classes: int, seed: int) -> None:
        self.classes, self.seed = classes, seed
        # Labels come as probabilities already; the loss smooths them.
        self._mixup = Mixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            label_smoothing=0.0,
            num_classes=classes,
            multi_label=True,
        )

    def __call__(self, batch: dict[str, Any], key: tuple[int, ...]) -> dict[str, Any]:
        """The mixed batch; `batch` itself stays as it is.

        Args:
            batch: ``pixel_values`` ``(n, channels, height, width)`` and ``labels``, ``(n,)`` or
                probabilities ``(n, classes)``. The last image of an odd number stays as it is.
            key: Where in the run: the same key, the same mixture.

        Returns:
            ``labels`` are probabilities, float32 ``(n, classes)``.
        """
        images, labels = batch["pixel_values"], batch["labels"]
        if labels.ndim == 1:
            labels = F.one_hot(labels.long(), self.classes)
        labels = labels.float()
        even = len(images) - len(images) % 2
        if even:
            mixed = self._draw(images[:even].clone(), labels[:even], key)
            images = torch.cat([mixed[0], images[even:]])
            labels = torch.cat([mixed[1].to(labels), labels[even:]])
        return {**batch, "pixel_values": images, "labels": labels}

    def _draw(self, images: Tensor, labels: Tensor, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """timm draws from numpy's global state, which others draw from too."""
        state = np.random.get_state()
        np.random.seed([self.seed % 2**32, *key])
        try:
            mixed: tuple[Tensor, Tensor] = self._mixup(images, labels)
        finally:
            np.random.set_state(state)
        return mixed


def mixer_for(model: nn.Module, args: TernaryTrainingArguments, *, plain: bool) -> Mixer:
    """The Mixer that `mixup`, `cutmix` and `seed` ask for.

    Args:
        model: Says how many classes there are.
        args: See above.
        plain: Whether it takes images and gives logits; a model of transformers takes labels too,
            as classes only.

    Raises:
        ValueError: The model is none of timm.
    """
    classes = class_count(model)
    if classes is None or not plain:
        raise ValueError(
            "mixup and cutmix need a model of timm, whose num_classes says how many "
            f"classes there are, got {type(model).__name__}: leave them out"
        )
    return Mixer(mixup=args.mixup, cutmix=args.cutmix, classes=classes, seed=args.seed)
