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
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from .. import packing
from ..code import TernaryCode
from ..config import TernaryConfig
from ..errors.foreign import FileError, foreign
from ..errors.printable import printable, shown
from ..files import check_regular, read_json
from ..nn.state_dict import (
    is_packed_key,
    latent_layer,
    packed_key,
    quantizer_parameter,
    scale_key,
    weight_key,
)
from ..nn.timm_wrapper import timm_names
from ..packing.tensors import code_from_tensors, scale_tensor

__all__ = [
    "VERSION",
    "WEIGHTS_NAME",
    "StoredWeights",
    "WeightsFile",
    "check_digests",
    "file_bytes",
    "has_nan",
    "index_of",
    "is_packed_file",
    "is_stored",
    "packed_tensors",
    "read_file",
    "read_metadata",
    "read_weights",
    "shards_in",
]

_logger = logging.getLogger(__name__)

VERSION = 1
WEIGHTS_NAME = "model.safetensors"
_KEY, _DIGEST_KEY = "timm_ternary", "timm_ternary_digest"
# Of the header, JSON too. That of a ViT-L, with this project's shapes and digests, has 100 kB.
_HEADER_BYTES = 16 << 20
_MOST_DIMENSIONS = 8
# Codes a byte of the file, and in all, that are decoded of a file whose model is not known. What
# Zstandard compresses further than that are layers of zeros alone.
_MOST_CODES, _SOME_CODES = 1 << 10, 1 << 26
_HEADER = {"encoding": str, "architecture": str, "ternary": dict, "layers": dict, "digests": dict}


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


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """A weights file that was opened, to be handed on instead of its path.

    Its tensors are read when they are first asked for: what their shapes show to be foreign is
    refused before, whatever its size.

    Attributes:
        path: Of the file, for errors.
        shapes: Of its tensors, by their names in the file, as they are there.
        metadata: As they are there.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    _opened: Any = field(repr=False)

    @classmethod
    def of(
        cls, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> WeightsFile:
        """A file whose tensors somebody has read: of another kind, or not written yet."""
        shapes = {name: tuple(t.shape) for name, t in tensors.items()}
        file = cls(path, shapes, metadata or {}, None)
        vars(file)["tensors"] = tensors  # where cached_property keeps them
        return file

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """By their names in the file, as they are there; read once.

        Raises:
            FileError: One cannot be read.
        """
        with foreign(f"{self.path}: not a whole safetensors file"):
            return timm_names({name: self._opened.get_tensor(name) for name in self._opened.keys()})

    @cached_property
    def header(self) -> Mapping[str, Any]:
        """What the metadata of a packed file state, checked; of no other file.

        Raises:
            FileError: They are damaged, or of a later version.
        """
        return _read_header(self.path, self.metadata)

    @property
    def is_decoded(self) -> bool:
        """Whether `stored` has been asked for already."""
        return "stored" in vars(self)

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all that `stored.dense` will hold of a packed file, without reading a tensor.

        Raises:
            FileError: As `header`.
        """
        layers = self.header["layers"]
        own = {key(name) for name in layers for key in (packed_key, scale_key)}
        dense = {name: shape for name, shape in self.shapes.items() if name not in own}
        return dense | {weight_key(name): tuple(shape) for name, shape in layers.items()}

    @property
    def is_packed(self) -> bool:
        """Whether it states to be packed by this project."""
        return _KEY in self.metadata

    @property
    def is_bare(self) -> bool:
        """Whether it holds packed tensors without this project's metadata."""
        return not self.is_packed and _packed_name(self.shapes) is not None

    @cached_property
    def stored(self) -> StoredWeights:
        """What the file holds, checked and decoded, once; see `decode`."""
        return self.decode()

    def decode(self, stated: Mapping[str, Any] | None = None) -> StoredWeights:
        """Check and decode what the file holds.

        Args:
            stated: As `read_weights`.

        Raises:
            FileError: As `read_weights`.
        """
        if self.is_packed:
            _check_count(self, self.header["layers"])
            _check_tensors(self)
            return _decode(self, self.header)
        strange = _packed_name(self.shapes)
        if strange is None:
            return _unpacked(self.tensors)
        if stated is None:
            raise FileError(
                f"{self.path}: tensor {printable(strange)} is packed, but the file has no "
                "timm_ternary metadata; if config.json beside it says in model_args how it is "
                f"packed (ternary and packed), type: timm-ternary pack {self.path.parent} OUT"
            )
        _logger.warning(
            "%s: saved without timm_ternary.hf, so it holds no digests that would show damage",
            self.path,
        )
        return _decode(self, stated)


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
        held[packed_key(name)] = packing.encode_smallest(code.codes.flatten(1), encoding)
        held[scale_key(name)] = scale_tensor(code).float().contiguous()
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
    return _KEY in read_metadata(path)


