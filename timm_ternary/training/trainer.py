"""TernaryTrainer: transformers' Trainer with thresholds and weights updated in turn."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from .batches import check_images
from .callbacks.refresh import RefreshQuantizers
from .callbacks.soft_start import SoftStart
from .hub_mixin import HubMixin
from .image_trainer import ImageTrainer
from .loss import penalty
from .metrics import ternary_statistics
from .optim import rate_of, two_phase, with_thresholds
from .threshold_pass.functional import check_finite
from .threshold_pass.update import ThresholdPass

__all__ = ["TernaryTrainer"]

_logger = logging.getLogger(__name__)


class TernaryTrainer(HubMixin, ImageTrainer):
    """``transformers.Trainer`` for ternary models; a float model trains as with the Trainer itself.

    Models are plain timm models (``forward(images) -> logits``) or models of transformers
    (``forward(pixel_values, labels)``); batches are dicts of ``pixel_values``,
    ``(n, channels, height, width)``, and ``labels``, ``(n,)`` or probabilities ``(n, classes)``.

    ``update="alternate"`` is Algorithm 1 of He & Fan (2019), at every optimizer step: the
    effective batch (all micro-batches of all processes) first moves the thresholds, then the same
    batches train the weights under the new thresholds. ``update="joint"``: one pass and the
    weights' optimizer for both. Weight decay reaches thresholds and scales in neither.

    Both passes train for `task_loss`, the method to override for another loss; `compute_loss`,
    which only the weights' pass and evaluation call, adds what is for them alone.

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
        self.threshold_pass: ThresholdPass | None = None
        self._awaiting: tuple[list[Any], Any] | None = None
        self._step_logs: dict[str, float] = {}
        self.add_callback(RefreshQuantizers())
        self._soft_start = SoftStart(self)
        if self.args.soft_epochs:
            self.add_callback(self._soft_start)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``transformers.Trainer.train``.

        Raises:
            ValueError: The model is packed; the arguments do not fit its method; a parameter, or
                a threshold's gradient, is not finite; the data end early or do not suffice.
        """
        try:
            return super().train(*args, **kwargs)
        finally:
            self._awaiting = None
            if self.threshold_pass is not None:
                # The alternate update switched them off; the model goes back as it came.
                self.threshold_pass.switch(True)
                for quantizer in self.threshold_pass.quantizers.values():
                    quantizer.soften(None)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """One optimizer; thresholds and scales are its last group."""
        model = self.model if model is None else model
        if self.threshold_pass is not None:
            # Left off by an attempt that ran out of memory (auto_find_batch_size).
            self.threshold_pass.switch(True)
        own = self.threshold_pass = ThresholdPass(model, self.args, self.accelerator)
        foreign = self.optimizer is not None
        if foreign and own.alternate and two_phase(self.optimizer) is None:
            raise ValueError(
                "update='alternate' makes its own optimizers: pass --optimizer and --learning_rate "
                "instead of optimizers=(...), or --update joint"
            )
        if own.alternate and _has_own_loss(type(self)):
            _logger.warning(
                "%s.compute_loss is for the weights' pass and evaluation only: move what the "
                "thresholds are to learn from too to task_loss",
                type(self).__name__,
            )
        # Off: not in the weights' groups, and not awaited by the reducer of several processes.
        own.switch(False)
        optimizer = super().create_optimizer(model)
        if not foreign:
            parameters = list(own.parameters.values())
            optimizer = with_thresholds(optimizer, parameters, self.args, alternate=own.alternate)
            self.optimizer = optimizer
        if not own.alternate:
            own.switch(True)
        return optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As ImageTrainer's; the effective batch awaits the threshold pass.

        The pass itself must wait for the first `training_step`: when training resumes, the state
        of the random numbers is restored in between.
        """
        group = super().get_batch_samples(*args, **kwargs)
        self._awaiting = group
        return group

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch; the threshold pass precedes the first one of an effective batch."""
        own = self._own_pass()
        if self._awaiting is not None:
            (batches, count), self._awaiting = self._awaiting, None
            if own.parameters:
                rate = rate_of(self.optimizer, own.parameters.values())
                self._step_logs["threshold_learning_rate"] = rate
            if own.alternate and self.state.global_step % self.args.threshold_every == 0:
                self.update_thresholds(batches, count)
        with own.quantized_once():
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            own.average_joint()
        return loss

    def update_thresholds(self, batches: list[Any], count: Any) -> float:
        """Algorithm 1, step 3: move the thresholds by the gradient of the effective batch.

        Args:
            batches: Its micro-batches in this process.
            count: Its labels, for a loss that is told them.

        Returns:
            The norm of the gradient.

        Raises:
            ValueError: A parameter, or the gradient of a threshold, is not finite (names it).
        """
        own = self._own_pass()
        if self.args.threshold_fraction < 1:
            for batch in batches:
                check_images(batch, plain=self._plain)
        # Not the wrapped model: its hooks would wait for the weights' gradients.
        model = self.model.train()
        optimizer = two_phase(self.optimizer)
        if optimizer is None:
            raise ValueError("thresholds have no optimizer of their own: type --update alternate")
        optimizer.train()

        def share_of_loss(part: Mapping[str, Any], kept: float) -> Tensor:
            # Those left out count for none of the labels: the loss stays a mean over those kept.
            labels = count if count is None or kept == 1 else count * kept
            with self.compute_loss_context_manager():
                loss, _ = self.task_loss(model, self._prepare_inputs(part), labels)
            return loss if self.loss_is_scaled(labels) else loss / len(batches)

        flat = own.gradient(model, batches, share_of_loss, self.place)
        norm = float(flat.norm())
        self._step_logs["threshold_grad_norm"] = norm
        if math.isfinite(norm):
            own.step(optimizer, flat)
        elif self.accelerator.scaler is None:
            # What is not finite itself, rather than what follows from it. (With a scaler it is an
            # overflow of float16: the weights' step will be skipped too, and the scale reduced.)
            self.health.check_model(self.model, self.state)
            check_finite(own.parameters, flat)
        return norm

    def _own_pass(self) -> ThresholdPass:
        if self.threshold_pass is None:
            self.threshold_pass = ThresholdPass(self.model, self.args, self.accelerator)
        return self.threshold_pass

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """As ImageTrainer's; in training with the penalties of the layers."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        own = penalty(self._own_pass().layers) if model.training else None
        if own is None:
            return found
        if self.loss_is_scaled(num_items_in_batch):
            own = own / self.current_gradient_accumulation_steps
        return (found[0] + own, *found[1:]) if return_outputs else found + own

    def moment(self) -> dict[str, Any]:
        """As ImageTrainer's, and ``zeros``, the fraction of all codes (not of shards)."""
        found, own = super().moment(), self.threshold_pass
        if own is None:
            return found
        if self._soft_start.temperature is not None:
            found["phase"] = "soft start"
        elif own.parameters:
            found["phase"] = "thresholds, then weights" if own.alternate else "thresholds, weights"
        if own.quantizers and not self.is_fsdp_enabled:  # gathering shards takes all processes
            found["zeros"] = ternary_statistics(self.model, own.quantizers)["zeros"]
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As ImageTrainer's; adds to a training log what the class describes."""
        if "loss" in logs:
            logs.update(self._step_logs)
            if self._soft_start.temperature is not None:
                logs["soft_temperature"] = self._soft_start.temperature
            if self.threshold_pass is not None:
                quantizers = self.threshold_pass.quantizers
                logs.update(ternary_statistics(self.model, quantizers))
        super().log(logs, start_time)


def _has_own_loss(kind: type[TernaryTrainer]) -> bool:
    """Whether a subclass changes the hook, as for the stock Trainer, and not what it calls."""
    changed = kind.compute_loss is not TernaryTrainer.compute_loss
    return changed and kind.task_loss is TernaryTrainer.task_loss
