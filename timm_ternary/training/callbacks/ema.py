"""The moving average of the latent weights: evaluated, saved in checkpoints, and what remains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from transformers import TrainerCallback

from ...errors.foreign import foreign
from ...files import atomic_write

__all__ = ["EMA_NAME", "EmaCallback"]

EMA_NAME = "ema.safetensors"
"""The file of a checkpoint directory that holds the average."""


class EmaCallback(TrainerCallback):
    """timm's ModelEmaV3 of the latent weights, the thresholds and scales, and the statistics.

    After every optimizer step, ``average = decay · average + (1 - decay) · model``; after the
    first one the average is the model. Quantizing the averaged latent weights by the averaged
    thresholds gives the ternary model that `swapped` shows, and that training leaves behind.

    Args:
        decay: 0 to 1.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._ema: ModelEmaV3 | None = None
        self._pending: dict[str, Tensor] | None = None

    @property
    def average(self) -> nn.Module | None:
        """The model that holds the average; None while no training goes on."""
        return None if self._ema is None else self._ema.module

    def resume_from(self, directory: str | Path) -> None:
        """Let the training that begins next continue the average of this checkpoint.

        Raises:
            ValueError: The checkpoint holds none, or it cannot be read.
        """
        self._pending = _read(Path(directory))

    def save(self, directory: str | Path) -> None:
        """Write the average to a checkpoint's directory; nothing while there is none."""
        if self._ema is None:
            return
        state = self._ema.module.state_dict()
        # A copy of each: safetensors refuses tensors that share memory.
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
        with atomic_write(Path(directory) / EMA_NAME, lambda path: save_file(tensors, path)):
            pass

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` holds the average; afterwards its own values again, to the last bit."""
        if self._ema is None:
            yield
            return
        own = {name: value.clone() for name, value in model.state_dict().items()}
        _assign(model, self._ema.module.state_dict())
        try:
            yield
        finally:
            _assign(model, own)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Start from the model as it is, or from the checkpoint that training resumes from."""
        self._ema = ModelEmaV3(model, decay=self.decay)
        if self._pending is not None:
            pending, self._pending = self._pending, None
            _assign(self._ema.module, pending)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Average in the step's result."""
        if self._ema is not None:
            self._ema.update(model, step=state.global_step)

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """Leave the average in the model: of the best checkpoint where that is asked for."""
        if self._ema is None:
            return
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        _assign(model, self._ema.module.state_dict() if best is None else _read(Path(best)))
        self._ema = None


def _read(directory: Path) -> dict[str, Tensor]:
    path = directory / EMA_NAME
    if not path.is_file():
        raise ValueError(
            f"{directory} holds no {EMA_NAME}: it was trained without ema_decay; leave ema_decay "
            "out, or start from its weights by --checkpoint"
        )
    with foreign(f"cannot read {path}"):
        tensors: dict[str, Tensor] = load_file(path)
    return tensors


@torch.no_grad()
def _assign(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy `values` into the tensors of `model`, in place: an optimizer keeps its parameters."""
    state = model.state_dict()
    strange = sorted(
        name
        for name in state.keys() | values.keys()
        if name not in state or name not in values or state[name].shape != values[name].shape
    )
    if strange:
        raise ValueError(f"{EMA_NAME} belongs to another model: {strange[0]} differs")
    for name, value in state.items():
        value.copy_(values[name])
