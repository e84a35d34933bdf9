"""What a directory, a Hub repository or a packed file holds: found, read and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import packing
from ..checkpoint.weights_file import (
    WEIGHTS_NAME,
    StoredWeights,
    WeightsFile,
    is_packed_file,
    read_file,
)
from ..compat.timm import split_hub_id
from ..config import TernaryConfig
from ..files import sha256
from ..nn.select import select_layers
from ..quantizers import check

__all__ = ["SOURCE_KEYS", "differences", "read_stored", "weights_path"]

SOURCE_KEYS = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict")
"""Entries of timm's pretrained_cfg that say where weights come from."""


def weights_path(cfg: Mapping[str, Any], cache_dir: str | Path | None) -> Path | None:
    """The weights of a directory, a Hub repository or a packed file; None for timm's sources.

    Args:
        cfg: timm's pretrained_cfg.
        cache_dir: Where downloads are kept (default: the Hub's own cache).
    """
    source = cfg.get("source")
    if source == "local-dir":
        return Path(cfg["file"]) / WEIGHTS_NAME
    if source == "hf-hub":
        from huggingface_hub import hf_hub_download

        repository, revision = split_hub_id(cfg["hf_hub_id"])
        filename = cfg.get("hf_hub_filename") or WEIGHTS_NAME
        return Path(hf_hub_download(repository, filename, revision=revision, cache_dir=cache_dir))
    return Path(cfg["file"]) if cfg.get("file") and is_packed_file(cfg["file"]) else None


def read_stored(
    source: Path | WeightsFile,
    cfg: dict[str, Any],
    model_args: Mapping[str, Any],
    skeleton: Callable[..., nn.Module],
    where: str | None,
) -> StoredWeights:
    """Read a weights file, checked against config.json.

    Args:
        source: As `weights_path` found it, or the file as somebody has read it already.
        cfg: timm's pretrained_cfg.
        model_args: Those of config.json.
        skeleton: Builds the float model from model_args, for the shapes of a file that lacks them.
        where: The directory or repository, for errors.

    Raises:
        ValueError: The file is damaged, foreign, or disagrees with config.json. One that was
            damaged on its way from the Hub does not stay in the cache.
    """
    try:
        file = read_file(source) if isinstance(source, Path) else source
        if file.is_bare:
            return file.decode(_stated(cfg, model_args, skeleton, where))
        stored = file.stored
    except ValueError as error:
        if cfg.get("source") != "hf-hub" or not isinstance(source, Path) or not _damaged(source):
            raise
        source.resolve().unlink()
        source.unlink(missing_ok=True)
        raise ValueError(
            f"{error}; it was damaged on its way from hf-hub:{cfg['hf_hub_id']} and is deleted "
            "from the cache: type the same again"
        ) from None
    if stored.config is not None:
        _check_agreement(cfg, stored, model_args, where)
    return stored


def differences(tensors: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """In what `tensors` do not fit `model`: one line a tensor, those of another shape first."""
    wanted = model.state_dict()
    shapes = [
        f"{name} has the shape {tuple(tensors[name].shape)}, the model needs {tuple(own.shape)}"
        for name, own in wanted.items()
        if name in tensors and tensors[name].shape != own.shape
    ]
    missing = [f"{name} is missing" for name in wanted if name not in tensors]
    return shapes + missing + [f"{name} is too many" for name in tensors if name not in wanted]


def _damaged(path: Path) -> bool:
    """Whether a file of the cache is not what the Hub holds.

    The cache names a large file by its SHA-256, which the client does not compare.
    """
    blob = path.resolve()
    return len(blob.name) == 64 and sha256(blob) != blob.name


def _stated(
    cfg: dict[str, Any],
    model_args: Mapping[str, Any],
    skeleton: Callable[..., nn.Module],
    where: str | None,
) -> dict[str, Any] | None:
    """What config.json says of a file without metadata; None if not that it is packed.

    The shapes, which packed tensors do not tell, are those of the layers of the float model.
    """
    if not isinstance(model_args.get("packed"), str) or "ternary" not in model_args:
        return None
    try:
        config = TernaryConfig.of(model_args["ternary"])
        check(config)
        packing.check_encoding(model_args["packed"])
    except ValueError as error:
        raise ValueError(f"{where}: config.json: {error}") from None
    arguments = {k: v for k, v in model_args.items() if k not in ("packed", "ternary")}
    arguments.setdefault("num_classes", cfg["num_classes"])
    with torch.device("meta"):
        model = skeleton(**arguments)
    layers: dict[str, Any] = dict(select_layers(model, config))
    return {
        "encoding": model_args["packed"],
        "architecture": cfg["architecture"],
        "ternary": config.to_dict(),
        "layers": {name: list(layer.weight.shape) for name, layer in layers.items()},
    }


def _check_agreement(
    cfg: dict[str, Any], stored: StoredWeights, model_args: Mapping[str, Any], where: str | None
) -> None:
    """config.json and the weights file must tell the same story."""
    said = {
        "ternary": stored.config.to_dict() if stored.config else None,
        "packed": stored.encoding,
    }
    for key, value in said.items():
        if model_args.get(key, value) != value:
            raise ValueError(
                f"{where}: config.json says {key}={model_args[key]!r}, "
                f"the metadata of {WEIGHTS_NAME} {value!r}"
            )
    if stored.architecture != cfg["architecture"]:
        raise ValueError(
            f"{where}: the weights are those of {stored.architecture!r}, "
            f"not of {cfg['architecture']!r}"
        )
