"""What of a run decides whether a checkpoint fits it, as data that JSON holds."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from enum import Enum
from typing import Any

from torch import nn

from ...config import TernaryConfig
from ...nn.convert import config_of, quantizers_of
from ...nn.timm_wrapper import unwrap
from ...quantizers import resolve
from ...quantizers.registry import get, is_installed, option_defaults
from ..threshold_pass.functional import resolve_update

__all__ = ["CONTINUED", "KEPT", "batch_facts", "facts_of", "shortest"]

KEPT = (
    *("learning_rate", "threshold_learning_rate", "weight_decay", "momentum", "nesterov"),
    *("adam_beta1", "adam_beta2", "adam_epsilon"),
)
"""Arguments that the optimizer's state brings along: those of the run have no say."""

CONTINUED = (
    *("lr_scheduler_type", "lr_scheduler_kwargs", "lr_milestones", "lr_gamma", "warmup_steps"),
    *("threshold_every", "threshold_fraction", "max_grad_norm", "mixup", "cutmix", "bf16"),
    *("label_smoothing_factor", "distill_alpha", "distill_temperature", "seed", "data_seed"),
)
"""Arguments that may be others from here on, as somebody may want; it is said, and no more."""

_KINDS = {"reduce_lr_on_plateau": "ReduceLROnPlateau", "greedy": "GreedyLR"}


def facts_of(trainer: Any) -> dict[str, Any]:
    """The facts of a run, as they are before it trains.

    Args:
        trainer: An ImageTrainer: its model, arguments and data are looked at.
    """
    model, args = trainer.model, trainer.args
    quantizers = quantizers_of(model)
    config = config_of(model)
    own = list(quantizers.values())
    trained = any(p.requires_grad for quantizer in own for p in quantizer.parameters())
    update = resolve_update(args.update, own) if trained else None
    data = trainer.train_dataset
    return {
        "model": _model_name(model),
        "classes": _classes(model),
        "ternary": None if config is None else _ternary(config),
        "layers": sorted(quantizers),
        "update": update,
        "optimizer": _optimizer(trainer),
        "threshold_optimizer": args.threshold_optimizer if update == "alternate" else None,
        "schedule": _schedule(trainer),
        "batch": batch_facts(trainer),
        "soft_epochs": args.soft_epochs,
        "soft_temperature": _plain(args.soft_temperature),
        "frozen": sorted(n for n, p in model.named_parameters() if not p.requires_grad),
        "ema_decay": args.ema_decay,
        "fp16": getattr(trainer.accelerator, "scaler", None) is not None,
        "shards": _shards(trainer),
        "images": len(data) if isinstance(data, Sized) else None,
        "kept": {name: _plain(getattr(args, name, None)) for name in KEPT},
        "continued": {name: _plain(getattr(args, name, None)) for name in CONTINUED},
    }


def batch_facts(trainer: Any) -> dict[str, int]:
    """What an optimizer step sees: images a device, micro-batches, and processes that share.

    (With `split_batches` the loader's batch is that of all processes.)
    """
    split = bool(trainer.args.accelerator_config.split_batches)
    return {
        "per_device": int(trainer._train_batch_size),
        "accumulation": int(trainer.args.gradient_accumulation_steps),
        "processes": 1 if split else int(trainer.accelerator.num_processes),
    }


def _model_name(model: nn.Module) -> str:
    """timm's name of an architecture, without a tag; else the class."""
    inner = unwrap(model)
    cfg = getattr(inner, "pretrained_cfg", None)
    name = cfg.get("architecture") if isinstance(cfg, Mapping) else None
    return str(name or type(inner).__name__)


def _classes(model: nn.Module) -> int | None:
    count = getattr(unwrap(model), "num_classes", None)
    if not isinstance(count, int):
        count = getattr(getattr(model, "config", None), "num_labels", None)
    return count if isinstance(count, int) else None


def shortest(ternary: Mapping[str, Any]) -> Mapping[str, Any] | str:
    """What means the same as the fact `ternary`, to be typed: without what are the defaults."""
    method = str(ternary.get("method"))
    if not is_installed(method):
        return ternary
    usual = _ternary(TernaryConfig(method))
    given = {key: value for key, value in ternary.items() if value != usual.get(key)}
    if isinstance(given.get("options"), Mapping):
        own = usual["options"]
        given["options"] = {k: v for k, v in given["options"].items() if v != own.get(k, v)}
    return {"method": method, **given} if given else method


def _ternary(config: TernaryConfig) -> dict[str, Any]:
    """The configuration with the method's own defaults: what means the same is the same."""
    found = resolve(config).to_dict()
    defaults = option_defaults(get(config.method)) if is_installed(config.method) else {}
    found["options"] = _plain({**defaults, **found["options"]})
    return found


def _optimizer(trainer: Any) -> dict[str, str]:
    """Which optimizer trains the weights, by the argument that names it."""
    given, args = trainer.given_optimizer, trainer.args
    if given is not None:
        return {"class": given}
    if args.optimizer is not None:
        return {"optimizer": str(args.optimizer).lower()}
    return {"optim": str(_plain(args.optim))}


def _schedule(trainer: Any) -> str:
    """The class whose state scheduler.pt is: one cannot take over another's."""
    if trainer.given_schedule is not None:
        return str(trainer.given_schedule)
    named = str(_plain(trainer.args.lr_scheduler_type))
    return "LambdaLR" if trainer.args.lr_milestones else _KINDS.get(named, "LambdaLR")


def _shards(trainer: Any) -> str | None:
    if trainer.is_deepspeed_enabled:
        return "deepspeed"
    return "fsdp" if trainer.is_fsdp_enabled else None


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
