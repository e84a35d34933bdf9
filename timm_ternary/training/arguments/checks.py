"""What fields of TernaryTrainingArguments may hold, alone and together."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import timm.optim
from transformers import TrainingArguments

from ...errors.numbers import check_number, check_whole, is_number
from ...errors.wording import unknown

__all__ = ["THRESHOLD_OPTIMIZERS", "UPDATES", "ArgumentChecks", "takes"]

UPDATES = ("alternate", "joint")
THRESHOLD_OPTIMIZERS = ("sgd", "adam")


class ArgumentChecks:
    """Mixin of TernaryTrainingArguments, whose fields it looks at. Each refusal is one line."""

    def _check_fields(self: Any) -> None:
        self._check_steps()
        self._check_thresholds()
        self._check_soft()
        self._check_compiled()
        self._check_optimizer()
        self._check_schedule()
        self._check_distillation()
        self._check_regularization()
        self._check_best()

    def _check_compiled(self: Any) -> None:
        if not self.compile_quantizers:
            return
        if self.torch_compile or self.torch_compile_backend or self.torch_compile_mode:
            raise ValueError(
                "torch_compile compiles the quantizers with the model: leave compile_quantizers out"
            )
        processes = int(os.environ.get("WORLD_SIZE", 1))
        if processes > 1:
            # DistributedDataParallel writes to the buffers (ttq's unit) between the compiled
            # forward pass, which keeps them instead of a copy, and the backward pass.
            raise ValueError(
                f"compile_quantizers is for one process, and these are {processes}: leave it out"
            )

    def _check_thresholds(self: Any) -> None:
        if self.update is not None and self.update not in UPDATES:
            raise ValueError(unknown("update", self.update, UPDATES))
        if self.threshold_optimizer not in THRESHOLD_OPTIMIZERS:
            raise ValueError(
                unknown("threshold_optimizer", self.threshold_optimizer, THRESHOLD_OPTIMIZERS)
            )
        self._check_numbers("learning_rate", "threshold_learning_rate", "weight_decay")
        self._check_numbers("threshold_fraction")
        if not 0 < self.threshold_fraction <= 1:
            raise ValueError(
                f"threshold_fraction must be above 0 and at most 1, e.g. 0.25; "
                f"got {self.threshold_fraction!r}"
            )
        if self.update == "joint":
            self.check_joint()

    def _check_soft(self: Any) -> None:
        self._check_numbers("soft_epochs")
        if not self.soft_epochs:
            if self.soft_temperature is not None:
                raise ValueError(
                    "soft_temperature is for a soft start: type --soft_epochs N, or leave it out"
                )
            return
        if self.max_steps <= 0 and self.soft_epochs > self.num_train_epochs:
            raise ValueError(
                f"soft_epochs must be at most num_train_epochs={self.num_train_epochs!r}, got "
                f"{self.soft_epochs!r}"
            )
        if self.soft_temperature is None:
            return
        found = self.soft_temperature
        pair = isinstance(found, (list, tuple)) and len(found) == 2
        numbers = pair and all(is_number(t, above=0) for t in found)
        if not numbers or not found[0] <= found[1]:
            raise ValueError(
                f"soft_temperature must be two finite numbers, 0 < first <= last, e.g. 10 100; got "
                f"{found!r}"
            )

    def check_joint(self: Any) -> None:
        """Refuse what only the alternate update can do.

        Raises:
            ValueError: `threshold_optimizer`, `threshold_every` or `threshold_fraction` is set.
        """
        for name in ("threshold_optimizer", "threshold_every", "threshold_fraction"):
            value, default = getattr(self, name), _default(type(self), name)
            if value != default:
                raise ValueError(
                    f"{name}={value!r} is for update='alternate', but this run updates jointly: "
                    f"type --update alternate, or leave {name} at {default!r}"
                )

    def _check_optimizer(self: Any) -> None:
        if self.optimizer is None:
            for name in ("momentum", "nesterov"):
                if getattr(self, name) not in (None, False):
                    raise ValueError(
                        f"{name} is for timm's optimizers: type --optimizer sgd, or leave it out"
                    )
            return
        # timm accepts the prefix on any of them.
        name = str(self.optimizer).lower().removeprefix("lookahead_")
        allowed = [n for n in timm.optim.list_optimizers() if not _second_order(n)]
        if name not in allowed:
            raise ValueError(unknown("optimizer of timm", self.optimizer, allowed))
        if self.optim != _default(TrainingArguments, "optim"):
            raise ValueError(
                f"got optimizer={self.optimizer!r} (timm) and optim={str(self.optim)!r} "
                f"(transformers): give one of them"
            )
        self._check_numbers("momentum")
        if self.momentum is not None and not timm.optim.get_optimizer_info(name).has_momentum:
            raise ValueError(f"optimizer {name!r} takes no momentum: leave momentum out")
        if self.nesterov and not takes(name, "nesterov"):
            raise ValueError(f"optimizer {name!r} takes no nesterov: type --optimizer sgd")
        if self.nesterov and not self.momentum:
            raise ValueError(
                f"nesterov needs a momentum, got {self.momentum!r}: type --momentum 0.9"
            )

    def _check_schedule(self: Any) -> None:
        if not self.lr_gamma:
            raise ValueError(
                "lr_gamma must be one factor, or one for each of lr_milestones, got []"
            )
        for factor in self.lr_gamma:
            check_number("lr_gamma", factor, low=0)
        if self.lr_milestones is None:
            if list(self.lr_gamma) != [0.1]:
                raise ValueError(
                    f"lr_gamma={list(self.lr_gamma)} is for lr_milestones: type --lr_milestones "
                    "EPOCH..., or leave it out"
                )
            return
        milestones = list(self.lr_milestones)
        numbers = all(is_number(epoch) for epoch in milestones)
        pairs = zip([0, *milestones], milestones, strict=False)
        if not milestones or not numbers or not all(a < b for a, b in pairs):
            raise ValueError(
                f"lr_milestones must be increasing epochs > 0, e.g. 80 120; got {milestones}"
            )
        if len(self.lr_gamma) not in (1, len(milestones)):
            raise ValueError(
                f"lr_gamma has {len(self.lr_gamma)} factors, but lr_milestones {len(milestones)} "
                f"epochs: give 1 factor, or {len(milestones)}"
            )
        kind = self.lr_scheduler_type
        if kind != _default(TrainingArguments, "lr_scheduler_type"):
            raise ValueError(
                f"lr_milestones is a schedule of its own, and so is lr_scheduler_type="
                f"{getattr(kind, 'value', kind)!r}: leave one of them out"
            )

    def _check_distillation(self: Any) -> None:
        self._check_numbers("distill_alpha", "distill_temperature")
        if self.distill_alpha > 1:
            raise ValueError(f"distill_alpha must lie between 0 and 1, got {self.distill_alpha!r}")
        if self.distill_temperature == 0:
            raise ValueError("distill_temperature must be positive, got 0")
        for name in ("distill_alpha", "distill_temperature"):
            if self.teacher is None and getattr(self, name) != _default(type(self), name):
                raise ValueError(f"{name} is for a teacher: type --teacher MODEL, or leave it out")

    def _check_regularization(self: Any) -> None:
        self._check_numbers("ema_decay", "mixup", "cutmix")
        if self.ema_decay is not None and self.ema_decay >= 1:
            raise ValueError(f"ema_decay must be below 1, e.g. 0.999, got {self.ema_decay!r}")
        if self.bn_reestimate is not None:
            check_whole("bn_reestimate", self.bn_reestimate, low=1)

    def _check_best(self: Any) -> None:
        patience = self.early_stopping_patience
        if patience is not None:
            check_whole("early_stopping_patience", patience, low=1)
        self._check_numbers("early_stopping_threshold")
        if patience is None and self.early_stopping_threshold:
            raise ValueError(
                "early_stopping_threshold is for early stopping: type --early_stopping_patience 5, "
                "or leave it out"
            )

    def _check_evaluated(self: Any) -> None:
        for name in ("early_stopping_patience", "load_best_model_at_end"):
            if getattr(self, name) and self.eval_strategy == "no":
                raise ValueError(
                    f"{name} is about evaluations, and eval_strategy is 'no': type --eval_strategy "
                    f"epoch --save_strategy epoch, or leave {name} out"
                )

    def _check_steps(self: Any) -> None:
        for name in ("threshold_every", "gradient_accumulation_steps"):
            check_whole(name, getattr(self, name), low=1)

    def _check_numbers(self: Any, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None or _default(type(self), name) is not None:
                check_number(name, value, low=0)


def takes(optimizer: str, option: str) -> bool:
    """Whether timm's `optimizer` accepts the keyword argument `option`."""
    cls = timm.optim.get_optimizer_class(optimizer, bind_defaults=False)
    return option in inspect.signature(cls).parameters


def _second_order(optimizer: str) -> bool:
    """These need a graph of the gradients, which the Trainer does not build."""
    return bool(timm.optim.get_optimizer_info(optimizer).second_order)


def _default(cls: type, name: str) -> Any:
    entries: Iterable[Any] = fields(cls)
    return next(entry.default for entry in entries if entry.name == name)
