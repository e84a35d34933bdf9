"""What a model gives in training, its logits and its state, in the form that others take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["as_safetensors", "is_multi_label", "logits_of", "plain_outputs"]


def plain_outputs(found: Any) -> tuple[Tensor | None, dict[str, Any]]:
    """Logits of what a plain model gives, and all of it as a dict.

    Of a tuple the first is the logits, as timm's distilled models do it; of a dict ``logits``.
    """
    if isinstance(found, Mapping):
        return found.get("logits"), dict(found)
    first = found[0] if isinstance(found, (tuple, list)) and found else found
    return first if isinstance(first, Tensor) else None, {"logits": found}


def is_multi_label(model: Any) -> bool:
    """Whether a model of transformers says so, by itself or after it has seen labels."""
    said = getattr(getattr(model, "config", None), "problem_type", None)
    return bool(said == "multi_label_classification")


def logits_of(outputs: Any) -> Tensor | None:
    """``logits`` of a dict of outputs; None of anything else."""
    return outputs.get("logits") if isinstance(outputs, dict) else None


def as_safetensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without what safetensors refuses: strides of channels_last, shared memory."""
    found: dict[str, Tensor] = {}
    owned: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in owned else tensor
        owned.add(place)
    return found
