"""The file model.safetensors: what it holds, how it is written, and every check on reading.

For each ternary layer L it holds ``L.weight_packed`` (uint8, packing/encodings.py) and
``L.weight_scale`` (float32, ``(bases, 1 or 2, 1 or out)``); all other tensors as timm names them.
Its metadata says ``format: pt`` and, as JSON under ``timm_ternary``: the version, the encoding, the
architecture, the configuration, the shape of each ternary weight and a digest of each tensor;
``timm_ternary_digest`` is the digest of that JSON.

Where transformers saves a packed model and timm_ternary.hf was not imported, the same tensors come
without these metadata: a bare file, of which config.json alone says what it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import packing
from ..code import TernaryCode
from ..config import TernaryConfig
from ..errors.wording import flat
from ..packing.tensors import code_from_tensors, scale_tensor

__all__ = [
    "VERSION",
    "WEIGHTS_NAME",
    "StoredWeights",
    "check_digests",
    "file_bytes",
    "has_nan",
    "is_bare_file",
    "is_packed_file",
    "packed_tensors",
    "read_weights",
]

_WRAPPER = "timm_model."
_logger = logging.getLogger(__name__)

VERSION = 1
WEIGHTS_NAME = "model.safetensors"
_KEY, _DIGEST_KEY = "timm_ternary", "timm_ternary_digest"
_HEADER = {"encoding": str, "architecture": str, "ternary": dict, "layers": dict, "digests": dict}
_PARTS = ("weight_packed", "weight_scale")
_LATENT = ".parametrizations.weight.original"
_INNER = ".parametrizations.weight.0."


@dataclass
class StoredWeights:
    """What a weights file holds, checked.

    Attributes:
        dense: Every tensor under timm's own name; ternary weights decoded, or latent.
        codes: The code of each ternary layer of a packed file, by layer name.
        quantizers: Parameters of each layer's quantizer in a file saved in the trainable form.
        config: How the packed file's model was made ternary, else None.
        encoding: Of a packed file, else None.
        architecture: Of a packed file, else None.
        latent: The file was saved in the trainable form.
    """

    dense: dict[str, Tensor]
    codes: dict[str, TernaryCode] = field(default_factory=dict)
    quantizers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    config: TernaryConfig | None = None
    encoding: str | None = None
    architecture: str | None = None
    latent: bool = False


def packed_tensors(
    codes: Mapping[str, TernaryCode],
    tensors: Mapping[str, Tensor],
    *,
    config: TernaryConfig,
    encoding: str,
    architecture: str,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a packed file.

    Args:
        codes: The code of each ternary layer, by layer name; on the CPU.
        tensors: Everything else, by timm's names; contiguous, on the CPU.
        config, encoding, architecture: For the metadata.
    """
    held = dict(tensors)
    for name, code in codes.items():
        held[f"{name}.weight_packed"] = packing.encode_smallest(code.codes.flatten(1), encoding)
        held[f"{name}.weight_scale"] = scale_tensor(code).float().contiguous()
    header = json.dumps(
        {
            "version": VERSION,
            "encoding": encoding,
            "architecture": architecture,
            "ternary": config.to_dict(),
            "layers": {name: list(code.shape) for name, code in codes.items()},
            "digests": {name: _digest_tensor(name, tensor) for name, tensor in held.items()},
        }
    )
    return held, {"format": "pt", _KEY: header, _DIGEST_KEY: _digest(header.encode())}


