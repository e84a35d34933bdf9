"""Activations computed anew in the backward pass (gradient checkpointing), for models of timm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["recomputed"]

# What the Trainer calls on a model of transformers: the name in 5.17, and in 5.23.
_SWITCHES = ("gradient_checkpointing_enable", "activation_checkpointing_enable")


@contextmanager
def recomputed(model: nn.Module, options: dict[str, Any] | None) -> Iterator[None]:
    """Inside, a timm model keeps the inputs of its blocks only, and the Trainer finds it so.

    Batch norm sees the batch in either computation, and its running statistics follow faster.

    Args:
        model: Has timm's ``set_grad_checkpointing``.
        options: `gradient_checkpointing_kwargs`, which timm does not take.

    Raises:
        ValueError: The model has no such method or refuses it; there are options.
    """
    name = type(model).__name__
    if options:
        raise ValueError(
            f"gradient_checkpointing_kwargs are for models of transformers, not of timm ({name}): "
            f"leave them out, got {options}"
        )
    if not hasattr(model, "set_grad_checkpointing"):
        raise ValueError(
            f"{name} has no set_grad_checkpointing, the method of timm's models: leave "
            "gradient_checkpointing out"
        )
    switch: Any = model.set_grad_checkpointing
    try:
        switch(True)
    except AssertionError as error:  # how models of timm refuse it
        raise ValueError(
            f"{name} cannot recompute activations: leave gradient_checkpointing out"
        ) from error
    for method in _SWITCHES:
        setattr(model, method, _is_on)
    try:
        yield
    finally:
        for method in _SWITCHES:
            delattr(model, method)
        switch(False)


def _is_on(**_: Any) -> None:
    """In the place of the method that a model of timm lacks: it is switched on already."""
