"""TernaryTrainingArguments: the Trainer's arguments, and those of ternary training."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import timm.optim
import torch
from transformers import TrainingArguments

from ..errors import unknown

__all__ = ["THRESHOLD_OPTIMIZERS", "UPDATES", "TernaryTrainingArguments"]

UPDATES = ("alternate", "joint")
THRESHOLD_OPTIMIZERS = ("sgd", "adam")


@dataclass
class TernaryTrainingArguments(TrainingArguments):
    """``transformers.TrainingArguments`` with defaults for images, and the fields below.

    Every field is a key of a recipe and an option of the command line. Learning rates are per
    optimizer step; milestones count epochs; `threshold_every` counts optimizer steps.

    Raises:
        ValueError: A value is not allowed, or two fields contradict each other.
    """

    # Thresholds and scales
    update: str | None = field(
        default=None,
        metadata={
            "help": "How thresholds are updated: 'alternate' (thresholds first, then weights: "
            "Algorithm 1 of He & Fan 2019), 'joint' (one pass); unset: as the method does."
        },
    )
    threshold_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of thresholds and scales (unset: that of the weights). It "
            "follows the weights' schedule."
        },
    )
    threshold_optimizer: str = field(
        default="sgd",
        metadata={
            "help": "Optimizer of the alternate update: 'sgd' (no momentum, no weight decay) or "
            "'adam' (an ablation of He & Fan 2019). 'joint' uses the weights' optimizer."
        },
    )
    threshold_every: int = field(
        default=1,
        metadata={"help": "Alternate update: update the thresholds at every k-th optimizer step."},
    )
    threshold_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Alternate update: the pass of the thresholds sees a random part of every "
            "batch, e.g. 0.25: 0 < part <= 1, but at least two images."
        },
    )
    soft_epochs: float = field(
        default=0.0,
        metadata={
            "help": "The first N epochs train on a soft staircase (Quantization Networks, Yang et "
            "al. 2019), for methods with thresholds; from then on exactly the hard one (0: none)."
        },
    )
    soft_temperature: list[float] | None = field(
        default=None,
        metadata={
            "help": "Of the soft staircase, in the first and the last of its steps, with geometric "
            "growth: the sigmoids' slope per standard deviation of the layer (unset: 10 100)."
        },
    )
    compile_quantizers: bool = field(
        default=False,
        metadata={
            "help": "Quantize all layers in one call that torch.compile has compiled: a third of "
            "the time, after a minute of compiling; one process only."
        },
    )
    # The weights' optimizer
    optimizer: str | None = field(
        default=None,
        metadata={
            "help": "Name of an optimizer of timm, e.g. sgd, adamw (unset: transformers' --optim)."
        },
    )
    momentum: float | None = field(
        default=None,
        metadata={"help": "Momentum of --optimizer (unset: timm's default, 0.9 for sgd)."},
    )
    nesterov: bool = field(
        default=False, metadata={"help": "Nesterov's momentum, for --optimizer sgd."}
    )
    # The schedule
    lr_milestones: list[float] | None = field(
        default=None,
        metadata={
            "help": "Epochs at which the learning rates are multiplied by lr_gamma, e.g. 80 120, "
            "after warmup_steps of linear warmup (unset: the schedule of lr_scheduler_type)."
        },
    )
    lr_gamma: list[float] = field(
        default_factory=lambda: [0.1],
        metadata={"help": "The factor at lr_milestones: one for all of them, or one for each."},
    )
    # Distillation
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Learn from this trained model too, frozen (scheme B of Apprentice, Mishra & "
            "Marr 2018): a timm name (its published weights), a directory, or hf-hub:ID."
        },
    )
    distill_alpha: float = field(
        default=0.5,
        metadata={
            "help": "Weight, 0 to 1, of the loss against the labels; the rest, 1 - distill_alpha, "
            "is that of T^2 KL(teacher || student)."
        },
    )
    distill_temperature: float = field(
        default=1.0, metadata={"help": "T > 0, by which the logits of both are divided."}
    )
    # Regularization
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Keep a moving average of weights, thresholds and scales, e.g. 0.999: it is "
            "what is evaluated and what remains at the end (unset: none)."
        },
    )
    mixup: float = field(
        default=0.0,
        metadata={"help": "alpha of mixup, e.g. 0.2: images in pairs, by timm (0 turns it off)."},
    )
    cutmix: float = field(
        default=0.0,
        metadata={"help": "alpha of cutmix, e.g. 1.0; with mixup, either at random (0: off)."},
    )
    # When to stop, and what is best
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after this many evaluations in a row without a better "
            "metric_for_best_model; needs --eval_strategy (unset: never)."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "By how much a better one must be better at least."}
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={
            "help": "What load_best_model_at_end and early_stopping_patience look at (unset: "
            "accuracy, where one of them is set). Higher is better, unless its name ends in loss."
        },
    )
    # Other defaults than transformers': its own fit text
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop data set columns that the model does not accept."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "Keys of a batch that hold labels."}
    )

    def __post_init__(self) -> None:
        """Check the fields above, then as ``transformers.TrainingArguments`` does.

        Raises:
            ValueError: See the class.
        """
        self._check_thresholds()
        self._check_soft()
        self._check_compiled()
        self._check_optimizer()
        self._check_schedule()
        self._check_distillation()
        self._check_regularization()
        self._check_best()
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available():
            # Else each process trains alone on all the data: accelerate's launcher does not pass
            # its own use_cpu on to MULTI_GPU (accelerate 1.15.0, transformers 5.23.0).
            self.use_cpu = True
        super().__post_init__()
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise ValueError(
                "early_stopping_patience counts evaluations, and eval_strategy is 'no': type "
                "--eval_strategy epoch, or leave early_stopping_patience out"
            )

    def _check_compiled(self) -> None:
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

    def _check_thresholds(self) -> None:
        if self.update is not None and self.update not in UPDATES:
            raise ValueError(unknown("update", self.update, UPDATES))
        if self.threshold_optimizer not in THRESHOLD_OPTIMIZERS:
            raise ValueError(
                unknown("threshold_optimizer", self.threshold_optimizer, THRESHOLD_OPTIMIZERS)
            )
        self._check_numbers("learning_rate", "threshold_learning_rate", "weight_decay")
        if not _is_whole(self.threshold_every) or self.threshold_every < 1:
            raise ValueError(
                f"threshold_every must be a whole number >= 1, got {self.threshold_every!r}"
            )
        self._check_numbers("threshold_fraction")
        if not 0 < self.threshold_fraction <= 1:
            raise ValueError(
                f"threshold_fraction must be above 0 and at most 1, e.g. 0.25; "
                f"got {self.threshold_fraction!r}"
            )
        if self.update == "joint":
            self.check_joint()

    def _check_soft(self) -> None:
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
        numbers = pair and all(isinstance(t, (int, float)) for t in found)
        if not numbers or not 0 < found[0] <= found[1] < math.inf:
            raise ValueError(
                f"soft_temperature must be two finite numbers, 0 < first <= last, e.g. 10 100; got "
                f"{found!r}"
            )

    def check_joint(self) -> None:
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

    def _check_optimizer(self) -> None:
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

    def _check_schedule(self) -> None:
        if not isinstance(self.lr_gamma, (list, tuple)):
            self.lr_gamma = [self.lr_gamma]
        if not self.lr_gamma:
            raise ValueError(
                "lr_gamma must be one factor, or one for each of lr_milestones, got []"
            )
        for factor in self.lr_gamma:
            _check_number("lr_gamma", factor)
        if self.lr_milestones is None:
            return
        if isinstance(self.lr_milestones, (int, float)):
            self.lr_milestones = [self.lr_milestones]
        milestones = list(self.lr_milestones)
        numbers = all(isinstance(epoch, (int, float)) for epoch in milestones)
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

    def _check_distillation(self) -> None:
        self._check_numbers("distill_alpha", "distill_temperature")
        if self.distill_alpha > 1:
            raise ValueError(f"distill_alpha must lie between 0 and 1, got {self.distill_alpha!r}")
        if self.distill_temperature == 0:
            raise ValueError("distill_temperature must be positive, got 0")
        for name in ("distill_alpha", "distill_temperature"):
            if self.teacher is None and getattr(self, name) != _default(type(self), name):
                raise ValueError(f"{name} is for a teacher: type --teacher MODEL, or leave it out")

    def _check_regularization(self) -> None:
        self._check_numbers("ema_decay", "mixup", "cutmix")
        if self.ema_decay is not None and self.ema_decay >= 1:
            raise ValueError(f"ema_decay must be below 1, e.g. 0.999, got {self.ema_decay!r}")

    def _check_best(self) -> None:
        patience = self.early_stopping_patience
        if patience is not None and (not _is_whole(patience) or patience < 1):
            raise ValueError(f"early_stopping_patience must be a whole number >= 1, got {patience}")
        self._check_numbers("early_stopping_threshold")
        if patience is None and self.early_stopping_threshold:
            raise ValueError(
                "early_stopping_threshold is for early stopping: type --early_stopping_patience 5, "
                "or leave it out"
            )
        if self.metric_for_best_model is None and (patience or self.load_best_model_at_end):
            self.metric_for_best_model = "accuracy"

    def _check_numbers(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None or _default(type(self), name) is not None:
                _check_number(name, value)


def _check_number(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if isinstance(value, str) else ""
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}{hint}")


def takes(optimizer: str, option: str) -> bool:
    """Whether timm's `optimizer` accepts the keyword argument `option`."""
    cls = timm.optim.get_optimizer_class(optimizer, bind_defaults=False)
    return option in inspect.signature(cls).parameters


def _second_order(optimizer: str) -> bool:
    """These need a graph of the gradients, which the Trainer does not build."""
    return bool(timm.optim.get_optimizer_info(optimizer).second_order)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _default(cls: type, name: str) -> Any:
    entries: Iterable[Any] = fields(cls)
    return next(entry.default for entry in entries if entry.name == name)