def file_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its metadata sorted: equal contents give equal bytes."""
    data = safetensors.torch.save(dict(tensors), dict(metadata))
    # safetensors writes them in a random order. The header keeps its size: no tensor moves.
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(text) <= size
    return data[:8] + text.ljust(size) + data[8 + size :]


def is_packed_file(path: str | Path) -> bool:
    """Whether `path` is a safetensors file that states to be packed by this project."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def is_bare_file(path: str | Path) -> bool:
    """Whether `path` is a safetensors file of packed tensors without this project's metadata."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return _KEY not in (file.metadata() or {}) and _packed_name(file.keys()) is not None
    except (SafetensorError, OSError):
        return False


def read_weights(path: str | Path, stated: Mapping[str, Any] | None = None) -> StoredWeights:
    """Read and check a weights file: packed, or float or trainable as timm saves it.

    Args:
        path: Of the file.
        stated: What a bare file is taken for, as it stands in the metadata of others: encoding,
            architecture, ternary, layers. Its codes, scales and sizes are checked, no digests.

    Raises:
        ValueError: The file is missing, a pickle, damaged, of a later version, or holds packed
            tensors without this project's metadata and `stated` is None; the message names the
            tensor at fault.
    """
    path = Path(path)
    tensors, metadata = _read_safetensors(path)
    if _KEY in metadata:
        header = _read_header(path, metadata)
        _compare_digests(path, tensors, header["digests"])
        return _read_packed(path, tensors, header)
    strange = _packed_name(tensors)
    if strange is None:
        return _read_unpacked(tensors)
    if stated is None:
        raise ValueError(
            f"{path}: tensor {strange} is packed, but the file has no timm_ternary metadata; if "
            "config.json beside it says in model_args how it is packed (ternary and packed), type: "
            f"timm-ternary pack {path.parent} OUT"
        )
    _logger.warning(
        "%s: saved without timm_ternary.hf, so it holds no digests that would show damage", path
    )
    return _read_packed(path, tensors, stated)


def check_digests(path: str | Path) -> TernaryConfig:
    """Check the tensors of a packed file by their digests, decoding none.

    Returns:
        How its model was made ternary.

    Raises:
        ValueError: As `read_weights`; or the file is not a packed one.
    """
    path = Path(path)
    tensors, metadata = _read_safetensors(path)
    if _KEY not in metadata:
        raise ValueError(f"{path}: not packed by timm_ternary")
    header = _read_header(path, metadata)
    _compare_digests(path, tensors, header["digests"])
    return _config(path, header)


def _packed_name(names: Iterable[str]) -> str | None:
    return next((name for name in names if name.endswith(".weight_packed")), None)


def _compare_digests(path: Path, tensors: Mapping[str, Tensor], digests: Mapping[str, str]) -> None:
    for name in digests.keys() | tensors.keys():
        if name not in tensors:
            raise ValueError(f"{path}: tensor {name} is missing")
        if digests.get(name) != _digest_tensor(name, tensors[name]):
            raise ValueError(f"{path}: tensor {name} is damaged (its digest does not match)")


def _config(path: Path, header: Mapping[str, Any]) -> TernaryConfig:
    try:
        packing.check_encoding(header["encoding"])
        return TernaryConfig.from_dict(header["ternary"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_packed(
    path: Path, tensors: dict[str, Tensor], header: Mapping[str, Any]
) -> StoredWeights:
    config = _config(path, header)
    stored = StoredWeights({}, {}, {}, config, header["encoding"], header["architecture"])
    for name, shape in header["layers"].items():
        try:
            packed, scale = (tensors.pop(f"{name}.{part}") for part in _PARTS)
            code = code_from_tensors(packed, scale, torch.Size(shape))
        except KeyError as error:
            raise ValueError(f"{path}: tensor {error.args[0]} is missing") from None
        except ValueError as error:
            raise ValueError(f"{path}: tensor {name}.{error}") from None
        stored.codes[name] = code
        stored.dense[f"{name}.weight"] = code.decode()
    for name, tensor in tensors.items():
        if has_nan(tensor):
            raise ValueError(f"{path}: tensor {name} holds NaN")
    stored.dense.update(tensors)
    return stored


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        pickles = sorted(path.parent.glob("*.bin")) + sorted(path.parent.glob("*.pt*"))
        if pickles and path.parent.is_dir():
            raise ValueError(f"{pickles[0]}: pickle files are not read; save it as {WEIGHTS_NAME}")
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return _timm_names(tensors), file.metadata() or {}
    except (SafetensorError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        # Asked only now: a safetensors file may begin with the same bytes, its header's length.
        with path.open("rb") as raw:
            start = raw.read(2)
        if start == b"PK" or start[:1] == b"\x80":
            raise ValueError(f"{path}: a pickle file; only safetensors files are read") from None
        reason = flat(error)
        raise ValueError(f"{path}: not a whole safetensors file ({reason})") from None


def _timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by timm's names: transformers' wrapper puts its attribute in front of them.

    It takes that off in the files of models that ``from_pretrained`` made, not in those of others.
    """
    if not tensors or not all(name.startswith(_WRAPPER) for name in tensors):
        return tensors
    return {name.removeprefix(_WRAPPER): tensor for name, tensor in tensors.items()}


def _read_header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata[_KEY]
    if metadata.get(_DIGEST_KEY) != _digest(text.encode()):
        raise ValueError(
            f"{path}: the timm_ternary metadata is damaged (its digest does not match)"
        )
    try:
        header = json.loads(text)
        version = header["version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: the timm_ternary metadata states no version") from None
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(
            f"{path}: format version {version}, this release reads up to {VERSION}; "
            "type: pip install -U timm-ternary"
        )
    for key, kind in _HEADER.items():
        if not isinstance(header.get(key), kind):
            raise ValueError(f"{path}: {key} in the timm_ternary metadata is no {kind.__name__}")
    for name, shape in header["layers"].items():
        if not (
            isinstance(shape, list) and shape and all(type(n) is int and n >= 0 for n in shape)
        ):
            raise ValueError(f"{path}: tensor {name}.weight_packed has the shape {shape!r}")
    return dict(header)


def _read_unpacked(tensors: dict[str, Tensor]) -> StoredWeights:
    stored = StoredWeights(dense={})
    for name, tensor in tensors.items():
        if name.endswith(_LATENT):
            stored.dense[name.removesuffix(_LATENT) + ".weight"] = tensor
            stored.latent = True
        elif _INNER in name:
            layer, key = name.split(_INNER)
            stored.quantizers.setdefault(layer, {})[key] = tensor
        else:
            stored.dense[name] = tensor
    return stored


def has_nan(tensor: Tensor) -> bool:
    """Whether a tensor of any dtype holds NaN."""
    # Infinity has its uses: gemma4_vit keeps the bounds of its activations in buffers.
    return tensor.is_floating_point() and bool(tensor.isnan().any())


def _digest_tensor(name: str, tensor: Tensor) -> str:
    head = f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode()
    return _digest(head + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
