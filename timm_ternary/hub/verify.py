"""What is compared before anything is published: the files against the model, and both forms."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.directory import CONFIG_NAME, load_packed
from ..checkpoint.weights_file import WEIGHTS_NAME, read_weights
from ..models.names import load_model
from ..nn.convert import quantizers_of, ternary_layers
from ..nn.forms import layer_code
from ..nn.timm_wrapper import quantization_dict

__all__ = ["check_loads", "check_same"]


def check_same(model: nn.Module, directory: str | Path) -> None:
    """Refuse files that do not give the logits of `model`."""
    # On the CPU, in one type and layout, as the other: kernels may differ in the order of sums.
    twin: Any = deepcopy(model)
    twin = twin.to("cpu", torch.float32, memory_format=torch.contiguous_format)
    images = _images(twin)
    loaded = load_model(str(directory))
    if not torch.equal(_logits(twin, images), _logits(loaded, images)):
        raise ValueError(
            "the saved model does not give the logits of this one, so nothing is uploaded; type "
            "timm_ternary.pack_(model) and compare the two"
        )


def check_loads(directory: Path) -> None:
    """Refuse a directory that does not load, or whose two forms are not the same model."""
    stored = read_weights(directory / WEIGHTS_NAME)
    if stored.latent:
        raise ValueError(
            f"{directory}: holds latent weights, not packed ones; type: timm-ternary pack "
            f"{directory} OUT, then push OUT"
        )
    config = _read_config(directory)
    if stored.config is None:
        float_model = load_model(str(directory))
        _logits(float_model, _images(float_model))
        return
    stated = config.get("quantization_config")
    if stated is not None and stated != quantization_dict(stored.config, str(stored.encoding)):
        raise ValueError(
            f"{directory / CONFIG_NAME}: quantization_config is not that of {WEIGHTS_NAME}; type: "
            f"timm-ternary pack {directory} OUT, then push OUT"
        )
    packed, trainable = load_packed(directory), load_packed(directory, packed=False)
    images = _images(packed)
    logits = [_logits(model, images) for model in (packed, trainable)]
    tolerance = max((q.restore_tolerance for q in quantizers_of(trainable).values()), default=0.0)
    same = torch.equal(*logits) if tolerance == 0 else _near(packed, trainable, tolerance)
    if not same:
        raise ValueError(
            f"{directory}: packed and trainable form are not the same model, so nothing is uploaded"
        )


def _read_config(directory: Path) -> dict[str, Any]:
    """config.json, for errors that name it: timm's own do not."""
    path = directory / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise ValueError(f"{path}: it names no architecture; write it by timm_ternary or timm")
    return config


def _near(packed: nn.Module, trainable: nn.Module, tolerance: float) -> bool:
    """Whether the ternary weights of both agree within a relative tolerance."""
    if math.isinf(tolerance):
        return True
    others = ternary_layers(trainable)
    return all(
        torch.allclose(
            layer_code(layer).decode(), layer_code(others[name]).decode(), rtol=tolerance, atol=0
        )
        for name, layer in ternary_layers(packed).items()
    )


def _images(model: nn.Module) -> Tensor:
    """Two random images as `model` takes them, ``(2, channels, height, width)``."""
    config: Any = model.pretrained_cfg
    return torch.randn(2, *config["input_size"], generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model.eval()(images)
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the model's logits are not finite, so nothing is uploaded")
    return logits
