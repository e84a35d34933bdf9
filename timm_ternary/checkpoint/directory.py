"""A directory of model.safetensors (weights_file.py) and config.json (config_json.py)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from .. import packing
from ..code import TernaryCode
from ..config import TernaryConfig
from ..errors.foreign import FileError, foreign
from ..errors.printable import shown
from ..files import read_json, sha256, write_json
from ..names import base_name, is_ternary_name, ternary_name
from ..nn.convert import checked_code, config_of, float_state, is_packed, ternary_layers
from ..nn.packed import PackedWeight
from ..nn.select import select_layers
from ..nn.state_dict import weight_key
from ..nn.timm_wrapper import quantization_dict
from ..nn.trainable import latent_weight
from .config_json import CONFIG_NAME, ModelConfig, config_values, read_config
from .pair import CONFIG_DIGEST, check_pair, config_digest, weights_in, write_pair
from .rebuild import adapt, check_names, check_rebuilds
from .skeleton import check_fits, check_room, skeleton_of
from .weights_file import (
    WEIGHTS_NAME,
    StoredWeights,
    WeightsFile,
    file_bytes,
    has_nan,
    is_stored,
    packed_tensors,
    read_file,
)

__all__ = [
    "CONFIG_NAME",
    "PackedParts",
    "StoredDirectory",
    "accept_config",
    "check_directory",
    "load_packed",
    "open_directory",
    "packed_parts",
    "save_float",
    "save_packed",
    "write_config",
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


def save_packed(
    model: nn.Module,
    directory: str | Path,
    encoding: str = "2bit",
    *,
    model_args: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model` as a complete directory that ``timm.create_model("local-dir:...")`` loads.

    Before that, what timm will build from it is compared with the model (checkpoint/rebuild.py).
    Whatever stops the writing, the older version of the directory loads, or the new one.

    Args:
        model: A ternary timm model, trainable or packed; it is not changed.
        directory: Made if need be. Files of these names in it are replaced.
        encoding: ``"2bit"``, ``"base3"`` or ``"zstd"``.
        model_args: Arguments of ``timm.create_model`` that give this model and that timm does not
            know of: those that were no JSON, as ``{"act_layer": "gelu"}`` for a class, or of a
            model that was changed by hand.

    Returns:
        The directory.

    Raises:
        ValueError: The model is not ternary, is no timm model, holds NaN or infinite scales,
            timm would build another one, or the encoding is unknown. Nothing is written then.
        OSError: The directory cannot be written. What loaded before, loads.
    """
    model = _whole(model)
    parts = packed_parts(model, encoding)
    extra = {
        "pretrained_cfg": {"architecture": parts.architecture},
        "quantization_config": quantization_dict(parts.config, encoding),
    }
    arguments = {**(model_args or {}), "ternary": parts.config.to_dict(), "packed": encoding}
    values = adapt(config_values(model, extra, arguments), model)
    values = check_rebuilds(values, model, parts.dense(), parts.config)
    return _write(directory, parts.tensors, parts.metadata, values)


@dataclass(frozen=True)
class PackedParts:
    """What `save_packed` writes of a model.

    Attributes:
        tensors: Those of the file, by their names there; on the CPU.
        metadata: Of the file, but for the digest of config.json.
        config: How the model is ternary, with the layers that are float.
        architecture: timm's name of it.
        codes: Of the ternary layers, by name.
        floats: All other tensors.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    config: TernaryConfig
    architecture: str
    codes: Mapping[str, TernaryCode]
    floats: Mapping[str, Tensor]

    def dense(self) -> dict[str, Tensor]:
        """Every tensor by timm's name, ternary weights decoded."""
        decoded = {weight_key(name): code.decode() for name, code in self.codes.items()}
        return {**self.floats, **decoded}


def packed_parts(model: nn.Module, encoding: str) -> PackedParts:
    """What `save_packed` writes, on the CPU.

    Raises:
        ValueError: As `save_packed`, but for what timm would build.
    """
    packing.check_encoding(encoding)
    config = config_of(model)
    if config is None:
        raise ValueError("the model is not ternary; type: timm_ternary.ternarize_(model)")
    config = _exclude_float_layers(model, config)
    architecture = _architecture(model)
    layers = ternary_layers(model, every_name=True)
    codes = {name: checked_code(name, layer).to("cpu") for name, layer in layers.items()}
    floats = _tensors(float_state(model))
    tensors, metadata = packed_tensors(
        codes, floats, config=config, encoding=encoding, architecture=architecture
    )
    return PackedParts(tensors, metadata, config, architecture, codes, floats)


def save_float(
    model: nn.Module, directory: str | Path, *, model_args: Mapping[str, Any] | None = None
) -> Path:
    """Write a float timm model as a directory that timm loads.

    Unlike ``timm.models.save_for_hf`` it leaves a directory that transformers loads too, and
    compares what timm will build from it with the model.

    Args:
        model, directory, model_args: As `save_packed`.

    Raises:
        ValueError: The model is ternary, holds NaN, is no timm model, or timm would build another
            one. Nothing is written then.
        OSError: The directory cannot be written. What loaded before, loads.
    """
    model = _whole(model)
    if config_of(model) is not None:
        raise ValueError("the model is ternary; type: timm_ternary.checkpoint.save_packed(model)")
    # A name of a ternary twin whose layers are plain now: its directory would load as ternary.
    extra = {"pretrained_cfg": {"architecture": base_name(_float_architecture(model))}}
    tensors = _tensors(model.state_dict())
    arguments = {**(model_args or {}), **dict.fromkeys(("ternary", "packed"))}
    values = adapt(config_values(model, extra, arguments), model)
    values = check_rebuilds(values, model, tensors)
    return _write(directory, tensors, {"format": "pt"}, values)


