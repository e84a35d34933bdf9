"""Of timm: what ``timm.models`` does not export. (1.0.31)"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models._features import FeatureGetterNet, feature_take_indices
from timm.models._helpers import load_checkpoint
from timm.models._hub import hf_split, load_model_config_from_path, save_config_for_hf
from timm.models._input import get_model_traits
from torch import nn

__all__ = [
    "base_optimizer",
    "built_with",
    "directory_config",
    "first_convolutions",
    "in_load_checkpoint",
    "is_feature_getter",
    "save_config",
    "split_hub_id",
    "take_indices",
]


def base_optimizer(optimizer: Any) -> Any:
    """What timm's Lookahead steps, whose groups and state it shares; any other is its own."""
    return getattr(optimizer, "_base_optimizer", optimizer)


def split_hub_id(hub_id: str) -> tuple[str, str | None]:
    """``user/name@revision`` as repository and revision."""
    repository, revision = hf_split(hub_id)
    return repository, revision


def directory_config(directory: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """pretrained_cfg, architecture and model_args of a directory's config.json."""
    cfg, architecture, model_args = load_model_config_from_path(directory)
    return cfg, architecture, model_args


def save_config(
    model: nn.Module, path: Path, *, extra: Mapping[str, Any], model_args: Mapping[str, Any]
) -> None:
    """Write timm's config.json of `model`, with `extra` at its top level."""
    save_config_for_hf(model, str(path), model_config=dict(extra), model_args=dict(model_args))


def first_convolutions(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that take the image, as the model states them."""
    found = get_model_traits(model).get("first_conv") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def built_with(model: nn.Module) -> dict[str, Any]:
    """The arguments that ``timm.create_model`` was given for `model`; empty for others."""
    return dict(getattr(model, "_model_args", {}))


def is_feature_getter(model: nn.Module) -> bool:
    """Whether `model` is the ``features_only`` wrapper that keeps its model under ``model.``."""
    return isinstance(model, FeatureGetterNet)


def take_indices(count: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Which of `count` feature maps `indices` asks for, and the last of them."""
    taken, last = feature_take_indices(count, indices)
    return taken, last


def in_load_checkpoint() -> bool:
    """Whether timm's load_checkpoint is what loads: that of ``create_model(checkpoint_path=...)``.

    It calls ``model.load_state_dict``, as everybody does, and hands nothing else down.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is load_checkpoint.__code__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
