"""The packed form of a layer: 2-bit codes and scales in two buffers, decoded at every read.

`PackedWeight` is mixed into a run-time subclass of exactly the host's class, so that each host
keeps its own forward (Conv2dSame, StdConv2d), and ``layer.weight`` is the ternary weight whether
the layer is called or only read (``F.linear(x, layer.weight)``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import packing
from ..code import TernaryCode
from .trainable import refuse_scripting

__all__ = ["PackedConv2d", "PackedLinear", "PackedWeight", "host_class", "packed_class"]


class PackedWeight:
    """Mixin of packed layers.

    Buffers:
        weight_packed: uint8, ``(bases * ceil(n / 4),)``, the codes in 2bit (packing/encodings.py).
        weight_scale: Floating point, ``(bases, 1 or 2, 1 or out)``: one row where both signs
            share one scale, else the row of + and the row of -.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_shape: torch.Size
    weight_frozen: bool = False
    """Whether the weight took no gradients when it was packed, and is to take none unpacked."""
    tie: str | None = None
    """The same text in layers that were made of one weight; a copy of a model keeps it."""

    @property
    def weight(self) -> Tensor:
        """The decoded weight, in the dtype of the scales."""
        return self.weight_code.decode()

    @property
    def weight_code(self) -> TernaryCode:
        """The codes and scales."""
        bases = self.weight_scale.shape[0]
        codes = packing.unpack_2bit(
            self.weight_packed.view(bases, -1), self.weight_shape.numel()
        ).reshape(bases, *self.weight_shape)
        scale = self.weight_scale
        return TernaryCode(codes, scale[:, 0], scale[:, -1], scale.shape[1])

    def set_code(self, packed: Tensor, scale: Tensor) -> None:
        """Take codes in 2bit and scales; the buffers take their shapes."""
        self.weight_packed = packed.to(self.weight_packed.device)
        self.weight_scale = scale.to(self.weight_scale, copy=True)

    def __prepare_scriptable__(self) -> nn.Module:
        """See `refuse_scripting`."""
        assert isinstance(self, nn.Module)
        return refuse_scripting(self)

    def holds_same(self, other: PackedWeight) -> bool:
        """Whether `other` holds the same codes and scales; on the meta device nobody knows: yes."""
        if self.weight_shape != other.weight_shape:
            return False
        pairs = ((self.weight_packed, other.weight_packed), (self.weight_scale, other.weight_scale))
        return all(a.is_meta or torch.equal(a, b) for a, b in pairs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle by host class: `packed_class` makes its subclass at run time."""
        state: tuple[Any, ...] = tuple(super().__reduce_ex__(protocol))
        return (_new_packed, (host_class(type(self)),), *state[2:])


class PackedConv2d(PackedWeight, nn.Conv2d):  # type: ignore[override]
    """nn.Conv2d with a packed weight; made by `make_packed`, not constructed."""


class PackedLinear(PackedWeight, nn.Linear):  # type: ignore[override]
    """nn.Linear with a packed weight; made by `make_packed`, not constructed."""


_packed_classes: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: PackedConv2d,
    nn.Linear: PackedLinear,
}


def packed_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The packed subclass of exactly `cls`, so that it keeps its forward (Conv2dSame pads)."""
    if cls not in _packed_classes:
        members: dict[str, Any] = {"__doc__": f"{cls.__name__} with a packed weight."}
        _packed_classes[cls] = type(f"Packed{cls.__name__}", (PackedWeight, cls), members)
    return _packed_classes[cls]


def host_class(cls: type) -> type[nn.Module]:
    """The inverse of `packed_class`."""
    return next(c for c in cls.__bases__ if issubclass(c, nn.Module))


def _new_packed(host: type[nn.Module]) -> nn.Module:
    """An empty packed layer, whose state unpickling sets."""
    cls = packed_class(host)
    layer: nn.Module = cls.__new__(cls)
    return layer
