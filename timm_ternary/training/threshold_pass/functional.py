"""The pass that updates thresholds and scales only (He & Fan 2019, Algorithm 1, step 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...quantizers.base import Quantizer

__all__ = [
    "assign_gradients",
    "check_finite",
    "flat_gradient",
    "quantized_once",
    "quantizer_parameters",
    "random_part",
    "rehearsal",
    "resolve_update",
    "switched_on",
]


def quantizer_parameters(quantizers: Mapping[str, Quantizer]) -> dict[str, nn.Parameter]:
    """Thresholds and scales by name, e.g. ``"layer1.0.conv1.threshold"``."""
    return {
        f"{layer}.{name}": parameter
        for layer, quantizer in quantizers.items()
        for name, parameter in quantizer.named_parameters()
    }


def resolve_update(update: str | None, quantizers: Iterable[Quantizer]) -> str:
    """``"alternate"`` or ``"joint"``: what is asked for, else what all quantizers agree on.

    Quantizers without parameters have no say; without a single opinion it is ``"joint"``.
    """
    if update is not None:
        return update
    wishes = {q.update for q in quantizers if next(q.parameters(), None) is not None}
    return wishes.pop() if len(wishes) == 1 else "joint"


def random_part(
    batch: Mapping[str, Any], fraction: float, key: Sequence[int]
) -> tuple[Mapping[str, Any], float]:
    """Some images of a batch, in their order: ``round(fraction * n)``, but at least two.

    (Batch norm in training cannot do with one, where its maps have shrunk to 1 x 1.)

    Args:
        batch: ``pixel_values``, ``(n, ...)``; of the other entries, and of dicts among them,
            tensors of the same n are cut too.
        fraction: 0 < fraction <= 1.
        key: Whole numbers; the same key, the same images.

    Returns:
        The part, and its share of the n images; the batch itself where it is whole.
    """
    n = 0 if fraction == 1 else len(batch["pixel_values"])
    size = max(round(fraction * n), min(n, 2))
    if size == n:
        return batch, 1.0
    generator = np.random.default_rng([number % 2**32 for number in key])
    index = torch.from_numpy(np.sort(generator.choice(n, size, replace=False)))
    return {name: _take(value, index, n) for name, value in batch.items()}, size / n


def _take(value: Any, index: Tensor, n: int) -> Any:
    if isinstance(value, Mapping):
        return {name: _take(entry, index, n) for name, entry in value.items()}
    if isinstance(value, Tensor) and value.ndim and len(value) == n:
        return value[index.to(value.device)]
    return value


@contextmanager
def quantized_once(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, each weight is quantized once however often it is read; nothing is kept afterwards.

    Enclose one forward and one backward pass: the weights' graph lives as long as they do.

    Args:
        layers: The layers of training form.
    """
    with parametrize.cached():
        for layer in layers:
            # Read here, not on first use: activation checkpointing runs parts of the forward pass
            # twice, and must find the same graph both times.
            _ = layer.weight
        yield


@contextmanager
def rehearsal(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, forward passes in training mode leave no statistics and use up no random numbers.

    The pass that follows draws the same dropout masks, and batch norm counts the batch once.
    """
    norms: list[Any] = [m for m in model.modules() if getattr(m, "track_running_stats", False)]
    # Normalization layers without that switch (EvoNorm) write to their buffers.
    owned = {id(b) for m in norms for b in m.buffers(recurse=False)}
    others = [b for b in model.buffers() if b.is_floating_point() and id(b) not in owned]
    copies = [b.clone() for b in others]
    on_cpu = device.type == "cpu"
    kind = "cuda" if on_cpu else device.type
    with torch.random.fork_rng([] if on_cpu else [device], device_type=kind):
        for norm in norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True
            with torch.no_grad():
                for buffer, copy in zip(others, copies, strict=True):
                    buffer.copy_(copy)


@contextmanager
def switched_on(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, `parameters` require gradients; afterwards they do not."""
    parameters = list(parameters)
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def flat_gradient(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Gradients of `loss`, a scalar, with respect to `parameters` only, as one vector ``(n,)``.

    Neither ``.grad`` nor hooks of the weights are touched. Parameters that the loss does not
    depend on have gradient 0.
    """
    gradients = torch.autograd.grad(loss, list(parameters), materialize_grads=True)
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def assign_gradients(parameters: Iterable[nn.Parameter], flat: Tensor) -> None:
    """Write `flat`, ``(n,)``, to the ``.grad`` of `parameters`: the inverse of `flat_gradient`."""
    parameters = list(parameters)
    pieces = flat.split([parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype)


def check_finite(named: Mapping[str, nn.Parameter], flat: Tensor) -> None:
    """Refuse gradients that are not finite.

    Args:
        named: Parameters by name, in the order of `flat`.
        flat: Their gradients, ``(n,)``.

    Raises:
        ValueError: One is infinite or not a number (names the first parameter).
    """
    pieces = flat.split([parameter.numel() for parameter in named.values()])
    for name, piece in zip(named, pieces, strict=True):
        if not torch.isfinite(piece).all():
            raise ValueError(
                f"the gradient of {name} is not finite: lower --learning_rate or "
                f"--threshold_learning_rate, or check the images for NaN"
            )
