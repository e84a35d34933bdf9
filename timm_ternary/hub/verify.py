"""What is compared before anything is published: the files against the model, and both forms."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.directory import StoredDirectory, load_packed
from ..checkpoint.weights_file import WEIGHTS_NAME
from ..models.names import load_model
from ..nn.convert import quantizers_of, ternary_layers
from ..nn.forms import layer_code
from ..nn.timm_wrapper import quantization_dict

__all__ = ["check_loads", "check_same"]


def check_same(model: nn.Module, opened: StoredDirectory) -> None:
    """Refuse files that do not give the logits of `model`.

    Args:
        model: It is not changed.
        opened: What was written of it.

    Raises:
        ValueError: The logits differ, or are not finite.
    """
    # On the CPU, in one type and layout, as the other: kernels may differ in the order of sums.
    twin: Any = deepcopy(model)
    twin = twin.to("cpu", torch.float32, memory_format=torch.contiguous_format)
    images = _images(twin)
    loaded = load_packed(opened) if opened.file.is_packed else _load_float(opened)
    if not torch.equal(_logits(twin, images), _logits(loaded, images)):
        raise ValueError(
            "the saved model does not give the logits of this one, so nothing is uploaded; type "
            "timm_ternary.pack_(model) and compare the two"
        )


def check_loads(opened: StoredDirectory) -> None:
    """Refuse a directory that does not load, or whose two forms are not the same model.

    Raises:
        ValueError: It is so, or config.json does not say what the weights are.
    """
    directory, stored = opened.path, opened.weights
    if stored.latent:
        raise ValueError(
            f"{directory}: holds latent weights, not packed ones; type: timm-ternary pack "
            f"{directory} OUT, then push OUT"
        )
    opened.config.check_architecture()
    if stored.config is None:
        float_model = _load_float(opened)
        _logits(float_model, _images(float_model))
        return
    stated = opened.config.quantization_config
    if stated is not None and stated != quantization_dict(stored.config, str(stored.encoding)):
        raise ValueError(
            f"{opened.config.path}: quantization_config is not that of {WEIGHTS_NAME}; type: "
            f"timm-ternary pack {directory} OUT, then push OUT"
        )
    packed, trainable = load_packed(opened), load_packed(opened, packed=False)
    images = _images(packed)
    logits = [_logits(model, images) for model in (packed, trainable)]
    tolerance = max((q.restore_tolerance for q in quantizers_of(trainable).values()), default=0.0)
    same = torch.equal(*logits) if tolerance == 0 else _near(packed, trainable, tolerance)
    if not same:
        raise ValueError(
            f"{directory}: packed and trainable form are not the same model, so nothing is uploaded"
        )


def _load_float(opened: StoredDirectory) -> nn.Module:
    """The float model of a directory, of the tensors that were read."""
    # timm takes tensors where the source of the weights is none of its own.
    overlay = {"source": None, "file": None, "state_dict": opened.weights.dense}
    return load_model(f"local-dir:{opened.path}", pretrained_cfg_overlay=overlay)


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
