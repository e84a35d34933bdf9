"""The methods' own state, refreshed between two epochs."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from ...nn.convert import quantizers_of
from ...nn.trainable import latent_weight

__all__ = ["RefreshQuantizers", "refresh_quantizers"]


def refresh_quantizers(model: nn.Module) -> None:
    """Let every layer's method update its state from the latent weight (``Quantizer.refresh``).

    But for frozen layers: their weight would change with it.
    """
    for name, quantizer in quantizers_of(model).items():
        weight = latent_weight(model.get_submodule(name))
        if weight.requires_grad:
            quantizer.refresh(weight)


class RefreshQuantizers(TrainerCallback):
    """Has the methods refresh their state between two epochs, also where a run resumes there."""

    def __init__(self) -> None:
        self._ended = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """No epoch has ended in this run."""
        self._ended = False

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Refresh, but for the first epoch, and where a run resumes within an epoch."""
        epoch = state.epoch or 0
        resumed_between = state.global_step > 0 and abs(epoch - round(epoch)) < 1e-6
        if self._ended or resumed_between:
            refresh_quantizers(model)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The next one begins with a refresh: what is saved now is as the epoch left it."""
        self._ended = True
