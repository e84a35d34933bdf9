"""Of transformers: what its quantizers, its argument parser and its Trainer keep inside.

(5.17 to 5.24)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import Field
from typing import Any

from torch import Tensor, nn
from transformers import HfArgumentParser
from transformers.quantizers import auto

__all__ = [
    "TRAINER_HOOKS",
    "add_parser_field",
    "is_loaded",
    "keeping_renamings",
    "mark_loaded",
    "overridable_when_loading",
]

TRAINER_HOOKS = (
    "_determine_best_metric",
    "_get_dataloader",
    "_load_best_model",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_push_from_checkpoint",
    "_save",
    "_save_checkpoint",
)
"""Private methods of Trainer that training/ overrides."""


def mark_loaded(module: nn.Module) -> None:
    """Keep ``from_pretrained`` from initializing `module`, and so from reading its weight."""
    module._is_hf_initialized = True  # type: ignore[assignment]


def is_loaded(tensor: Tensor) -> bool:
    """Whether ``from_pretrained`` found `tensor` in the file, in its shape."""
    return bool(getattr(tensor, "_is_hf_initialized", False))


def overridable_when_loading(config_class: type) -> None:
    """Let an argument of ``from_pretrained`` override parts of a directory's own configuration.

    Those that ``get_loading_attributes`` of `config_class`, a quantization config, gives.
    """
    auto.LOADING_ATTRIBUTES_CONFIG_TYPES += (config_class,)


@contextmanager
def keeping_renamings(model: nn.Module) -> Iterator[None]:
    """Keep what is known of how the names in the file differ from the model's own.

    transformers 5.24 forgets it together with the quantization, and ``save_pretrained`` would then
    write ``timm_model.`` in front of every name, which timm cannot load.
    """
    renamings = vars(model).get("_weight_conversions")
    yield
    if renamings is not None:
        model._weight_conversions = renamings


def add_parser_field(parser: Any, field: Field[Any]) -> None:
    """Add the option of a dataclass field to an argument parser, as HfArgumentParser does."""
    HfArgumentParser._parse_dataclass_field(parser, field)