def read_metadata(path: str | Path) -> Mapping[str, str]:
    """The metadata of a safetensors file; empty where it is none, or is not there."""
    try:
        return read_file(path).metadata
    except FileError:
        return {}


def read_weights(path: str | Path, stated: Mapping[str, Any] | None = None) -> StoredWeights:
    """Read and check a weights file: packed, or float or trainable as timm saves it.

    Args:
        path: Of the file.
        stated: What a bare file is taken for, as it stands in the metadata of others: encoding,
            architecture, ternary, layers. Its codes, scales and sizes are checked, no digests.

    Raises:
        FileError: The file is missing, a pickle, damaged, of a later version, or holds packed
            tensors without this project's metadata and `stated` is None; the message names the
            tensor at fault.
    """
    return read_file(path).decode(stated)


def check_digests(file: str | Path | WeightsFile) -> TernaryConfig:
    """Check the tensors of a packed file by their digests, decoding none.

    Args:
        file: In one piece, or that which its shards make together.

    Returns:
        How its model was made ternary.

    Raises:
        FileError: As `read_weights`; or the file is not a packed one.
    """
    file = file if isinstance(file, WeightsFile) else read_file(file)
    if not file.is_packed:
        raise FileError(f"{file.path}: not packed by timm_ternary")
    _check_tensors(file)
    return _config(file.path, file.header)


def _packed_name(names: Iterable[str]) -> str | None:
    return next(filter(is_packed_key, names), None)


def _check_tensors(file: WeightsFile) -> None:
    """Compare the tensors of a packed file with their digests in its metadata."""
    digests = file.header["digests"]
    for name in digests.keys() - file.shapes.keys():
        raise FileError(f"{file.path}: tensor {printable(name)} is missing")
    for name, tensor in file.tensors.items():
        with foreign(f"{file.path}: tensor {printable(name)}"):
            digest = _digest_tensor(name, tensor)
        if digests.get(name) != digest:
            raise FileError(
                f"{file.path}: tensor {printable(name)} is damaged (its digest does not match)"
            )


def _check_count(file: WeightsFile, layers: Mapping[str, Sequence[int]]) -> None:
    """Refuse a small file whose metadata state huge weights: Zstandard would fill the memory."""
    size = sum(path.stat().st_size for path in _parts(file.path))
    room = _SOME_CODES + _MOST_CODES * size
    for name, shape in layers.items():
        bases = (file.shapes.get(scale_key(name)) or (1,))[0]
        room -= bases * math.prod(shape)
        if room < 0:
            raise FileError(
                f"{file.path}: tensor {printable(packed_key(name))} has the shape "
                f"{shown(list(shape))} in the metadata, too large for a file of {size:,} bytes"
            )


def _config(path: Path, header: Mapping[str, Any]) -> TernaryConfig:
    with foreign(path):
        packing.check_encoding(header["encoding"])
        return TernaryConfig.from_dict(header["ternary"])


def _decode(file: WeightsFile, header: Mapping[str, Any]) -> StoredWeights:
    path, tensors = file.path, dict(file.tensors)
    config = _config(path, header)
    stored = StoredWeights({}, {}, {}, config, header["encoding"], header["architecture"])
    for name, shape in header["layers"].items():
        for key in (packed_key(name), scale_key(name)):
            if key not in tensors:
                raise FileError(f"{path}: tensor {printable(key)} is missing")
        packed, scale = tensors.pop(packed_key(name)), tensors.pop(scale_key(name))
        try:
            code = code_from_tensors(packed, scale, torch.Size(shape))
        except ValueError as error:  # it begins with the tensor's own name
            raise FileError(f"{path}: tensor {printable(name)}.{error}") from None
        stored.codes[name] = code
        stored.dense[weight_key(name)] = code.decode()
    for name, tensor in tensors.items():
        with foreign(f"{path}: tensor {printable(name)}"):
            nan = has_nan(tensor)
        if nan:
            raise FileError(f"{path}: tensor {printable(name)} holds NaN")
    stored.dense.update(tensors)
    return stored


