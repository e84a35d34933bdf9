"""What a directory, a Hub repository or a packed file holds: found, read and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from .. import packing
from ..checkpoint.config_json import CONFIG_NAME, read_config
from ..checkpoint.pair import check_pair, weights_in
from ..checkpoint.skeleton import check_fits, check_room, on_meta
from ..checkpoint.weights_file import (
    WEIGHTS_NAME,
    StoredWeights,
    WeightsFile,
    index_of,
    is_packed_file,
    read_file,
    shards_in,
)
from ..compat.timm import split_hub_id
from ..config import TernaryConfig
from ..errors.foreign import FileError, foreign
from ..errors.printable import shown
from ..files import sha256
from ..nn.select import select_layers
from ..quantizers import check

__all__ = ["SOURCE_KEYS", "one_commit", "read_stored", "weights_path"]

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
        return weights_in(Path(cfg["file"]))
    if source == "hf-hub":
        repository, revision = split_hub_id(cfg["hf_hub_id"])
        filename = cfg.get("hf_hub_filename") or WEIGHTS_NAME
        # Of the commit whose config.json timm has read: a branch may have moved meanwhile.
        config = try_to_load_from_cache(
            repository, CONFIG_NAME, cache_dir=cache_dir, revision=revision
        )
        if isinstance(config, str):
            revision = Path(config).parent.name
        return _download(repository, filename, revision, cache_dir)
    return Path(cfg["file"]) if cfg.get("file") and is_packed_file(cfg["file"]) else None


def _download(
    repository: str, filename: str, revision: str | None, cache_dir: str | Path | None
) -> Path:
    """A weights file of a repository, or where it would be beside the shards that hold it."""
    options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}
    try:
        return Path(hf_hub_download(repository, filename, **options))
    except EntryNotFoundError:
        with suppress(EntryNotFoundError):
            index = Path(hf_hub_download(repository, index_of(Path(filename)).name, **options))
            for shard in shards_in(index):
                hf_hub_download(repository, shard.name, **options)
            return index.with_name(filename)
        raise


def one_commit(model_id: str, cache_dir: str | Path | None = None) -> str:
    """``user/name@COMMIT`` of a repository's newest config.json, for all its files to be read of.

    Args:
        model_id: ``user/name`` or ``user/name@revision``.
        cache_dir: Where downloads are kept (default: the Hub's own cache).

    Raises:
        FileError: config.json is damaged, or larger than any is: timm would read it nevertheless.
    """
    repository, revision = split_hub_id(model_id)
    config = Path(hf_hub_download(repository, CONFIG_NAME, revision=revision, cache_dir=cache_dir))
    read_config(config).check_timm_reads()
    return f"{repository}@{config.parent.name}"


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
        if isinstance(source, Path) and cfg.get("source") in ("local-dir", "hf-hub"):
            hub_id = cfg["hf_hub_id"] if cfg["source"] == "hf-hub" else ""
            check_pair(source, file.metadata, source.with_name(CONFIG_NAME), hub_id)
        if file.is_bare:
            return file.decode(_stated(cfg, model_args, skeleton, where))
        if not file.is_decoded:
            _check_shapes(file, cfg, model_args, skeleton, where)
        stored = file.stored
    except ValueError as error:
        if cfg.get("source") != "hf-hub" or not isinstance(source, Path) or not _damaged(source):
            raise
        source.resolve().unlink()
        source.unlink(missing_ok=True)
        raise FileError(
            f"{error}; it was damaged on its way from hf-hub:{cfg['hf_hub_id']} and is deleted "
            "from the cache: type the same again"
        ) from None
    if stored.config is not None:
        _check_agreement(cfg, stored, model_args, where)
    return stored


def _damaged(path: Path) -> bool:
    """Whether a file of the cache is not what the Hub holds.

    The cache names a large file by its SHA-256, which the client does not compare.
    """
    blob = path.resolve()
    return len(blob.name) == 64 and sha256(blob) != blob.name


def _check_shapes(
    file: WeightsFile,
    cfg: dict[str, Any],
    model_args: Mapping[str, Any],
    skeleton: Callable[..., nn.Module],
    where: str | None,
) -> None:
    """Compare a file with the model before a tensor is read or decoded."""
    model = _described(cfg, model_args, skeleton, where)
    if file.is_packed and model_args:  # config.json was written with it
        if file.header["architecture"] == cfg["architecture"]:  # else a better word follows
            check_fits(file, model, where)
    else:
        check_room(file, model)


def _described(
    cfg: dict[str, Any],
    model_args: Mapping[str, Any],
    skeleton: Callable[..., nn.Module],
    where: str | None,
) -> nn.Module:
    """The float model that config.json describes, on the meta device."""
    arguments = {k: v for k, v in model_args.items() if k not in ("packed", "ternary")}
    arguments.setdefault("num_classes", cfg["num_classes"])
    with foreign(f"{where}: timm cannot build the model of config.json"):
        return on_meta(lambda: skeleton(**arguments))


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
    with foreign(f"{where}: config.json"):
        config = TernaryConfig.of(model_args["ternary"])
        check(config)
        packing.check_encoding(model_args["packed"])
    model = _described(cfg, model_args, skeleton, where)
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
            raise FileError(
                f"{where}: config.json says {key}={shown(model_args[key])}, "
                f"the metadata of {WEIGHTS_NAME} {shown(value)}"
            )
    if stored.architecture != cfg["architecture"]:
        raise FileError(
            f"{where}: the weights are those of {shown(stored.architecture)}, "
            f"not of {shown(cfg['architecture'])}"
        )
