"""What transformers' wrapper of a timm model, and config.json, say of a ternary model."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config import TernaryConfig

__all__ = ["QUANT_METHOD", "describe", "quantization_dict"]

QUANT_METHOD = "ternary"
_SUFFIX = "_tern"


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
    timm_model: Any = getattr(model, "timm_model", None)
    said: Any = getattr(model, "config", None)
    if timm_model is None or not hasattr(said, "architecture"):
        return
    base = said.architecture.removesuffix(_SUFFIX)
    said.architecture = base if config is None else base + _SUFFIX
    if isinstance(pretrained_cfg := getattr(timm_model, "pretrained_cfg", None), dict):
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
