"""TernaryTrainer: transformers' Trainer with thresholds and weights updated in turn."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.trainable import latent_weight
from . import fsdp as sharded
from . import metrics as monitor
from .callbacks.progress import RefreshQuantizers
from .callbacks.soft_start import SOFT_TEMPERATURE, SoftStart, soft_temperature_at
from .threshold_pass import functional as thresholds
from .threshold_pass.compiled import CompiledQuantizers
from .threshold_pass.projection import projected
from .two_phase_trainer import TwoPhaseTrainer, two_phase

__all__ = ["TernaryTrainer"]


class TernaryTrainer(TwoPhaseTrainer):
    """``transformers.Trainer`` for ternary models; a float model trains as with the Trainer itself.

    Models are plain timm models (``forward(images) -> logits``) or models of transformers
    (``forward(pixel_values, labels)``); batches are dicts of ``pixel_values``,
    ``(n, channels, height, width)``, and ``labels``, ``(n,)`` or probabilities ``(n, classes)``.

    ``update="alternate"`` is Algorithm 1 of He & Fan (2019), at every optimizer step: the
    effective batch (all micro-batches of all processes) first moves the thresholds, then the same
    batches train the weights under the new thresholds. ``update="joint"``: one pass and the
    weights' optimizer for both. Weight decay reaches thresholds and scales in neither.

    A method's own penalty joins the loss of the weights' pass (and the logged loss), and its state
    is refreshed when an epoch begins (``Quantizer.penalty``, ``Quantizer.refresh``).

    Evaluation reports ``eval_accuracy`` (top-1) unless `compute_metrics` is given. A training log
    holds loss, accuracy, threshold_learning_rate, threshold_grad_norm (alternate),
    soft_temperature (during `soft_epochs`), zeros, and for every layer ``zeros/<layer>`` and
    ``<parameter>/<layer>``, as they are after the step.

    Args:
        model: See above.
        args: TernaryTrainingArguments.
        *rest: As ``transformers.Trainer``.
        **options: As ``transformers.Trainer``. A `compute_loss_func` gets a plain model's logits.

    Raises:
        ValueError: Several GPUs in one process, or `args` of another class.
    """

    def __init__(self, model: Any = None, args: Any = None, *rest: Any, **options: Any) -> None:
        super().__init__(model, args, *rest, **options)
        self._compiled: CompiledQuantizers | None = None
        self._group: tuple[list[Any], Any] | None = None
        self._batches = 1
        self._penalized = False
        self.add_callback(RefreshQuantizers(self))
        if self.args.soft_epochs:
            self.add_callback(SoftStart(self))
        self._step_logs: dict[str, float] = {}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``transformers.Trainer.train``.

        Raises:
            ValueError: The model is packed; the arguments do not fit its method; a parameter, or
                a threshold's gradient, is not finite; the data end early or do not suffice.
        """
        try:
            return super().train(*args, **kwargs)
        finally:
            # The alternate update switched them off; the model goes back as it came.
            for parameter in self._thresholds.values():
                parameter.requires_grad_(True)
            for quantizer in self._quantizers.values():
                quantizer.soften(None)
            self._group = None

    def _inspect(self, model: nn.Module) -> None:
        super()._inspect(model)
        if self.args.compile_quantizers:
            self._compiled = CompiledQuantizers(self._layers)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; remembers the effective batch for the threshold pass.

        The pass itself must wait for the first `training_step`: when training resumes, the state
        of the random numbers is restored in between.
        """
        group = super().get_batch_samples(*args, **kwargs)
        self._group = group
        return group

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch; the threshold pass precedes the first one of an effective batch."""
        if self._group is not None:
            (batches, count), self._group = self._group, None
            self._batches = len(batches)
            if self._thresholds:
                rate = float(self.optimizer.param_groups[-1]["lr"])
                self._step_logs["threshold_learning_rate"] = rate
            if self._alternate and self.state.global_step % self.args.threshold_every == 0:
                self._update_thresholds(batches, count)
        self._penalized = True
        try:
            with self._quantized_once():
                loss = super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._penalized = False
        if self._sharded and not self._alternate and self.accelerator.sync_gradients:
            sharded.average_gradients(self._thresholds.values(), self.accelerator)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """As ImageTrainer's; in the weights' pass with the penalties of the layers."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        penalty = self._penalty() if self._penalized else None
        if penalty is None:
            return found
        if self._is_scaled(num_items_in_batch):
            penalty = penalty / self._batches
        return (found[0] + penalty, *found[1:]) if return_outputs else found + penalty

    def _penalty(self) -> Tensor | None:
        """The sum of the layers' penalties, a scalar; None where no method has one."""
        each = (
            quantizer.penalty(latent_weight(layer))
            for quantizer, layer in zip(self._quantizers.values(), self._layers, strict=True)
        )
        found = [penalty for penalty in each if penalty is not None]
        return torch.stack(found).sum() if found else None

    def soften(self, step: int) -> None:
        """Set the temperature of optimizer step `step` in all layers, or end the soft start.

        Raises:
            ValueError: The model is not ternary, or its method has no thresholds.
        """
        if not self._quantizers:
            raise ValueError("soft_epochs is for ternary models, this one is float: leave it out")
        steps = max(round(self.args.soft_epochs * self._steps_per_epoch), 1)
        if steps > self.state.max_steps:
            raise ValueError(
                f"soft_epochs={self.args.soft_epochs!r} are {steps} optimizer steps, but the run "
                f"has {self.state.max_steps}: lower soft_epochs, the rest trains the hard staircase"
            )
        start, end = self.args.soft_temperature or SOFT_TEMPERATURE
        temperature = soft_temperature_at(step, steps, start, end)
        for quantizer in self._quantizers.values():
            quantizer.soften(temperature)
        self._step_logs.pop("soft_temperature", None)
        if temperature is not None:
            self._step_logs["soft_temperature"] = temperature

    def refresh_quantizers(self) -> None:
        """Let every layer's method update its state from the latent weight."""
        for quantizer, layer in zip(self._quantizers.values(), self._layers, strict=True):
            quantizer.refresh(latent_weight(layer))

    def _is_scaled(self, count: Any) -> bool:
        """Whether a loss is the micro-batch's share of the effective batch's already.

        The Trainer's own rule: whoever is told `count` has scaled it; else the Trainer divides.
        """
        told = self.model_accepts_loss_kwargs and count is not None
        return told or self.compute_loss_func is not None

    def _update_thresholds(self, batches: list[Any], count: Any) -> None:
        """Algorithm 1, step 3: move the thresholds by the gradient of the effective batch."""
        parameters = list(self._thresholds.values())
        # Not the wrapped model: its hooks would wait for the weights' gradients.
        model = self.model.train()
        optimizer = two_phase(self.optimizer)
        optimizer.train()
        with thresholds.rehearsal(model, self.args.device), thresholds.switched_on(parameters):
            shares = [
                self._threshold_gradient(model, batch, count, len(batches), self._place(index))
                for index, batch in enumerate(batches)
            ]
        flat = self.accelerator.reduce(torch.stack(shares).sum(0), reduction="mean")
        norm = float(flat.norm())
        self._step_logs["threshold_grad_norm"] = norm
        if not math.isfinite(norm):
            if self.accelerator.scaler is not None:
                # Overflow of float16: the weights' step will be skipped too, and the scale reduced.
                return
            self._check_model()  # what is not finite itself, rather than what follows from it
            thresholds.check_finite(self._thresholds, flat)
        thresholds.assign_gradients(parameters, flat)
        optimizer.step_thresholds()
        for parameter in parameters:
            parameter.grad = None

    def _threshold_gradient(
        self, model: nn.Module, batch: Any, count: Any, batches: int, place: tuple[int, ...]
    ) -> Tensor:
        """Share of one of `batches` micro-batches in the gradient of the thresholds, ``(n,)``."""
        part, kept = thresholds.random_part(
            batch, self.args.threshold_fraction, (self.args.seed, *place)
        )
        # Those left out count for none of the labels: the loss stays a mean over those kept.
        count = count if count is None or kept == 1 else count * kept
        # A copy: label smoothing takes the labels out of it.
        inputs = dict(self._prepare_inputs(part))
        with self._quantized_once(), self._projected():
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs, num_items_in_batch=count)
            if not self._is_scaled(count):
                loss = loss / batches
            scaler = self.accelerator.scaler
            if scaler is None:
                return thresholds.flat_gradient(loss, self._thresholds.values())
            flat = thresholds.flat_gradient(scaler.scale(loss), self._thresholds.values())
            return flat / scaler.get_scale()

    def _quantized_once(self) -> AbstractContextManager[None]:
        # A compiled model would take the cache, a global variable, for part of its graph.
        if self.args.torch_compile or (self._sharded and self.args.gradient_checkpointing):
            return nullcontext()
        if self._compiled is not None:
            return self._compiled.quantized_once()
        # Weights in shards are whole inside the forward pass only: quantized at the first use.
        return thresholds.quantized_once([] if self._sharded else self._layers)

    def _projected(self) -> AbstractContextManager[None]:
        plain = self.args.torch_compile or self._sharded
        return nullcontext() if plain else projected(self._layers)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's; adds to a training log what the class describes."""
        if "loss" in logs:
            logs.update(self._step_logs)
            logs.update(monitor.ternary_statistics(self.model, self._quantizers))
        super().log(logs, start_time)
