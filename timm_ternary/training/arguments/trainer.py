"""TernaryTrainingArguments: the Trainer's arguments, and those of ternary training."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from .checks import ArgumentChecks

__all__ = ["TernaryTrainingArguments"]


@dataclass
class TernaryTrainingArguments(ArgumentChecks, TrainingArguments):
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
            "help": "Quantize all layers in one call that torch.compile has compiled (for tga in "
            "a third of the time, ttq does not gain); needs g++; one process only."
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
    bn_reestimate: int | None = field(
        default=None,
        metadata={
            "help": "Before evaluating and saving, measure the batch norms' statistics anew on "
            "this many training batches (unset: keep the running ones). Helps short runs."
        },
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
            "help": "What load_best_model_at_end, early_stopping_patience and --save_strategy best "
            "look at (unset: accuracy, or loss with compute_metrics or several labels an image). "
            "Higher is better, unless its name ends in loss."
        },
    )
    quiet: bool = field(
        default=False,
        metadata={"help": "Print nothing but errors and, at the end, one line with the result."},
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
        # One number for a list of one.
        if not isinstance(self.lr_milestones, (list, tuple, type(None))):
            self.lr_milestones = [self.lr_milestones]
        if not isinstance(self.lr_gamma, (list, tuple)):
            self.lr_gamma = [self.lr_gamma]
        self._check_fields()
        best = self.early_stopping_patience or self.load_best_model_at_end
        wanted = best or self.save_strategy == "best"
        # What `settle_best` may still change: attributes, as fields are options.
        self._own_best = self.metric_for_best_model is None and bool(wanted)
        self._own_order = vars(self).get("greater_is_better") is None
        self._own_mode = "mode" not in (self.lr_scheduler_kwargs or {})
        if self._own_best:
            self.metric_for_best_model = "accuracy"
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available():
            # Else each process trains alone on all the data: accelerate's launcher does not pass
            # its own use_cpu on to MULTI_GPU (accelerate 1.15.0, transformers 5.23.0).
            self.use_cpu = True
        super().__post_init__()
        self._check_evaluated()
        self._settle_mode()

    def settle_best(self, *, accuracy: bool) -> bool:
        """Let an unset `metric_for_best_model` mean the accuracy, or the loss as the Trainer's.

        Args:
            accuracy: Whether evaluation reports one: not with metrics of one's own, which may, nor
                for a multi-label task.

        Returns:
            Whether something has changed.
        """
        metric = "accuracy" if accuracy else "loss"
        if not self._own_best or self.metric_for_best_model == metric:
            return False
        self.metric_for_best_model = metric
        if self._own_order:
            self.greater_is_better = accuracy
        self._settle_mode()
        return True

    def _settle_mode(self) -> None:
        watching = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if watching and self.metric_for_best_model and self._own_mode:
            # transformers hands it that metric, but lets it wait for smaller values always.
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs: Any = {**(self.lr_scheduler_kwargs or {}), "mode": mode}
