"""What a directory, a Hub repository or a packed file holds: found, read and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import packing
from ..checkpoint.weights_file import (
    WEIGHTS_NAME,
    StoredWeights,
    is_bare_file,
    is_packed_file,
    read_weights,
)
from ..compat.timm import split_hub_id
from ..config import TernaryConfig
from ..files import sha256
from ..nn.select import select_layers
from ..quantizers import check

__all__ = ["read_stored", "weights_path"]


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
    path: Path,
    cfg: dict[str, Any],
    model_args: Mapping[str, Any],
    skeleton: Callable[..., nn.Module],
) -> StoredWeights:
    """Read a weights file, checked against config.json.

    Args:
        path: As `weights_path` found it.
        cfg: timm's pretrained_cfg.
        model_args: Those of config.json.
        skeleton: Builds the float model from model_args, for the shapes of a file that lacks them.

    Raises:
        ValueError: The file is damaged, foreign, or disagrees with config.json. One that was
            damaged on its way from the Hub does not stay in the cache.
    """
    try:
        if is_bare_file(path):
            return read_weights(path, _stated(cfg, model_args, skeleton))
        stored = read_weights(path)
    except ValueError as error:
        if cfg.get("source") != "hf-hub" or not _damaged(path):
            raise
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ValueError(
            f"{error}; it was damaged on its way from hf-hub:{cfg['hf_hub_id']} and is deleted "
            "from the cache: type the same again"
        ) from None
    if stored.config is not None:
        _check_agreement(cfg, stored, model_args)
    return stored


def _damaged(path: Path) -> bool:
    """Whether a file of the cache is not what the Hub holds.

    The cache names a large file by its SHA-256, which the client does not compare.
    """
    blob = path.resolve()
    return len(blob.name) == 64 and sha256(blob) != blob.name


def _stated(
    cfg: dict[str, Any], model_args: Mapping[str, Any], skeleton: Callable[..., nn.Module]
) -> dict[str, Any] | None:
    """What config.json says of a file without metadata; None if not that it is packed.

    The shapes, which packed tensors do not tell, are those of the layers of the float model.
    """
    if not isinstance(model_args.get("packed"), str) or "ternary" not in model_args:
        return None
    try:
        config = TernaryConfig.of(model_args["ternary"])
        check(config, coded=True)
        packing.check_encoding(model_args["packed"])
    except ValueError as error:
        where = cfg.get("file") or cfg.get("hf_hub_id")
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
    cfg: dict[str, Any], stored: StoredWeights, model_args: Mapping[str, Any]
) -> None:
    """config.json and the weights file must tell the same story."""
    where = cfg.get("file") or cfg.get("hf_hub_id")
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
