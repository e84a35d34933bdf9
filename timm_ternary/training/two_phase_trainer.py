"""TwoPhaseTrainer: which parameters are thresholds, their optimizer, and the schedule of both."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..nn.convert import is_packed, quantizers_of
from ..quantizers.base import Quantizer
from . import fsdp as sharded
from .hub_trainer import HubTrainer
from .optim import (
    TwoPhaseOptimizer,
    create_threshold_optimizer,
    create_timm_optimizer,
    decay_names,
    multi_step_schedule,
    threshold_rate,
)
from .threshold_pass import functional as thresholds

__all__ = ["TwoPhaseTrainer", "two_phase"]


class TwoPhaseTrainer(HubTrainer):
    """Optimizers and schedules of ternary models; `TernaryTrainer` takes the steps.

    Args:
        model: A plain timm model or a model of transformers, ternary or float.
        args: TernaryTrainingArguments.
        *rest: As ``transformers.Trainer``.
        **options: As ``transformers.Trainer``.

    Raises:
        ValueError: As HubTrainer.
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
        elif self._alternate and two_phase(self.optimizer) is None:
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


def two_phase(optimizer: Any) -> Any:
    """The TwoPhaseOptimizer inside accelerate's wrappers, or None."""
    while optimizer is not None and not isinstance(optimizer, TwoPhaseOptimizer):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer
