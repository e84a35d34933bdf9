"""Optimizers and schedules: two optimizers in one, timm's optimizers by name, multi-step rates."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import timm.optim
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..compat.timm import base_optimizer
from ..nn.state_dict import readable_name
from ..nn.timm_wrapper import unwrap, wrapper_prefix
from .arguments.checks import takes
from .arguments.trainer import TernaryTrainingArguments

__all__ = [
    "TwoPhaseOptimizer",
    "create_threshold_optimizer",
    "create_timm_optimizer",
    "decay_names",
    "multi_step_schedule",
    "rate_of",
    "threshold_rate",
    "two_phase",
    "with_thresholds",
]


class TwoPhaseOptimizer(Optimizer):
    """The weights' optimizer and the thresholds' as one: one schedule, one state, one file.

    Parameter groups are those of `weights`, then those of `thresholds`; a group added later is one
    of the weights. ``step`` steps the weights only, ``step_thresholds`` the rest. `defaults` are
    those of the weights, and every group has all of their keys, so that what schedules an ordinary
    optimizer schedules this one. What the Trainer writes to optimizer.pt is the ordinary state of
    one optimizer.

    Args:
        weights: Optimizer of everything else.
        thresholds: Optimizer of thresholds and scales. Its momentum stays as it is, also where a
            schedule (``OneCycleLR``, ``CyclicLR``) cycles that of all groups.
    """

    def __init__(self, weights: Optimizer, thresholds: Optimizer) -> None:
        self._weights = weights
        self._thresholds = thresholds
        groups = [*weights.param_groups, *thresholds.param_groups]
        self._positions = range(len(weights.param_groups), len(groups))
        self._momenta = [group.get("momentum") for group in thresholds.param_groups]
        state = {**base_optimizer(weights).state, **thresholds.state}
        super().__init__(groups, {})
        # Schedules of transformers read the first rate there, and a group added later is completed
        # from it; those of torch that cycle the momentum expect it, or betas, in every group.
        self.defaults = dict(weights.defaults)
        for group in self.threshold_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        self.state.update(state)
        self._share()

    def _share(self) -> None:
        """Both work on these groups and this state, so that schedules and files reach them."""
        own = self._positions
        rest = [group for i, group in enumerate(self.param_groups) if i not in own]
        for part, groups in ((self._weights, rest), (self._thresholds, self.threshold_groups)):
            for optimizer in (part, base_optimizer(part)):
                optimizer.param_groups, optimizer.state = groups, self.state

    @property
    def threshold_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of thresholds and scales."""
        return self.param_groups[self._positions.start : self._positions.stop]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of the weights; see ``torch.optim.Optimizer``."""
        super().add_param_group(param_group)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: beside torch's, the two optimizers."""
        own = {name: vars(self)[name] for name in _PARTS}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take groups and state, as torch's ``load_state_dict``, copies and pickles give them."""
        super().__setstate__(state)
        # They are other objects now than the parts have.
        self._share()
        for part in (self._weights, self._thresholds):
            # What an optimizer completes in groups and state that an older version has written.
            base_optimizer(part).__setstate__({})

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Step the weights."""
        # Wrappers (accelerate's) may have assigned other groups.
        self._share()
        return self._weights.step(closure)

    def step_thresholds(self) -> None:
        """Step thresholds and scales, by their ``.grad``."""
        self._share()
        pairs = zip(self.threshold_groups, self._momenta, strict=True)
        self._thresholds.param_groups = [
            group if own is None or group["momentum"] == own else {**group, "momentum": own}
            for group, own in pairs
        ]
        self._thresholds.step()

    def train(self) -> None:
        """Pass on to optimizers that differ in training and evaluation (schedule-free ones)."""
        if hasattr(self._weights, "train"):
            self._weights.train()

    def eval(self) -> None:
        """As `train`."""
        if hasattr(self._weights, "eval"):
            self._weights.eval()


_PARTS = ("_weights", "_thresholds", "_positions", "_momenta")


def two_phase(optimizer: Any) -> TwoPhaseOptimizer | None:
    """The TwoPhaseOptimizer inside accelerate's wrappers, or None."""
    while optimizer is not None and not isinstance(optimizer, TwoPhaseOptimizer):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer


def with_thresholds(
    weights: Optimizer,
    parameters: Sequence[nn.Parameter],
    args: TernaryTrainingArguments,
    *,
    alternate: bool,
) -> Optimizer:
    """The weights' optimizer and thresholds and scales in one, as its last group.

    Args:
        weights: Optimizer of everything else.
        parameters: Thresholds and scales; none: `weights` as it is.
        args: Gives their rate and, for the alternate update, their optimizer.
        alternate: A TwoPhaseOptimizer; otherwise `weights` with a group more.
    """
    if not parameters:
        return weights
    if alternate:
        return TwoPhaseOptimizer(weights, create_threshold_optimizer(args, parameters))
    group = {"params": list(parameters), "lr": threshold_rate(args), "weight_decay": 0.0}
    weights.add_param_group(group)
    return weights


def decay_names(model: nn.Module, exclude: Iterable[nn.Parameter] = ()) -> list[str]:
    """Names of the parameters that weight decay reaches: timm's rule.

    Latent weights and the other weights of two dimensions or more; not biases, norms, thresholds,
    scales, nor what timm's ``model.no_weight_decay()`` names, by name or by pattern.

    Args:
        model: A timm model, or transformers' wrapper of one.
        exclude: Parameters that are never decayed: those of the quantizers.
    """
    skipped = {id(parameter) for parameter in exclude}
    kept: set[str] = set()
    part: Any
    for prefix, part in (("", model), (wrapper_prefix(model), unwrap(model))):
        if hasattr(part, "no_weight_decay"):
            # Some models name the parameters that they find, latent weights included.
            kept.update(readable_name(prefix + name) for name in part.no_weight_decay())
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
        and id(parameter) not in skipped
        and not name.endswith(".bias")
        # A latent weight answers to the name of the weight that it stands for.
        and not any(fnmatchcase(readable_name(name), pattern) for pattern in kept)
    ]


def create_timm_optimizer(
    args: TernaryTrainingArguments, model: nn.Module, decayed: Iterable[str]
) -> Optimizer:
    """The optimizer `args.optimizer` of timm, for the trainable parameters of `model`.

    Args:
        args: Gives the name, the rate, the decay and the momentum. Betas and epsilon are passed
            on where they differ from the defaults of transformers; otherwise they are timm's.
        model: Its parameters with ``requires_grad`` are optimized.
        decayed: Names of those that weight decay reaches; see `decay_names`.

    Raises:
        ValueError: timm refuses the combination.
    """
    name = str(args.optimizer).lower().removeprefix("lookahead_")
    options: dict[str, Any] = {}
    if args.momentum is not None:
        options["momentum"] = args.momentum
    if takes(name, "nesterov") and (args.nesterov or name == "sgd"):
        # timm's "sgd" is Nesterov's unless told otherwise.
        options["nesterov"] = args.nesterov
    if (args.adam_beta1, args.adam_beta2) != (0.9, 0.999):
        options["betas"] = (args.adam_beta1, args.adam_beta2)
    if args.adam_epsilon != 1e-8:
        options["eps"] = args.adam_epsilon
    names = set(decayed)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": args.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter_name not in names]["params"].append(parameter)
    groups = [group for group in groups if group["params"]]
    optimizer: Optimizer = timm.optim.create_optimizer_v2(
        groups, opt=args.optimizer, lr=args.learning_rate, **options
    )
    return optimizer


def create_threshold_optimizer(
    args: TernaryTrainingArguments, parameters: Sequence[nn.Parameter]
) -> Optimizer:
    """The alternate update's optimizer of thresholds and scales: no momentum, no weight decay.

    He & Fan (2019) use plain SGD; ``"adam"`` is their ablation.
    """
    rate = threshold_rate(args)
    if args.threshold_optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=0.0)
    return torch.optim.SGD(parameters, lr=rate, momentum=0.0, weight_decay=0.0)


def threshold_rate(args: TernaryTrainingArguments) -> float:
    """The initial learning rate of thresholds and scales."""
    rate = args.threshold_learning_rate
    return args.learning_rate if rate is None else rate


def rate_of(optimizer: Any, parameters: Iterable[nn.Parameter]) -> float:
    """The present learning rate of `parameters`: of the first group that holds one of them.

    Or of the last group, that of thresholds and scales, where a wrapper put others in their place.
    """
    wanted = {id(parameter) for parameter in parameters}
    groups = optimizer.param_groups
    found = (g for g in groups if any(id(parameter) in wanted for parameter in g["params"]))
    return float(next(found, groups[-1])["lr"])


def multi_step_schedule(
    optimizer: Optimizer, milestones: Sequence[int], gammas: Sequence[float], warmup_steps: int = 0
) -> LambdaLR:
    """Every group's rate times a factor at each milestone, after a linear warmup from 0.

    Args:
        optimizer: Its groups keep their own initial rates.
        milestones: Optimizer steps, increasing: the first steps taken at the lower rate.
        gammas: The factor at each milestone, or one for all.
        warmup_steps: Optimizer steps until the full rate is reached.
    """
    each = [*gammas] * (len(milestones) if len(gammas) == 1 else 1)

    def factor(step: int) -> float:
        warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        return warmup * math.prod(each[: bisect_right(milestones, step)])

    return LambdaLR(optimizer, factor)
