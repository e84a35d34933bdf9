"""Packed checkpoints: a directory of model.safetensors (weights_file.py) and config.json (timm)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from torch import Tensor, nn

from .. import packing
from ..compat.timm import write_config
from ..config import TernaryConfig
from ..errors.wording import flat
from ..files import atomic_write
from ..nn.convert import checked_code, config_of, float_state, ternary_layers
from ..nn.select import select_layers
from ..nn.timm_wrapper import quantization_dict
from .weights_file import (
    WEIGHTS_NAME,
    file_bytes,
    has_nan,
    is_bare_file,
    packed_tensors,
    read_weights,
)

__all__ = [
    "CONFIG_NAME",
    "load_packed",
    "packed_parts",
    "save_float",
    "save_packed",
]

_logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"


def save_packed(model: nn.Module, directory: str | Path, encoding: str = "2bit") -> Path:
    """Write `model` as a complete directory that ``timm.create_model("local-dir:...")`` loads.

    Args:
        model: A ternary timm model, trainable or packed; it is not changed.
        directory: Made if need be. Files of these names in it are replaced, each at once.
        encoding: ``"2bit"``, ``"base3"`` or ``"zstd"``.

    Returns:
        The directory.

    Raises:
        ValueError: The model is not ternary, is no timm model, holds NaN or infinite scales,
            or the encoding is unknown. Nothing is written then.
        OSError: The directory cannot be written. Older files in it stay whole.
    """
    tensors, metadata, config = packed_parts(model, encoding)
    extra = {
        "pretrained_cfg": {"architecture": _architecture(model)},
        "quantization_config": quantization_dict(config, encoding),
    }
    data = file_bytes(tensors, metadata)
    return _write(model, directory, data, extra, ternary=config.to_dict(), packed=encoding)


def packed_parts(
    model: nn.Module, encoding: str
) -> tuple[dict[str, Tensor], dict[str, str], TernaryConfig]:
    """What `save_packed` writes: tensors on the CPU, metadata, and the configuration.

    Raises:
        ValueError: As `save_packed`.
    """
    packing.check_encoding(encoding)
    config = config_of(model)
    if config is None:
        raise ValueError("the model is not ternary; type: timm_ternary.ternarize_(model)")
    config = _exclude_float_layers(model, config)
    architecture = _architecture(model)
    layers = ternary_layers(model, every_name=True)
    tensors, metadata = packed_tensors(
        {name: checked_code(name, layer).to("cpu") for name, layer in layers.items()},
        _tensors(float_state(model)),
        config=config,
        encoding=encoding,
        architecture=architecture,
    )
    return tensors, metadata, config


def save_float(model: nn.Module, directory: str | Path) -> Path:
    """Write a float timm model as a directory that timm loads, each file at once.

    Unlike ``timm.models.save_for_hf`` it leaves a directory that transformers loads too.

    Raises:
        ValueError: The model holds NaN, or is no timm model. Nothing is written then.
        OSError: The directory cannot be written. Older files in it stay whole.
    """
    _float_architecture(model)
    tensors = _tensors(model.state_dict())
    return _write(model, directory, safetensors.torch.save(tensors, {"format": "pt"}), {})


def load_packed(directory: str | Path, packed: bool = True) -> nn.Module:
    """The model of a packed directory.

    Args:
        directory: As written by `save_packed`.
        packed: False gives the trainable form, with the same outputs.

    Raises:
        ValueError: A file is missing, damaged, foreign or of a later version, or the two disagree;
            the message names the tensor at fault.
    """
    path = Path(directory) / WEIGHTS_NAME
    # A bare file says nothing of itself: the model's entry point goes by config.json.
    stored = None if is_bare_file(path) else read_weights(path)
    if stored is not None and stored.config is None:
        raise ValueError(f"{path}: not packed by timm_ternary; type: timm-ternary pack {directory}")
    path = Path(directory) / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"{directory}: no {CONFIG_NAME} beside {WEIGHTS_NAME}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    name = values.get("architecture") if isinstance(values, dict) else None
    if stored is not None and name != stored.architecture:
        raise ValueError(
            f"{path}: the weights are those of {stored.architecture!r}, not of {name!r}"
        )
    kwargs = {} if packed else {"packed": False}
    try:
        return timm.create_model(f"local-dir:{directory}", pretrained=True, **kwargs)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
        # timm believes config.json: a missing key or a wrong argument ends where it is used.
        reason = flat(error)[:300]
        raise ValueError(
            f"{path}: timm cannot build this model ({type(error).__name__}: {reason})"
        ) from error


def _exclude_float_layers(model: nn.Module, config: TernaryConfig) -> TernaryConfig:
    """`config`, without layers that were replaced since (``reset_classifier``) and are float."""
    layers = tuple(select_layers(model, config))
    if not layers:
        return config
    _logger.warning("%s: float, saved as float and excluded in the file", ", ".join(layers))
    return replace(config, exclude=config.exclude + layers)


def _float_architecture(model: nn.Module) -> str:
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not name or not hasattr(model, "num_features"):
        raise ValueError(
            f"{type(model).__name__} is no timm classification model, so timm could not load it "
            "back; build it with timm.create_model (your own: timm_ternary.register_ternary)"
        )
    return str(name)


def _architecture(model: nn.Module) -> str:
    name = _float_architecture(model)
    name = name if name.endswith("_tern") else f"{name}_tern"
    if not timm.is_model(name):
        raise ValueError(
            f"timm knows no model {name!r}; type: timm_ternary.register_ternary({name[:-5]!r})"
        )
    return str(name)


def _tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` as safetensors takes it, checked."""
    tensors = {
        # A clone each: safetensors refuses tensors that share memory, and tied ones do.
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in state.items()
    }
    for name, tensor in tensors.items():
        if has_nan(tensor):
            raise ValueError(f"tensor {name} holds NaN; nothing is written")
    return tensors


def _write(
    model: nn.Module, directory: str | Path, data: bytes, extra: dict[str, Any], **arguments: Any
) -> Path:
    """Both files of a directory: in full on the disk before either takes its name."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write(
            directory / CONFIG_NAME, lambda path: _write_config(model, path, extra, **arguments)
        ),
        atomic_write(directory / WEIGHTS_NAME, lambda path: path.write_bytes(data)),
    ):
        pass
    return directory


def _write_config(model: nn.Module, path: Path, extra: dict[str, Any], **arguments: Any) -> None:
    """Write timm's config.json, with `arguments` among the model_args."""
    pretrained_cfg: Any = model.pretrained_cfg
    if pretrained_cfg.get("label_names"):
        extra = {**extra, "label_names": pretrained_cfg["label_names"]}
    write_config(model, path, extra=extra, model_args=arguments)
    values = json.loads(path.read_text())
    # TimmWrapper passes num_classes itself: twice is an error. It stands at the top level too.
    values.get("model_args", {}).pop("num_classes", None)
    path.write_text(json.dumps(values, indent=2) + "\n")
