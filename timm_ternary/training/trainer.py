"""TernaryTrainer: transformers' Trainer with thresholds and weights updated in turn."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..convert import is_packed, quantizers_of
from ..layers import latent_weight
from ..quantizers.base import Quantizer
from . import monitor, sharded, thresholds
from .callbacks import RefreshQuantizers
from .hub_trainer import HubTrainer
from .optim import (
    TwoPhaseOptimizer,
    create_threshold_optimizer,
    create_timm_optimizer,
    decay_names,
    multi_step_schedule,
    threshold_rate,
)
from .projection import projected
from .soften import SOFT_TEMPERATURE, SoftStart, soft_temperature_at

__all__ = ["TernaryTrainer"]


class TernaryTrainer(HubTrainer):
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

    optimizer: Any
    lr_scheduler: Any

    def __init__(self, model: Any = None, args: Any = None, *rest: Any, **options: Any) -> None:
        super().__init__(model, args, *rest, **options)
        self._quantizers: dict[str, Quantizer] = {}
        self._layers: list[nn.Module] = []
        self._thresholds: dict[str, nn.Parameter] = {}
        self._alternate = self._sharded = False
        self._steps_per_epoch = 0
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

    # Optimizer and schedule

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """One optimizer; thresholds and scales are its last group."""
        model = self.model if model is None else model
        self._inspect(model)
        # Off: not in the weights' groups, and not awaited by the reducer of several processes.
        for parameter in self._thresholds.values():
            parameter.requires_grad_(False)
        if self.optimizer is None:
            self.optimizer = self._weight_optimizer(model)
            self._add_thresholds()
        elif self._alternate and _two_phase(self.optimizer) is None:
            raise ValueError(
                "update='alternate' makes its own optimizers: pass --optimizer and --learning_rate "
                "instead of optimizers=(...), or --update joint"
            )
        if not self._alternate:
            for parameter in self._thresholds.values():
                parameter.requires_grad_(True)
        optimizer: Optimizer = self.optimizer
        return optimizer

    def _inspect(self, model: nn.Module) -> None:
        """Find the ternary layers, and how they are updated."""
        if is_packed(model):
            raise ValueError("a packed model cannot be trained: type timm_ternary.unpack_(model)")
        self._quantizers = quantizers_of(model)
        self._layers = [model.get_submodule(name) for name in self._quantizers]
        found = thresholds.quantizer_parameters(self._quantizers)
        self._thresholds = {name: p for name, p in found.items() if p.requires_grad}
        update = thresholds.resolve_update(self.args.update, self._quantizers.values())
        self._alternate = bool(self._thresholds) and update == "alternate"
        if self._thresholds and not self._alternate:
            self.args.check_joint()
        if self._quantizers:
            own = self._quantizers.values()
            self._sharded = sharded.check_sharded(self.accelerator, own, update)
            if self._sharded:
                sharded.keep_whole(self.accelerator, own)

    def _weight_optimizer(self, model: nn.Module) -> Optimizer:
        if self.args.optimizer is not None and self.optimizer_cls_and_kwargs is None:
            return create_timm_optimizer(self.args, model, self.get_decay_parameter_names(model))
        optimizer: Optimizer = super().create_optimizer(model)
        return optimizer

    def _add_thresholds(self) -> None:
        parameters = list(self._thresholds.values())
        if self._alternate:
            second = create_threshold_optimizer(self.args, parameters)
            self.optimizer = TwoPhaseOptimizer(self.optimizer, second)
        elif parameters:
            self.optimizer.add_param_group(
                {"params": parameters, "lr": threshold_rate(self.args), "weight_decay": 0.0}
            )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Parameters that weight decay reaches: timm's rule; never thresholds and scales."""
        return decay_names(model, thresholds.quantizer_parameters(quantizers_of(model)).values())

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """As the Trainer's; remembers the optimizer steps of an epoch.

        Raises:
            ValueError: `lr_milestones` or `soft_epochs` count epochs of a data set without a
                length.
        """
        for name in ("lr_milestones", "soft_epochs"):
            if getattr(self.args, name) and not hasattr(self.train_dataset, "__len__"):
                raise ValueError(
                    f"{name} count epochs, and this data set has no length: leave {name} out, or "
                    "use a data set with a length"
                )
        values = super().set_initial_training_values(args, dataloader)
        self._steps_per_epoch = values[1]
        return values

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """The schedule of `lr_milestones` if given, else the Trainer's."""
        if self.lr_scheduler is None and self.args.lr_milestones is not None:
            self.lr_scheduler = multi_step_schedule(
                self.optimizer if optimizer is None else optimizer,
                [round(epoch * self._steps_per_epoch) for epoch in self.args.lr_milestones],
                self.args.lr_gamma,
                self.args.get_warmup_steps(num_training_steps),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # The training step

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
        steps = round(self.args.soft_epochs * self._steps_per_epoch)
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
        optimizer = _two_phase(self.optimizer)
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


def _two_phase(optimizer: Any) -> Any:
    """The TwoPhaseOptimizer inside accelerate's wrappers, or None."""
    while optimizer is not None and not isinstance(optimizer, TwoPhaseOptimizer):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer
