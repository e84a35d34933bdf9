"""TernaryTrainer: transformers' Trainer with thresholds and weights updated in turn."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput

from ..convert import is_packed, quantizers_of
from ..quantizers.base import Quantizer
from . import monitor, thresholds
from .optim import (
    TwoPhaseOptimizer,
    create_threshold_optimizer,
    create_timm_optimizer,
    decay_names,
    multi_step_schedule,
    threshold_rate,
)
from .training_arguments import TernaryTrainingArguments

__all__ = ["TernaryTrainer"]


class TernaryTrainer(Trainer):
    """``transformers.Trainer`` for ternary models; a float model trains as with the Trainer itself.

    Models are plain timm models (``forward(images) -> logits``) or transformers' models
    (``forward(pixel_values, labels)``); batches are dicts of ``pixel_values``,
    ``(n, channels, height, width)``, and ``labels``, ``(n,)`` or probabilities ``(n, classes)``.

    ``update="alternate"`` is Algorithm 1 of He & Fan (2019), at every optimizer step: the
    effective batch (all micro-batches of all processes) first moves the thresholds, then the same
    batches train the weights under the new thresholds. ``update="joint"``: one pass, one optimizer.

    Evaluation reports ``eval_accuracy`` (top-1) unless `compute_metrics` is given. Training logs
    hold loss, accuracy, threshold_learning_rate, threshold_grad_norm (alternate), zeros, and for
    every layer ``zeros/<layer>`` and its thresholds or scales, after the step.

    Args:
        model: The model; see above.
        args: TernaryTrainingArguments.
        *rest: As ``transformers.Trainer``.
        **options: As ``transformers.Trainer``. A `compute_loss_func` gets the logits of a plain model.

    Raises:
        ValueError: Several GPUs in one process.
    """

    args: TernaryTrainingArguments

    def __init__(self, model: Any = None, args: Any = None, *rest: Any, **options: Any) -> None:
        args = TernaryTrainingArguments("tmp_trainer") if args is None else args
        if args.n_gpu > 1:
            raise ValueError(
                f"got {args.n_gpu} GPUs in one process (DataParallel), allowed is one; type: "
                f"accelerate launch --multi_gpu --num_processes {args.n_gpu} -m "
                f"timm_ternary.train RECIPE.yaml, or set CUDA_VISIBLE_DEVICES=0"
            )
        super().__init__(model, args, *rest, **options)
        self._plain = "pixel_values" not in inspect.signature(self.model.forward).parameters
        if self._plain:
            # A timm model's **kwargs are not for the Trainer.
            self.model_accepts_loss_kwargs = False
        if self.compute_metrics is None:
            self.compute_metrics = monitor.top1
            self.preprocess_logits_for_metrics = (
                self.preprocess_logits_for_metrics or monitor.predicted_class
            )
        for callback, short in (
            (ProgressCallback, monitor.ShortProgress),
            (PrinterCallback, monitor.ShortPrinter),
        ):
            if self.pop_callback(callback) is not None:
                self.add_callback(short)
        self._quantizers: dict[str, Quantizer] = {}
        self._layers: list[nn.Module] = []
        self._thresholds: dict[str, nn.Parameter] = {}
        self._update = "joint"
        self._steps_per_epoch = 0
        self._group: tuple[list[Any], Any] | None = None
        self._accuracy = monitor.Accuracy()
        self._step_logs: dict[str, Any] = {}

    # Set-up

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``transformers.Trainer.train``.

        Raises:
            ValueError: The model is packed, or the arguments do not fit its method.
        """
        try:
            return super().train(*args, **kwargs)
        finally:
            # The alternate update switched them off; the model goes back as it came.
            for parameter in self._thresholds.values():
                parameter.requires_grad_(True)
            self._group = None

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """As the Trainer's; remembers the optimizer steps of an epoch."""
        values = super().set_initial_training_values(args, dataloader)
        self._steps_per_epoch = values[1]
        if self.args.lr_milestones is not None and not hasattr(self.train_dataset, "__len__"):
            raise ValueError(
                "lr_milestones count epochs, and this data set has no length: leave lr_milestones "
                "out, or use a data set with a length"
            )
        return values

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Parameters that weight decay reaches: timm's rule; never thresholds and scales."""
        return decay_names(model, thresholds.quantizer_parameters(quantizers_of(model)).values())

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """One optimizer with the thresholds and scales in a group of their own, the last one."""
        model = self.model if model is None else model
        self._inspect(model)
        if self._update == "alternate" and self._thresholds:
            for parameter in self._thresholds.values():
                parameter.requires_grad_(False)
        if self.optimizer is not None:
            self._check_given(self.optimizer)
            return self.optimizer
        for parameter in self._thresholds.values():
            parameter.requires_grad_(False)
        self.optimizer = self._weight_optimizer(model)
        parameters = list(self._thresholds.values())
        if self._update == "alternate" and parameters:
            self.optimizer = TwoPhaseOptimizer(
                self.optimizer, create_threshold_optimizer(self.args, parameters)
            )
        elif parameters:
            for parameter in parameters:
                parameter.requires_grad_(True)
            self.optimizer.add_param_group(
                {"params": parameters, "lr": threshold_rate(self.args), "weight_decay": 0.0}
            )
        return self.optimizer

    def _weight_optimizer(self, model: nn.Module) -> Optimizer:
        if self.args.optimizer is not None and self.optimizer_cls_and_kwargs is None:
            return create_timm_optimizer(self.args, model, self.get_decay_parameter_names(model))
        optimizer: Optimizer = super().create_optimizer(model)
        return optimizer

    def _inspect(self, model: nn.Module) -> None:
        """Find the ternary layers, and how they are updated."""
        if is_packed(model):
            raise ValueError(
                "a packed model cannot be trained: type timm_ternary.unpack_(model) first"
            )
        self._quantizers = quantizers_of(model)
        self._layers = [model.get_submodule(name) for name in self._quantizers]
        found = thresholds.quantizer_parameters(self._quantizers)
        self._thresholds = {name: p for name, p in found.items() if p.requires_grad}
        self._update = thresholds.resolve_update(self.args.update, self._quantizers.values())
        if self._thresholds and self._update == "joint":
            self.args.check_joint()
        if self._thresholds and self._update == "alternate":
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(
                    "update='alternate' needs whole parameters in every process, not FSDP or "
                    "DeepSpeed: type accelerate launch --multi_gpu, or --update joint"
                )

    def _check_given(self, optimizer: Any) -> None:
        """An optimizer from outside cannot tell weights from thresholds."""
        if self._update == "alternate" and self._thresholds and _two_phase(optimizer) is None:
            raise ValueError(
                "update='alternate' makes its own optimizers: pass --optimizer and --learning_rate "
                "instead of optimizers=(...), or --update joint"
            )

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """The schedule of `lr_milestones` if given, else the Trainer's."""
        if self.lr_scheduler is None and self.args.lr_milestones is not None:
            self.lr_scheduler = multi_step_schedule(
                optimizer or self.optimizer,
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
        """One micro-batch; the first one of an effective batch is preceded by the threshold pass."""
        if self._group is not None:
            (batches, count), self._group = self._group, None
            if self._thresholds:
                rate = self.optimizer.param_groups[-1]["lr"]
                self._step_logs["threshold_learning_rate"] = float(rate)
            if self._is_threshold_step():
                self._update_thresholds(batches, count)
        with self._quantized_once():
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _is_threshold_step(self) -> bool:
        due = self.state.global_step % self.args.threshold_every == 0
        return bool(self._thresholds) and self._update == "alternate" and due

    def _update_thresholds(self, batches: list[Any], count: Any) -> None:
        """Algorithm 1, step 3: move the thresholds by the gradient of the effective batch."""
        optimizer = _two_phase(self.optimizer)
        parameters = list(self._thresholds.values())
        # Not the wrapped model: distributed hooks would wait for the weights' gradients.
        model = self.model.train()
        self.optimizer.train()
        flat = torch.zeros((), device=self.args.device)
        with thresholds.rehearsal(model, self.args.device), thresholds.switched_on(parameters):
            for batch in batches:
                flat = flat + self._threshold_gradient(model, batch, count, len(batches))
        flat = self.accelerator.reduce(flat, reduction="mean")
        norm = float(flat.norm())
        self._step_logs["threshold_grad_norm"] = norm
        if not torch.isfinite(flat).all():
            if self.accelerator.scaler is not None:
                # Overflow of float16: the weights' step is skipped too, and the scale reduced.
                return
            thresholds.check_finite(self._thresholds, flat)
        thresholds.assign_gradients(parameters, flat)
        optimizer.step_thresholds()
        for parameter in parameters:
            parameter.grad = None

    def _threshold_gradient(self, model: nn.Module, batch: Any, count: Any, batches: int) -> Tensor:
        """Share of one micro-batch in the gradient of the thresholds, ``(n,)``."""
        # A copy: label smoothing takes the labels out of it.
        inputs = dict(self._prepare_inputs(batch))
        with self._quantized_once():
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs, num_items_in_batch=count)
            # The Trainer's own rule: whoever is told `count` has scaled the loss already.
            told = self.model_accepts_loss_kwargs and count is not None
            if not (told or self.compute_loss_func is not None):
                loss = loss / batches
            scaler = self.accelerator.scaler
            if scaler is None:
                return thresholds.flat_gradient(loss, self._thresholds.values())
            flat = thresholds.flat_gradient(scaler.scale(loss), self._thresholds.values())
            return flat / scaler.get_scale()

    def _quantized_once(self) -> AbstractContextManager[None]:
        # A compiled model would take the cache, a global variable, for part of its graph.
        if self.args.torch_compile:
            return nullcontext()
        return thresholds.quantized_once(self._layers)

    # Loss, evaluation and logs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Cross entropy with `label_smoothing_factor`, or `compute_loss_func`, or the model's own.

        Args:
            model: The model, wrapped for distribution or not.
            inputs: A batch; see the class.
            return_outputs: Return ``(loss, {"loss": ..., "logits": ...})``.
            num_items_in_batch: Labels in the effective batch, for `compute_loss_func`.

        Returns:
            The loss, a scalar.
        """
        labels = inputs.get("labels")
        if self._plain:
            logits = model(inputs["pixel_values"])
            if self.compute_loss_func is not None:
                loss = self.compute_loss_func(logits, labels, num_items_in_batch=num_items_in_batch)
            else:
                smoothing = self.args.label_smoothing_factor
                loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            outputs: Any = {"loss": loss, "logits": logits}
        else:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            logits = outputs.get("logits") if isinstance(outputs, dict) else None
        # The threshold pass runs through the same batch, with thresholds switched on.
        if self.model.training and logits is not None and labels is not None:
            self._accuracy.add(logits, labels)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """As the Trainer's; a plain model without labels gives logits ``(n, classes)`` alone."""
        if self._plain and inputs.get("labels") is None:
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                logits = model(inputs["pixel_values"])
            return None, None if prediction_loss_only else logits, None
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, **kwargs: Any
    ) -> EvalLoopOutput:
        """As the Trainer's, with the weights quantized once. ``predict`` returns the logits."""
        keep = self.preprocess_logits_for_metrics
        if description == "Prediction" and keep is monitor.predicted_class:
            self.preprocess_logits_for_metrics = None
        try:
            with parametrize.cached():
                return super().evaluation_loop(dataloader, description, *args, **kwargs)
        finally:
            self.preprocess_logits_for_metrics = keep

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's; adds to a training log what the class describes."""
        if "loss" in logs:
            accuracy = self._accuracy.take(self.accelerator)
            if accuracy is not None:
                logs["accuracy"] = accuracy
            logs.update(self._step_logs)
            logs.update(monitor.ternary_statistics(self.model, self._quantizers))
        super().log(logs, start_time)


def _two_phase(optimizer: Any) -> Any:
    """The TwoPhaseOptimizer inside accelerate's wrappers, or None."""
    while optimizer is not None and not isinstance(optimizer, TwoPhaseOptimizer):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer
