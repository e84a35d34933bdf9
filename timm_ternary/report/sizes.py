"""The bytes of a model's file, and which of them are whose: one total, that of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import nn

from ..checkpoint.directory import packed_parts
from ..checkpoint.pair import STAND_IN
from ..checkpoint.weights_file import WeightsFile, file_bytes, read_file
from ..nn.state_dict import packed_key, scale_key
from ..nn.summary import ModelSummary

__all__ = ["Sizes", "file_sizes"]


@dataclass(frozen=True)
class Sizes:
    """Bytes of a packed file and of the same model in float32.

    Attributes:
        layers: Codes and scales of each ternary layer, by name.
        rest: All other tensors.
        header: Names, shapes and digests: the beginning of the packed and of the float file;
            (0, 0) for a module that no file of timm can hold.
        packed, full: Of the whole files.
        encoding: Of the codes; None for a module that no file of timm can hold.
        packed_bits: Of the codes and scales, a ternary weight.
    """

    layers: Mapping[str, int]
    rest: int
    header: tuple[int, int]
    packed: int
    full: int
    encoding: str | None
    packed_bits: float

    @property
    def ratio(self) -> float:
        """How many times smaller the packed file is."""
        return self.full / self.packed


def file_sizes(model: nn.Module, summary: ModelSummary, path: Path | None = None) -> Sizes:
    """Count the bytes of a model's packed file.

    Args:
        model: A ternary model.
        summary: Of it.
        path: Its file, where there is one; else it is written in memory, in 2bit.

    Raises:
        ValueError: The file is damaged.
    """
    file = None if path is None else read_file(path)
    size = None if path is None else path.stat().st_size
    if file is None or not file.is_packed:
        try:
            parts = packed_parts(model, "2bit")
        except ValueError:  # no model of timm, or one under a name that timm does not know
            return _without_file(summary)
        metadata = {**parts.metadata, **STAND_IN}
        file = WeightsFile.of(Path(), parts.tensors, metadata)
        size = len(file_bytes(parts.tensors, metadata))
    assert size is not None
    stored = file.stored
    bytes_of = {name: t.numel() * t.element_size() for name, t in file.tensors.items()}
    layers = {
        name: bytes_of.pop(packed_key(name)) + bytes_of.pop(scale_key(name))
        for name in stored.codes
    }
    dense = {name: tensor.contiguous() for name, tensor in stored.dense.items()}
    full = len(safetensors.torch.save(dense, {"format": "pt", **STAND_IN}))
    values = sum(t.numel() * t.element_size() for t in dense.values())
    rest = sum(bytes_of.values())
    header = (size - sum(layers.values()) - rest, full - values)
    bits = 8 * sum(layers.values()) / max(summary.ternary_weights, 1)
    return Sizes(layers, rest, header, size, full, stored.encoding, bits)


def _without_file(summary: ModelSummary) -> Sizes:
    layers = {row.name: row.packed_bytes for row in summary.layers}
    rest = summary.packed_bytes - sum(layers.values())
    bits = 8 * sum(layers.values()) / max(summary.ternary_weights, 1)
    return Sizes(layers, rest, (0, 0), summary.packed_bytes, summary.float_bytes, None, bits)
