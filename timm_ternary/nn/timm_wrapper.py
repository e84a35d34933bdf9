"""transformers' wrapper of a timm model: the model within, and what config.json says of it."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from ..config import TernaryConfig
from ..names import base_name, ternary_name

__all__ = [
    "QUANT_METHOD",
    "describe",
    "is_wrapper",
    "quantization_dict",
    "timm_names",
    "unwrap",
    "wrapper_prefix",
]

_T = TypeVar("_T")

QUANT_METHOD = "ternary"
_WITHIN = "timm_model"


def is_wrapper(model: nn.Module) -> bool:
    """Whether `model` is transformers' TimmWrapper, with or without a head."""
    # timm's own models have a pretrained_cfg, whatever they call their parts.
    return isinstance(getattr(model, _WITHIN, None), nn.Module) and not hasattr(
        model, "pretrained_cfg"
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The timm model within a wrapper; any other model is its own."""
    inner: nn.Module = getattr(model, _WITHIN) if is_wrapper(model) else model
    return inner


def wrapper_prefix(model: nn.Module) -> str:
    """What a wrapper puts before the names of its timm model's parts; empty for other models."""
    return f"{_WITHIN}." if is_wrapper(model) else ""


def timm_names(tensors: dict[str, _T]) -> dict[str, _T]:
    """Tensors of a file, or what is known of each, by timm's names.

    Without what transformers' wrapper puts before them.

    It takes that off in the files of models that ``from_pretrained`` made, not in those of others.
    """
    prefix = f"{_WITHIN}."
    if not tensors or not all(name.startswith(prefix) for name in tensors):
        return tensors
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def quantization_dict(config: TernaryConfig, encoding: str) -> dict[str, Any]:
    """config.json's ``quantization_config``: by which transformers knows a quantized model."""
    return {"quant_method": QUANT_METHOD, **config.to_dict(), "encoding": encoding}


def describe(model: nn.Module, config: TernaryConfig | None, encoding: str | None) -> None:
    """Make a wrapper's configuration, which ``save_pretrained`` writes, say what its model is now.

    Without it the directory would load as what the model was, with random weights.

    Args:
        model: Any; all but transformers' TimmWrapper are left alone.
        config: How the model is ternary; None: it is float.
        encoding: In which a packed model is saved; None: it is not packed.
    """
    said: Any = getattr(model, "config", None)
    if not is_wrapper(model) or not hasattr(said, "architecture"):
        return
    base = base_name(said.architecture)
    said.architecture = base if config is None else ternary_name(base)
    if isinstance(pretrained_cfg := getattr(unwrap(model), "pretrained_cfg", None), dict):
        pretrained_cfg["architecture"] = said.architecture
    arguments = dict(said.model_args or {})
    for key in ("ternary", "packed"):
        arguments.pop(key, None)
    if hasattr(said, "quantization_config"):
        del said.quantization_config
    if config is not None:
        arguments["ternary"] = config.to_dict()
        if encoding is not None:
            arguments["packed"] = encoding
            said.quantization_config = quantization_dict(config, encoding)
    said.model_args = arguments
