"""ThresholdPass: what the pass of the thresholds needs, and its gradient and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.convert import is_packed, quantizers_of
from ...quantizers.base import Quantizer
from ..arguments.trainer import TernaryTrainingArguments
from ..fsdp import average_gradients, check_sharded, keep_whole
from ..optim import TwoPhaseOptimizer
from . import functional
from .compiled import CompiledQuantizers
from .projection import projected

__all__ = ["ThresholdPass"]


class ThresholdPass:
    """The thresholds and scales of a model, and how one effective batch moves them.

    `gradient` and `step` are Algorithm 1, step 3, of He & Fan (2019). Where thresholds and weights
    are updated jointly, or there are none, neither is called; `average_joint` and `quantized_once`
    serve that one pass too.

    Args:
        model: Before anything wraps it or lays it in shards.
        args: `update`, `threshold_fraction`, `compile_quantizers`, and what goes with them.
        accelerator: Of the Trainer: averages over processes, scales losses in float16.

    Attributes:
        quantizers: By the names of their layers; empty for a float model.
        layers: The layers of training form, in that order.
        parameters: Thresholds and scales that are trained, by name.
        alternate: Whether they have a pass of their own.

    Raises:
        ValueError: The model is packed; the arguments do not fit its method.
    """

    quantizers: dict[str, Quantizer]
    layers: list[nn.Module]
    parameters: dict[str, nn.Parameter]
    alternate: bool

    def __init__(self, model: nn.Module, args: TernaryTrainingArguments, accelerator: Any) -> None:
        if is_packed(model):
            raise ValueError("a packed model cannot be trained: type timm_ternary.unpack_(model)")
        self._args, self._accelerator = args, accelerator
        self.quantizers = quantizers_of(model)
        self.layers = [model.get_submodule(name) for name in self.quantizers]
        found = functional.quantizer_parameters(self.quantizers)
        self.parameters = {name: p for name, p in found.items() if p.requires_grad}
        own = list(self.quantizers.values())
        update = functional.resolve_update(args.update, own)
        self.alternate = bool(self.parameters) and update == "alternate"
        if self.parameters and not self.alternate:
            args.check_joint()
        self._sharded = bool(own) and check_sharded(accelerator, own, update)
        if self._sharded:
            keep_whole(accelerator, own)
        self._compiled = CompiledQuantizers(self.layers) if args.compile_quantizers else None

    def switch(self, on: bool) -> None:
        """Let thresholds and scales require gradients, or not."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(on)

    def gradient(
        self,
        model: nn.Module,
        batches: Sequence[Mapping[str, Any]],
        share_of_loss: Callable[[Mapping[str, Any], float], Tensor],
        place: Callable[[int], tuple[int, ...]],
    ) -> Tensor:
        """The gradient of the effective batch, ``(n,)``: all micro-batches of all processes.

        The weights' ``.grad``, the statistics and the random numbers are left as they are.

        Args:
            model: In training mode, and not wrapped: the hooks of a wrapper would wait for the
                weights' gradients.
            batches: The micro-batches of this process.
            share_of_loss: From a part of a micro-batch, and how much of it that is (0 to 1), to
                its share in the loss of the effective batch of this process, a scalar.
            place: From the index of a micro-batch to where in the run it is.
        """
        held = functional.switched_on(self.parameters.values())
        with functional.rehearsal(model, self._args.device), held:
            shares = [
                self._micro_batch(batch, share_of_loss, place(index))
                for index, batch in enumerate(batches)
            ]
        flat: Tensor = self._accelerator.reduce(torch.stack(shares).sum(0), reduction="mean")
        return flat

    def _micro_batch(
        self,
        batch: Mapping[str, Any],
        share_of_loss: Callable[[Mapping[str, Any], float], Tensor],
        place: tuple[int, ...],
    ) -> Tensor:
        fraction = self._args.threshold_fraction
        part, kept = functional.random_part(batch, fraction, (self._args.seed, *place))
        parameters = self.parameters.values()
        with self.quantized_once(), self._projected():
            loss = share_of_loss(part, kept)
            scaler = self._accelerator.scaler
            if scaler is None:
                return functional.flat_gradient(loss, parameters)
            return functional.flat_gradient(scaler.scale(loss), parameters) / scaler.get_scale()

    def step(self, optimizer: TwoPhaseOptimizer, flat: Tensor) -> None:
        """Move thresholds and scales by their gradient `flat`, ``(n,)``."""
        functional.assign_gradients(self.parameters.values(), flat)
        optimizer.step_thresholds()
        for parameter in self.parameters.values():
            parameter.grad = None

    def average_joint(self) -> None:
        """Average the ``.grad`` of a joint update over processes where no wrapper does: FSDP2."""
        if self._sharded and not self.alternate:
            average_gradients(self.parameters.values(), self._accelerator)

    def quantized_once(self) -> AbstractContextManager[None]:
        """Around one forward and one backward pass: each weight is quantized once."""
        # A compiled model would take the cache, a global variable, for part of its graph.
        if self._args.torch_compile or (self._sharded and self._args.gradient_checkpointing):
            return nullcontext()
        if self._compiled is not None:
            return self._compiled.quantized_once()
        # Weights in shards are whole inside the forward pass only: quantized at the first use.
        return functional.quantized_once([] if self._sharded else self.layers)

    def _projected(self) -> AbstractContextManager[None]:
        plain = self._args.torch_compile or self._sharded
        return nullcontext() if plain else projected(self.layers)
