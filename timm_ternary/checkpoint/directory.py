"""A directory of model.safetensors (weights_file.py) and config.json (config_json.py)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from torch import Tensor, nn

from .. import packing
from ..config import TernaryConfig
from ..errors.foreign import FileError, foreign
from ..files import atomic_write, sha256
from ..names import base_name, is_ternary_name, ternary_name
from ..nn.convert import checked_code, config_of, float_state, ternary_layers
from ..nn.select import select_layers
from ..nn.timm_wrapper import quantization_dict
from .config_json import CONFIG_NAME, ModelConfig, read_config, write_config
from .skeleton import check_fits, check_room, skeleton_of
from .weights_file import (
    WEIGHTS_NAME,
    StoredWeights,
    WeightsFile,
    file_bytes,
    has_nan,
    packed_tensors,
    read_file,
)

__all__ = [
    "CONFIG_NAME",
    "StoredDirectory",
    "check_directory",
    "load_packed",
    "open_directory",
    "packed_parts",
    "save_float",
    "save_packed",
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredDirectory:
    """A directory that was read, to be handed on instead of its path.

    Attributes:
        path: Of the directory.
        config: What config.json says.
        file: What model.safetensors holds, as it is there.
    """

    path: Path
    config: ModelConfig
    file: WeightsFile

    @property
    def weights(self) -> StoredWeights:
        """What model.safetensors holds, checked and decoded.

        Raises:
            ValueError: It holds packed tensors without this project's metadata.
        """
        return self.file.stored

    @cached_property
    def sha256(self) -> str:
        """Digest of the weights file as training.json states it; its bytes are read for it once."""
        return sha256(self.file.path)


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


def open_directory(directory: str | Path | StoredDirectory) -> StoredDirectory:
    """Read both files of a directory, decode its weights, and compare the two.

    Args:
        directory: As `save_packed`, `save_float` or timm writes it. One that is open already is
            returned as it is.

    Raises:
        ValueError: A file is missing, damaged, foreign or of a later version, or the two are of
            different architectures; the message names the tensor at fault.
    """
    if isinstance(directory, StoredDirectory):
        return directory
    path = Path(directory)
    file = read_file(path / WEIGHTS_NAME)
    if not (path / CONFIG_NAME).is_file():
        raise FileError(f"{directory}: no {CONFIG_NAME} beside {WEIGHTS_NAME}")
    config = read_config(path / CONFIG_NAME)
    _compare(config, file)
    # A bare file says nothing of itself: the model's entry point goes by config.json.
    if not file.is_bare:
        _ = file.stored
    return StoredDirectory(path, config, file)


def check_directory(directory: Path, *, weights: bool = True) -> None:
    """What timm reads of a directory on its own, looked at before it does: config.json, and of a
    float model the shapes of its weights.

    Args:
        weights: They will be read. (The entry points of ternary models look at theirs.)

    Raises:
        FileError: config.json is missing or damaged, or the weights are of another model.
    """
    config = read_config(directory / CONFIG_NAME)
    name = config.architecture
    if weights and name and not is_ternary_name(name) and (directory / WEIGHTS_NAME).exists():
        _compare(config, read_file(directory / WEIGHTS_NAME))


def _compare(config: ModelConfig, file: WeightsFile) -> None:
    """config.json and the names and shapes of tensors, before one of them is read."""
    if file.is_packed:
        config.check_architecture(file.header["architecture"])
        check_fits(file, skeleton_of(config), file.path.parent)
    elif config.architecture is not None and timm.is_model(config.architecture):
        check_room(file, skeleton_of(config))


def load_packed(directory: str | Path | StoredDirectory, packed: bool = True) -> nn.Module:
    """The model of a packed directory, whose files are read once.

    Args:
        directory: As written by `save_packed`, or one that is open already.
        packed: False gives the trainable form, with the same outputs.

    Raises:
        ValueError: A file is missing, damaged, foreign or of a later version, or the two disagree;
            the message names the tensor at fault.
    """
    opened = open_directory(directory)
    file = opened.file
    if not file.is_bare and not file.is_packed:
        raise FileError(
            f"{file.path}: not packed by timm_ternary; type: timm-ternary pack {opened.path}"
        )
    # In the place of a state dict: the entry point takes the file as it was read.
    kwargs: dict[str, Any] = {"pretrained_cfg_overlay": {"state_dict": file}}
    if not packed:
        kwargs["packed"] = False
    # timm believes config.json: a missing key or a wrong argument ends where it is used.
    with foreign(f"{opened.config.path}: timm cannot build this model"):
        return timm.create_model(f"local-dir:{opened.path}", pretrained=True, **kwargs)


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
    name = ternary_name(_float_architecture(model))
    if not timm.is_model(name):
        raise ValueError(
            f"timm knows no model {name!r}; type: "
            f"timm_ternary.register_ternary({base_name(name)!r})"
        )
    return name


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
            directory / CONFIG_NAME, lambda path: write_config(model, path, extra, **arguments)
        ),
        atomic_write(directory / WEIGHTS_NAME, lambda path: path.write_bytes(data)),
    ):
        pass
    return directory
