"""Packed checkpoints: a directory with model.safetensors and config.json.

``model.safetensors`` holds, for each ternary layer L, ``L.weight_packed`` (uint8, packing.py) and
``L.weight_scale`` (float32, ``(bases, 1 or 2, 1 or out)``); all other tensors as timm names them.
Its metadata says ``format: pt`` and, as JSON under ``timm_ternary``: the version, the encoding, the
architecture, the configuration, the shape of each ternary weight and a digest of each tensor;
``timm_ternary_digest`` is the digest of that JSON. ``config.json`` is timm's own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from . import packing, quantizers
from .code import TernaryCode
from .config import TernaryConfig
from .convert import checked_code, config_of, ternary_layers
from .layers import code_from_tensors, scale_tensor
from .select import select_layers

__all__ = [
    "CONFIG_NAME",
    "VERSION",
    "WEIGHTS_NAME",
    "StoredWeights",
    "atomic_write",
    "is_packed_file",
    "load_packed",
    "read_weights",
    "save_float",
    "save_packed",
]

_logger = logging.getLogger(__name__)

VERSION = 1
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
_KEY, _DIGEST_KEY = "timm_ternary", "timm_ternary_digest"
_HEADER = {"encoding": str, "architecture": str, "ternary": dict, "layers": dict, "digests": dict}
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
    """

    dense: dict[str, Tensor]
    codes: dict[str, TernaryCode] = field(default_factory=dict)
    quantizers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    config: TernaryConfig | None = None
    encoding: str | None = None
    architecture: str | None = None


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
    packing.check_encoding(encoding)
    config = config_of(model)
    if config is None:
        raise ValueError("the model is not ternary; type: timm_ternary.ternarize_(model)")
    config = _exclude_float_layers(model, config)
    architecture = _architecture(model)
    data = _serialize(model, config, encoding, architecture)
    extra = {"pretrained_cfg": {"architecture": architecture}}
    return _write(model, directory, data, extra, ternary=config.to_dict(), packed=encoding)


def save_float(model: nn.Module, directory: str | Path) -> Path:
    """Write a float timm model as a directory that timm loads, each file at once.

    Unlike ``timm.models.save_for_hf`` it leaves a directory that transformers loads too.

    Raises:
        ValueError: The model holds NaN. Nothing is written then.
        OSError: The directory cannot be written. Older files in it stay whole.
    """
    tensors = _plain_tensors(model, own=())
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
    stored = read_weights(path)
    if stored.config is None:
        raise ValueError(f"{path}: not packed by timm_ternary; type: timm-ternary pack {directory}")
    path = Path(directory) / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"{directory}: no {CONFIG_NAME} beside {WEIGHTS_NAME}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    name = values.get("architecture") if isinstance(values, dict) else None
    if name != stored.architecture:
        raise ValueError(
            f"{path}: the weights are those of {stored.architecture!r}, not of {name!r}"
        )
    kwargs = {} if packed else {"packed": False}
    try:
        return timm.create_model(f"local-dir:{directory}", pretrained=True, **kwargs)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
        # timm believes config.json: a missing key or a wrong argument ends where it is used.
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path}: timm cannot build this model ({type(error).__name__}: {reason})"
        ) from error


def is_packed_file(path: str | Path) -> bool:
    """Whether `path` is a safetensors file that states to be packed by this project."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_weights(path: str | Path) -> StoredWeights:
    """Read and check a weights file: packed, or float or trainable as timm saves it.

    Raises:
        ValueError: The file is missing, a pickle, damaged, of a later version, or holds packed
            tensors without this project's metadata; the message names the tensor at fault.
    """
    path = Path(path)
    tensors, metadata = _read_safetensors(path)
    if _KEY not in metadata:
        strange = next((name for name in tensors if name.endswith(".weight_packed")), None)
        if strange is not None:
            raise ValueError(
                f"{path}: tensor {strange} is packed, but the file has no timm_ternary metadata"
            )
        return _read_unpacked(tensors)
    header = _read_header(path, metadata)
    for name in header["digests"].keys() | tensors.keys():
        if name not in tensors:
            raise ValueError(f"{path}: tensor {name} is missing")
        if header["digests"].get(name) != _digest_tensor(name, tensors[name]):
            raise ValueError(f"{path}: tensor {name} is damaged (its digest does not match)")
    try:
        config = TernaryConfig.from_dict(header["ternary"])
        packing.check_encoding(header["encoding"])
    except ValueError as error:
        raise ValueError(f"{path}: the timm_ternary metadata: {error}") from None
    stored = StoredWeights(
        dense={},
        config=config,
        encoding=header["encoding"],
        architecture=header["architecture"],
    )
    for name, shape in header["layers"].items():
        try:
            code = code_from_tensors(
                tensors.pop(f"{name}.weight_packed"),
                tensors.pop(f"{name}.weight_scale"),
                torch.Size(shape),
            )
        except KeyError as error:
            raise ValueError(f"{path}: tensor {error.args[0]} is missing") from None
        except ValueError as error:
            raise ValueError(f"{path}: tensor {name}.{error}") from None
        stored.codes[name] = code
        stored.dense[f"{name}.weight"] = code.decode()
    for name, tensor in tensors.items():
        if _has_nan(tensor):
            raise ValueError(f"{path}: tensor {name} holds NaN")
    stored.dense.update(tensors)
    return stored


@contextmanager
def atomic_write(path: Path, write: Callable[[Path], object]) -> Iterator[None]:
    """Write beside `path` on entry, take its place on a clean exit; else leave no trace.

    Args:
        path: The file to make or replace.
        write: Called with the path of the temporary file.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp is private to the user; a published file is as readable as any other.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        yield
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _exclude_float_layers(model: nn.Module, config: TernaryConfig) -> TernaryConfig:
    """`config`, without layers that were replaced since (``reset_classifier``) and are float."""
    layers = tuple(select_layers(model, config))
    if not layers:
        return config
    _logger.warning("%s: float, saved as float and excluded in the file", ", ".join(layers))
    return replace(config, exclude=config.exclude + layers)


