"""All weights of a model quantized in one compiled call; `quantized_once` is its plain twin.

A method's formula, run layer by layer, passes a dozen times over each weight, there and back.
torch.compile makes one or two passes of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn.utils import parametrize

from ...nn.trainable import latent_weight, quantizer_of
from ...quantizers.base import Quantizer
from .functional import quantized_once

__all__ = ["CompiledQuantizers"]


class CompiledQuantizers:
    """The quantizers of many layers as one function of ``torch.compile``.

    Compiled at the first use, and anew where thresholds start or stop requiring gradients, or the
    staircase becomes soft or hard: once each, not once a step. Layers with parametrizations of
    somebody else's on top are quantized as ever. Nothing of it belongs to the model.

    Args:
        layers: Layers of training form.
        backend: That of ``torch.compile``.
    """

    def __init__(self, layers: Iterable[nn.Module], backend: Any = "inductor") -> None:
        self._layers: list[Any] = list(layers)
        self._alone = [
            layer for layer in self._layers if len(layer.parametrizations["weight"]) == 1
        ]
        found = [quantizer_of(layer) for layer in self._alone]
        self._quantizers = [quantizer for quantizer in found if quantizer is not None]
        self._compiled = torch.compile(_quantize_all, backend=backend, dynamic=False)

    @contextmanager
    def quantized_once(self) -> Iterator[None]:
        """As `functional.quantized_once` of the layers, in one compiled call.

        Raises:
            ValueError: torch.compile fails, as without a compiler.
        """
        weights = self._weights()
        with parametrize.cached():
            for layer, weight in zip(self._alone, weights, strict=True):
                _remember(layer, weight)
            with quantized_once(self._layers):
                yield

    def _weights(self) -> Sequence[Tensor]:
        latent = [latent_weight(layer) for layer in self._alone]
        try:
            weights: Sequence[Tensor] = self._compiled(self._quantizers, latent)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"torch.compile cannot compile the quantizers ({reason}): install g++ or set CXX, "
                "or leave compile_quantizers out"
            ) from error
        return weights


def _quantize_all(quantizers: Sequence[Quantizer], weights: Sequence[Tensor]) -> list[Tensor]:
    return [quantizer(weight) for quantizer, weight in zip(quantizers, weights, strict=True)]


def _remember(layer: Any, weight: Tensor) -> None:
    """Make `weight` the cached value of ``layer.weight``; inside ``parametrize.cached()``."""
    source = layer.parametrizations["weight"]
    source.forward = lambda: weight
    try:
        _ = layer.weight
    finally:
        del source.forward
