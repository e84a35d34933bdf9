"""Of accelerate: what it leaves in a model that it has prepared. (1.15)"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

__all__ = ["own_forward"]

_M = TypeVar("_M", bound=nn.Module)


def own_forward(model: _M) -> _M:
    """Take mixed precision off a model, in place: accelerate puts another ``forward`` over it."""
    if vars(model).pop("_original_forward", None) is not None:
        vars(model).pop("forward", None)
    return model
