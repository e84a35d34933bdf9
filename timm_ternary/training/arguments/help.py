"""The help of a training: every field once, ours first, in groups."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

from .hints import choices, describe_hint

__all__ = ["GROUPS", "describe", "options"]

GROUPS: dict[str, tuple[str, ...]] = {
    "The model": ("model", "ternary", "checkpoint", "pretrained", "model_kwargs", "in_chans"),
    "The data": (
        "dataset", "dataset_config", "train_split", "eval_split", "image_column", "label_column",
        "max_train_samples", "max_eval_samples", "in_memory", "streaming", "shuffle_buffer",
        "num_classes",
    ),
    "Images and augmentation": (
        "image_size", "mean", "std", "padding", "hflip", "random_resized_crop", "color_jitter",
        "auto_augment", "re_prob", "mixup", "cutmix",
    ),
    "Thresholds and scales": (
        "update", "threshold_learning_rate", "threshold_optimizer", "threshold_every",
        "threshold_fraction", "soft_epochs", "soft_temperature", "compile_quantizers",
    ),
    "Optimizer, schedule and average": (
        "optimizer", "momentum", "nesterov", "lr_milestones", "lr_gamma", "ema_decay",
        "bn_reestimate",
    ),
    "Distillation": ("teacher", "distill_alpha", "distill_temperature"),
    "When to stop, and what is said": (
        "early_stopping_patience", "early_stopping_threshold", "metric_for_best_model", "quiet",
    ),
    "Of transformers, the most used": (
        "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size",
        "per_device_eval_batch_size", "learning_rate", "weight_decay", "lr_scheduler_type",
        "warmup_steps", "label_smoothing_factor", "max_grad_norm", "gradient_accumulation_steps",
        "seed", "bf16", "use_cpu", "dataloader_num_workers", "eval_strategy", "save_strategy",
        "save_total_limit", "logging_steps", "load_best_model_at_end", "resume_from_checkpoint",
        "report_to", "push_to_hub", "hub_model_id",
    ),
}  # fmt: skip
"""Fields by what they are about. Those that no group names come last, in a group of their own."""

_REST = "All others of transformers"


def describe(usage: str, *dataclass_types: type) -> str:
    """The help text: every field of the dataclasses once, with its type and default.

    Args:
        usage: The first line.
        *dataclass_types: As of `recipe.parse`.
    """
    known = {f.name: (f, hint) for f, hint in _fields(dataclass_types)}
    named = {name for names in GROUPS.values() for name in names}
    groups = {title: [n for n in names if n in known] for title, names in GROUPS.items()}
    groups[_REST] = sorted(known.keys() - named)
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 40), 110)
    lines = [*_wrapped(f"usage: {usage}", width, "    "), ""]
    lines += _wrapped(
        "The keys of RECIPE.yaml are the names below without their dashes. The command line "
        "overrides the recipe; lists are given there as several words, mappings as JSON.",
        width,
        "",
    )
    for title, names in groups.items():
        if names:
            lines += ["", f"{title}:"]
            lines += [line for name in names for line in _entry(*known[name], width)]
    return "\n".join(lines)


def options(*dataclass_types: type) -> dict[str, tuple[str, ...]]:
    """Every option of the command line, and the words it takes where these are few."""
    return {f"--{f.name}": choices(hint) for f, hint in _fields(dataclass_types)}


def _fields(
    dataclass_types: tuple[type, ...],
) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    for cls in dataclass_types:
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if f.init:
                yield f, hints[f.name]


def _entry(f: dataclasses.Field[Any], hint: Any, width: int) -> list[str]:
    default = _default(f)
    end = "" if default is None else f" (default: {default})"
    head = f"  --{f.name}  {describe_hint(hint).removesuffix(' or null')}{end}"
    text = " ".join(str(f.metadata.get("help", "")).replace("%%", "%").split())
    return _wrapped(head, width, "    ") + (_wrapped(f"      {text}", width, "      "))


def _default(f: dataclasses.Field[Any]) -> str | None:
    if f.default_factory is not dataclasses.MISSING:
        value = f.default_factory()
    else:
        value = None if f.default is dataclasses.MISSING else f.default
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, list):
        return " ".join(map(str, value)) or None
    return None if value is None or value == "" else str(value)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)