def _architecture(model: nn.Module) -> str:
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not name or not hasattr(model, "num_features"):
        raise ValueError(
            f"{type(model).__name__} is no timm classification model, so timm could not load it "
            "back; build it with timm.create_model (your own: timm_ternary.register_ternary)"
        )
    name = name if name.endswith("_tern") else f"{name}_tern"
    if not timm.is_model(name):
        raise ValueError(
            f"timm knows no model {name!r}; type: timm_ternary.register_ternary({name[:-5]!r})"
        )
    return str(name)


def _serialize(model: nn.Module, config: TernaryConfig, encoding: str, architecture: str) -> bytes:
    """The bytes of model.safetensors."""
    layers = ternary_layers(model, every_name=True)
    own = tuple(f"{name}.{part}" for name in layers for part in ("parametrizations.", "weight_"))
    tensors = _plain_tensors(model, own)
    rows = quantizers.get(config.method).scale_rows
    codes = {name: checked_code(name, layer).to("cpu") for name, layer in layers.items()}
    for name, code in codes.items():
        data = packing.encode_smallest(code.codes.flatten(1), encoding)
        tensors[f"{name}.weight_packed"] = data
        tensors[f"{name}.weight_scale"] = scale_tensor(code, rows).float().contiguous()
    header = json.dumps(
        {
            "version": VERSION,
            "encoding": encoding,
            "architecture": architecture,
            "ternary": config.to_dict(),
            "layers": {name: list(code.shape) for name, code in codes.items()},
            "digests": {name: _digest_tensor(name, tensor) for name, tensor in tensors.items()},
        }
    )
    metadata = {"format": "pt", _KEY: header, _DIGEST_KEY: _digest(header.encode())}
    return _in_order(safetensors.torch.save(tensors, metadata))


def _in_order(data: bytes) -> bytes:
    """The same file with its metadata sorted: safetensors writes them in a random order.

    So that equal models make equal files. The header keeps its size: no tensor moves.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(text) <= size
    return data[:8] + text.ljust(size) + data[8 + size :]


def _plain_tensors(model: nn.Module, own: tuple[str, ...]) -> dict[str, Tensor]:
    """The state of `model` but for names that begin like one of `own`, checked to be finite."""
    tensors = {
        # A clone each: safetensors refuses tensors that share memory, and tied ones do.
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith(own)
    }
    for name, tensor in tensors.items():
        if _has_nan(tensor):
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
    save_config_for_hf(model, str(path), model_config=extra, model_args=arguments)
    values = json.loads(path.read_text())
    # TimmWrapper passes num_classes itself: twice is an error. It stands at the top level too.
    values.get("model_args", {}).pop("num_classes", None)
    path.write_text(json.dumps(values, indent=2) + "\n")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        pickles = sorted(path.parent.glob("*.bin")) + sorted(path.parent.glob("*.pt*"))
        if pickles and path.parent.is_dir():
            raise ValueError(f"{pickles[0]}: pickle files are not read; save it as {WEIGHTS_NAME}")
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        # Asked only now: a safetensors file may begin with the same bytes, its header's length.
        with path.open("rb") as raw:
            start = raw.read(2)
        if start == b"PK" or start[:1] == b"\x80":
            raise ValueError(f"{path}: a pickle file; only safetensors files are read") from None
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a whole safetensors file ({reason})") from None


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
        elif _INNER in name:
            layer, key = name.split(_INNER)
            stored.quantizers.setdefault(layer, {})[key] = tensor
        else:
            stored.dense[name] = tensor
    return stored


def _has_nan(tensor: Tensor) -> bool:
    # Infinity has its uses: gemma4_vit keeps the bounds of its activations in buffers.
    return tensor.is_floating_point() and bool(tensor.isnan().any())


def _digest_tensor(name: str, tensor: Tensor) -> str:
    head = f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode()
    return _digest(head + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