def read_file(path: str | Path) -> WeightsFile:
    """Open a safetensors file: names, shapes and metadata are read, tensors not yet.

    Raises:
        FileError: It is missing, no file, a pickle, or not whole.
    """
    path = Path(path)
    if not os.path.exists(path) and is_stored(path):
        return _joined(path, [read_file(shard) for shard in _parts(path)])
    if not os.path.exists(path):
        pickles = sorted(path.parent.glob("*.bin")) + sorted(path.parent.glob("*.pt*"))
        if pickles and path.parent.is_dir():
            raise FileError(f"{pickles[0]}: pickle files are not read; save it as {WEIGHTS_NAME}")
    check_regular(path)
    with foreign(path), path.open("rb") as raw:
        start = raw.read(8)
    size = int.from_bytes(start, "little")
    try:
        with foreign(f"{path}: not a whole safetensors file"):
            if len(start) == 8 and _HEADER_BYTES < size < path.stat().st_size:
                raise ValueError(f"a header of {size:,} bytes")
            opened: Any = safe_open(str(path), framework="pt")
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
            return WeightsFile(path, timm_names(shapes), opened.metadata() or {}, opened)
    except FileError:
        # Asked only now: a safetensors file may begin with the same bytes, its header's length.
        if start[:2] == b"PK" or start[:1] == b"\x80":
            raise FileError(f"{path}: a pickle file; only safetensors files are read") from None
        raise


def is_stored(path: Path) -> bool:
    """Whether there is such a file, or an index of the shards that transformers has split it
    into."""
    return path.exists() or index_of(path).exists()


def index_of(path: Path) -> Path:
    """Where transformers says into which files it has split the one at `path`."""
    return path.with_name(f"{path.name}.index.json")


def shards_in(index: Path) -> list[Path]:
    """The files that transformers has split a model into, by the index beside them.

    Raises:
        FileError: It is no such index, or names files elsewhere.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise FileError(f"{index}: it has no weight_map")
    found = sorted({str(name) for name in names.values()})
    for name in found:
        if not re.fullmatch(r"[^/\\.][^/\\]*\.safetensors", name) or name == index.name:
            raise FileError(f"{index}: {shown(name)} names no .safetensors file beside it")
    return [index.with_name(name) for name in found]


def _parts(path: Path) -> list[Path]:
    return [path] if path.exists() else shards_in(index_of(path))


def _joined(path: Path, files: Sequence[WeightsFile]) -> WeightsFile:
    """The tensors of several files as those of one, at `path`, with the metadata of the first."""
    owners = {name: file for file in files for name in file.shapes}
    if len(owners) != sum(len(file.shapes) for file in files):
        raise FileError(f"{index_of(path)}: two of its files hold a tensor of the same name")
    shapes = {name: shape for file in files for name, shape in file.shapes.items()}
    return WeightsFile(path, timm_names(shapes), files[0].metadata, _Shards(files))


class _Shards:
    """Several opened files, for those who read one."""

    def __init__(self, files: Sequence[WeightsFile]) -> None:
        self._owners = {name: file for file in files for name in file.shapes}

    def keys(self) -> Iterable[str]:
        return self._owners.keys()

    def get_tensor(self, name: str) -> Tensor:
        return self._owners[name].tensors[name]


def _read_header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata[_KEY]
    if metadata.get(_DIGEST_KEY) != _digest(text.encode()):
        raise FileError(f"{path}: the timm_ternary metadata is damaged (its digest does not match)")
    with foreign(f"{path}: the timm_ternary metadata states no version"):
        header = json.loads(text)
        version = header["version"]
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise FileError(
            f"{path}: format version {shown(version)}, this release reads up to {VERSION}; "
            "type: pip install -U timm-ternary"
        )
    for key, kind in _HEADER.items():
        if not isinstance(header.get(key), kind):
            raise FileError(f"{path}: {key} in the timm_ternary metadata is no {kind.__name__}")
    for name, shape in header["layers"].items():
        if not (
            isinstance(shape, list)
            and 1 <= len(shape) <= _MOST_DIMENSIONS
            and all(type(n) is int and n >= 0 for n in shape)
        ):
            raise FileError(
                f"{path}: tensor {printable(packed_key(name))} has the shape {shown(shape)}"
            )
    return dict(header)


def _unpacked(tensors: Mapping[str, Tensor]) -> StoredWeights:
    stored = StoredWeights(dense={})
    for name, tensor in tensors.items():
        if (layer := latent_layer(name)) is not None:
            stored.dense[weight_key(layer)] = tensor
            stored.latent = True
        elif parameter := quantizer_parameter(name):
            stored.quantizers.setdefault(parameter[0], {})[parameter[1]] = tensor
        else:
            stored.dense[name] = tensor
    return stored


def has_nan(tensor: Tensor) -> bool:
    """Whether a tensor of any dtype holds NaN."""
    # Infinity has its uses: gemma4_vit keeps the bounds of its activations in buffers.
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    if tensor.element_size() == 1:
        tensor = tensor.float()  # float8 knows no isnan
    return bool(tensor.isnan().any())


def _digest_tensor(name: str, tensor: Tensor) -> str:
    head = f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode()
    return _digest(head + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
