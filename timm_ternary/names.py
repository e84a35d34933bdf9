"""How the ternary twin of a timm model is named: ``resnet18`` and ``resnet18_tern``."""

from __future__ import annotations

__all__ = ["base_name", "is_ternary_name", "ternary_name", "ternary_pattern"]

_SUFFIX = "_tern"


def ternary_name(base: str) -> str:
    """The name of the ternary twin; that of one already is its own."""
    return base if is_ternary_name(base) else base + _SUFFIX


def base_name(name: str) -> str:
    """The name of the float model; that of one already is its own."""
    return name.removesuffix(_SUFFIX)


def is_ternary_name(name: str) -> bool:
    """Whether `name`, an architecture without a tag, is that of a ternary twin."""
    return name.endswith(_SUFFIX)


def ternary_pattern(pattern: str) -> str:
    """A glob, or a glob with a tag, that only names of ternary twins match."""
    return pattern if _SUFFIX in pattern else pattern + _SUFFIX
