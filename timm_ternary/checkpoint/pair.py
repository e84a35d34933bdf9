"""Which weights belong to which config.json: a digest of the one in the other, and one change of
both.

What a killed process leaves is the old version or the new one. The new weights wait under a name of
their own, config.json takes its name, and from that moment on the waiting weights are those that
its digest asks for; then they take theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors.foreign import FileError
from ..files import read_json, staged, sync_directory
from .config_json import CONFIG_NAME
from .weights_file import WEIGHTS_NAME, read_metadata

__all__ = [
    "CONFIG_DIGEST",
    "STAND_IN",
    "WAITING_NAME",
    "check_pair",
    "config_digest",
    "weights_in",
    "write_pair",
]

WAITING_NAME = f".{WEIGHTS_NAME}.next"
CONFIG_DIGEST = "timm_ternary_config"
"""Entry of the metadata of the weights: the digest of what config.json says about loading them."""
STAND_IN = {CONFIG_DIGEST: "0" * 16}
"""That entry as long as any: for counting the bytes of a file before its config.json is there."""

_TOP = ("architecture", "num_classes", "label_names", "label_descriptions", "global_pool")
# Of timm's pretrained_cfg what changes a prediction. The rest is for readers: license, origin, ...
_CFG = (
    "num_classes",
    "label_names",
    "label_descriptions",
    "label_offset",
    "input_size",
    "test_input_size",
    "min_input_size",
    "fixed_input_size",
    "interpolation",
    "crop_pct",
    "test_crop_pct",
    "crop_mode",
    "mean",
    "std",
    "pool_size",
    "test_pool_size",
    "first_conv",
    "classifier",
    "custom_load",
)


def config_digest(values: Mapping[str, Any]) -> str:
    """Digest of what a config.json says about loading: BLAKE2b of 8 bytes, 16 digits.

    It is over the JSON, with sorted keys and without blanks, of the entries `_TOP` and
    ``model_args`` and, under ``pretrained_cfg``, of `_CFG`; an entry that is null counts as
    missing.

    Args:
        values: The file's content.
    """
    cfg = values.get("pretrained_cfg")
    said = {
        **_stated(values, _TOP),
        "model_args": _stated(values.get("model_args"), None),
        "pretrained_cfg": _stated(cfg, _CFG),
    }
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _stated(values: Any, keys: tuple[str, ...] | None) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {}
    return {k: values[k] for k in keys or values if values.get(k) is not None}


def check_pair(path: Path, metadata: Mapping[str, str], config: Path, hub_id: str = "") -> None:
    """Refuse weights that were written with another config.json than the one beside them.

    Files without the digest, of other programs and of earlier versions, pass.

    Args:
        path: Of the weights, for the error.
        metadata: Theirs.
        config: Path of config.json. One that is not there passes.
        hub_id: The repository that both come from, if they do.

    Raises:
        FileError: See above; or config.json is no JSON object.
    """
    said = metadata.get(CONFIG_DIGEST)
    if said is None or not config.is_file() or said == config_digest(read_json(config)):
        return
    again = (
        f"type the same again, or name one commit: hf-hub:{hub_id.partition('@')[0]}@COMMIT"
        if hub_id
        else "save or copy both again; if you edited config.json yourself, type in Python: "
        f"timm_ternary.checkpoint.accept_config({str(config.parent)!r})"
    )
    raise FileError(
        f"{config}: {path.name} beside it was written with another config.json (labels, "
        f"preprocessing, classes or model_args): two versions are mixed, or it is damaged; {again}"
    )


def weights_in(directory: Path) -> Path:
    """The weights that belong to a directory's config.json, which a killed save may have left
    waiting for their name; they need not be there."""
    whole, waiting = directory / WEIGHTS_NAME, directory / WAITING_NAME
    if waiting.is_file() and (config := directory / CONFIG_NAME).is_file():
        try:
            wanted = config_digest(read_json(config))
        except FileError:
            return whole
        held, new = (read_metadata(path).get(CONFIG_DIGEST) for path in (whole, waiting))
        if held != wanted == new:
            return waiting
    return whole


def write_pair(directory: Path, weights: bytes, config: str) -> None:
    """Write both files of a directory, in full on the disk before either takes its name.

    Args:
        directory: Made if need be.
        weights: Content of model.safetensors, with `CONFIG_DIGEST` of `config` in its metadata.
        config: Content of config.json.

    Raises:
        OSError: The directory cannot be written. What loaded before, loads.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target, waiting = directory / WEIGHTS_NAME, directory / WAITING_NAME
    if weights_in(directory) == waiting:
        waiting.replace(target)  # what a killed save had begun; its config.json is in place
        sync_directory(directory)
    config_path = directory / CONFIG_NAME
    with (
        staged(config_path, lambda path: path.write_text(config, encoding="utf-8")) as said,
        staged(target, lambda path: path.write_bytes(weights)) as held,
    ):
        if config_path.is_file() and config_path.read_bytes() == config.encode():
            held.replace(target)
        else:
            try:
                held.replace(waiting)
                sync_directory(directory)
                said.replace(config_path)
                sync_directory(directory)
            finally:
                if said.exists():  # it has not taken its name: the old version stays
                    waiting.unlink(missing_ok=True)
            waiting.replace(target)
        sync_directory(directory)
    waiting.unlink(missing_ok=True)