def write_config(model: nn.Module, directory: Path) -> None:
    """Write the config.json by which timm loads the state dict of `model` that lies beside it.

    For checkpoints of a training: a ternary model keeps its trainable form. Where timm would build
    another model, a line on the log says so, and none is written: training goes on.

    Args:
        model: A timm model; others are passed over.
        directory: Where somebody else writes model.safetensors.

    Raises:
        OSError: The directory cannot be written.
    """
    model = _whole(model)
    if not _is_timm_model(model):
        return
    config = config_of(model)
    weights = {
        weight_key(name): layer.weight if isinstance(layer, PackedWeight) else latent_weight(layer)
        for name, layer in ternary_layers(model, every_name=True).items()
    }
    arguments: dict[str, Any] = {"ternary": None, "packed": "2bit" if is_packed(model) else None}
    try:
        if config is not None:
            config = _exclude_float_layers(model, config)
            arguments["ternary"] = config.to_dict()
        name = base_name(_float_architecture(model)) if config is None else _architecture(model)
        extra = {"pretrained_cfg": {"architecture": name}}
        values = adapt(config_values(model, extra, arguments), model)
        values, _ = check_names(values, model, {**float_state(model), **weights})
    except ValueError as error:
        _logger.warning("%s: timm will not load it, without config.json: %s", directory, error)
        return
    write_json(directory / CONFIG_NAME, values)


def accept_config(directory: str | Path) -> None:
    """Take the config.json of a directory as that of its weights, after it was edited by hand.

    Args:
        directory: Holds both files.

    Raises:
        ValueError: One is missing or damaged.
        OSError: The directory cannot be written.
    """
    opened = _read_both(Path(directory), paired=False)
    text = opened.config.path.read_text(encoding="utf-8")
    digest = config_digest(read_json(opened.config.path))
    tensors = dict(opened.file.tensors)
    data = file_bytes(tensors, {**opened.file.metadata, CONFIG_DIGEST: digest})
    write_pair(opened.path, data, text)


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
    return _read_both(Path(directory))


def _read_both(path: Path, *, paired: bool = True) -> StoredDirectory:
    """`open_directory`; unless `paired`, whatever digest of config.json the weights state."""
    file = read_file(weights_in(path))
    if not (path / CONFIG_NAME).is_file():
        raise FileError(f"{path}: no {CONFIG_NAME} beside {WEIGHTS_NAME}")
    config = read_config(path / CONFIG_NAME)
    if paired:
        check_pair(file.path, file.metadata, config.path)
    _compare(config, file)
    # A bare file says nothing of itself: the model's entry point goes by config.json.
    if not file.is_bare:
        _ = file.stored
    return StoredDirectory(path, config, file)


def check_directory(directory: Path, *, weights: bool = True) -> WeightsFile | None:
    """What timm reads of a directory on its own, looked at before it does: config.json, and of a
    float model the shapes of its weights.

    Args:
        weights: They will be read. (The entry points of ternary models look at theirs.)

    Returns:
        The weights of a float model that timm would not find: those that a killed save has left
        under another name, or that lie in shards.

    Raises:
        ValueError: There is no such directory.
        FileError: config.json is missing or damaged, or the weights are of another model, or were
            written with another config.json.
    """
    if not directory.is_dir():
        raise ValueError(f"there is no directory {shown(str(directory))}")
    config = read_config(directory / CONFIG_NAME)
    config.check_timm_reads()
    name, path = config.architecture, weights_in(directory)
    if not weights or not name or is_ternary_name(name) or not is_stored(path):
        return None
    file = read_file(path)
    check_pair(path, file.metadata, config.path)
    _compare(config, file)
    return None if path.exists() and path.name == WEIGHTS_NAME else file


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
    _logger.warning(
        "%s: float (a new head, or fused branches: a sum of ternary weights is none), saved as "
        "float and excluded in the file",
        ", ".join(layers),
    )
    return replace(config, exclude=config.exclude + layers)


def _is_timm_model(model: nn.Module) -> bool:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return bool(cfg.get("architecture")) and hasattr(model, "num_features")


def _float_architecture(model: nn.Module) -> str:
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not _is_timm_model(model):
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


def _whole(model: nn.Module) -> nn.Module:
    """`model` without the wrapper of ``torch.compile``, which renames all that it holds."""
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


def _write(
    directory: str | Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    values: dict[str, Any],
) -> Path:
    """Both files of a directory, each of which says what the other is."""
    digest = config_digest(values)
    data = file_bytes(tensors, {**metadata, CONFIG_DIGEST: digest})
    write_pair(Path(directory), data, json.dumps(values, indent=2) + "\n")
    return Path(directory)
