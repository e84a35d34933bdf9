"""Which layers of a model are made ternary."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase

from torch import nn

from ..compat.timm import is_feature_getter
from ..config import TernaryConfig
from ..errors.wording import nearest

__all__ = ["HOSTS", "is_depthwise", "select_layers"]

_logger = logging.getLogger(__name__)

HOSTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Types (with their subclasses) whose `weight` has its output channels in dimension 0."""


_WORDS = ("first", "last", "depthwise")


def is_depthwise(layer: nn.Module) -> bool:
    """Whether `layer` is a convolution with one input channel a group."""
    return isinstance(layer, HOSTS[:3]) and layer.groups > 1 and layer.groups == layer.in_channels


def select_layers(model: nn.Module, config: TernaryConfig) -> dict[str, nn.Module]:
    """Convolutions and linear layers of `model` that `config` does not exclude, in module order.

    ``"first"`` and ``"last"`` are timm's ``first_conv`` and ``classifier`` where the model states
    them, else its first and last such layer. Glob patterns match module names; on
    a wrapper (``features_only``, TimmWrapper), which renames ``stages.0`` to ``stages_0`` or
    ``model.stages.0``, in either spelling.
    """
    prefix = _prefix(model)
    hosts: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, HOSTS) and "weight" in module._parameters
    }
    excluded: set[str] = set()
    for entry in config.exclude:
        if entry in ("first", "last"):
            excluded |= _end(model, prefix, hosts, entry)
        elif entry == "depthwise":
            excluded |= {name for name, module in hosts.items() if is_depthwise(module)}
        else:
            found = {n for n in hosts if _matches(n, entry) or _matches(n, prefix + entry)}
            if not found:
                guess = nearest(entry, [*hosts, *_WORDS])
                hint = f"; did you mean {guess!r}?" if guess else ""
                _logger.warning("exclude=%r matches no layer%s", entry, hint)
            excluded |= found
    return {name: module for name, module in hosts.items() if name not in excluded}


def _prefix(model: nn.Module) -> str:
    """What a wrapper puts before the names of the timm model that it keeps one level below."""
    if is_feature_getter(model):
        return "model."
    wraps = not hasattr(model, "pretrained_cfg") and hasattr(model, "timm_model")
    return "timm_model." if wraps else ""  # transformers' TimmWrapper


def _end(model: nn.Module, prefix: str, hosts: dict[str, nn.Module], end: str) -> set[str]:
    owner = model if hasattr(model, "pretrained_cfg") else model.get_submodule(prefix[:-1])
    stated = None
    if (config := getattr(owner, "pretrained_cfg", None)) is not None:
        key = "first_conv" if end == "first" else "classifier"
        if end == "last" and key not in config:
            return set()  # a features_only wrapper: its classifier is gone
        stated = config.get(key)
    if not stated:
        return set(list(hosts)[:1] if end == "first" else list(hosts)[-1:])
    names = (stated,) if isinstance(stated, str) else tuple(stated)
    return {host for host in hosts for name in names if _matches(host, prefix + name, inside=True)}


def _matches(name: str, pattern: str, *, inside: bool = False) -> bool:
    """Whether `name` is `pattern` or, with `inside`, a submodule of it; ``_`` and ``.`` alike."""
    patterns = (pattern, f"{pattern}.*") if inside else (pattern,)
    return any(
        fnmatchcase(name, p) or fnmatchcase(name.replace(".", "_"), p.replace(".", "_"))
        for p in patterns
    )
