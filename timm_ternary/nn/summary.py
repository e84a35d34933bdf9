"""What a ternary model is made of: codes, zeros, scales and bytes of each layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from .. import packing
from ..errors.printable import printable
from ..packing.tensors import scale_tensor
from .convert import config_of, float_state, ternary_layers
from .forms import layer_code
from .packed import PackedWeight

__all__ = ["LayerSummary", "ModelSummary", "summarize"]


@dataclass(frozen=True)
class LayerSummary:
    """One ternary layer.

    Attributes:
        name: Module name.
        kind: Class of the layer before it was made ternary.
        shape: Of the weight.
        weights: Number of weights.
        zeros: Fraction of codes that are 0.
        plus, minus: Fractions of codes that are +1 and -1.
        pos, neg: Mean scale of + and of -.
        scales: Number of scales that a file holds.
        packed_bytes: Codes in 2bit and scales in float32.
        float_bytes: The same weight in float32.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    zeros: float
    plus: float
    minus: float
    pos: float
    neg: float
    scales: int
    packed_bytes: int
    float_bytes: int


@dataclass(frozen=True)
class ModelSummary:
    """All ternary layers and the totals; ``print`` shows a table.

    Attributes:
        layers: One entry a ternary layer.
        method: Name of the method.
        packed: Whether the model is in the packed form.
        zeros: Fraction of zero codes over all ternary layers.
        ternary_weights: Number of ternary weights.
        float_values: Values left in float: biases, norms, running statistics, excluded layers.
        packed_bytes: Codes in 2bit, scales and all float values.
        float_bytes: The float model.
    """

    layers: tuple[LayerSummary, ...]
    method: str
    packed: bool
    zeros: float
    ternary_weights: int
    float_values: int
    packed_bytes: int
    float_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        head = (
            f"{'layer':{width}}  {'shape':>18}  {'zeros':>6}  {'pos':>9}  {'neg':>9}  {'bytes':>9}"
        )
        rows = [
            f"{printable(x.name):{width}}  {'x'.join(map(str, x.shape)):>18}  {x.zeros:6.1%}  "
            f"{x.pos:9.3g}  {x.neg:9.3g}  {x.packed_bytes:9,}"
            for x in self.layers
        ]
        total = (
            f"{printable(self.method)}: {len(self.layers)} ternary layers, "
            f"{self.ternary_weights:,} weights, "
            f"{self.zeros:.1%} zeros; {self.packed_bytes:,} bytes packed, "
            f"{self.float_bytes:,} in float ({self.float_bytes / self.packed_bytes:.1f}x)"
        )
        return "\n".join([head, *rows, total])


@torch.no_grad()
def summarize(model: nn.Module) -> ModelSummary:
    """Codes, zeros, scales and bytes of a ternary model, trainable or packed, layer by layer.

    Raises:
        ValueError: The model is not ternary.
    """
    layers, config = ternary_layers(model), config_of(model)
    if config is None:
        raise ValueError("the model is not ternary; type: timm_ternary.ternarize_(model)")
    rows = tuple(_summarize_layer(name, layer) for name, layer in layers.items())
    rest = list(float_state(model).values())
    rest_bytes = sum(t.numel() * t.element_size() for t in rest)
    weights = sum(row.weights for row in rows)
    return ModelSummary(
        layers=rows,
        method=config.method,
        packed=any(isinstance(layer, PackedWeight) for layer in layers.values()),
        zeros=sum(row.zeros * row.weights for row in rows) / max(weights, 1),
        ternary_weights=weights,
        float_values=sum(t.numel() for t in rest),
        packed_bytes=sum(row.packed_bytes for row in rows) + rest_bytes,
        float_bytes=sum(row.float_bytes for row in rows) + rest_bytes,
    )


def _summarize_layer(name: str, layer: nn.Module) -> LayerSummary:
    code = layer_code(layer)
    host = next(
        c for c in type(layer).__mro__ if not c.__name__.startswith(("Packed", "Parametrized"))
    )
    count = max(code.codes.numel(), 1)
    scales = scale_tensor(code).numel()
    size = code.bases * packing.packed_size(code.shape.numel()) + 4 * scales
    return LayerSummary(
        name=name,
        kind=host.__name__,
        shape=tuple(code.shape),
        weights=code.shape.numel(),
        zeros=code.zeros,
        plus=(code.codes > 0).sum().item() / count,
        minus=(code.codes < 0).sum().item() / count,
        pos=code.pos.mean().item(),
        neg=code.neg.mean().item(),
        scales=scales,
        packed_bytes=size,
        float_bytes=4 * code.shape.numel(),
    )
