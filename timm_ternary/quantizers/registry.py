"""The methods by name: this package's, those of installed packages, and those that are imported."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..config import TernaryConfig
from ..errors.wording import flat, unknown

__all__ = [
    "ENTRY_POINTS",
    "check",
    "create",
    "get",
    "import_methods",
    "is_installed",
    "names",
    "option_defaults",
    "register",
    "resolve",
    "take_imports",
]

ENTRY_POINTS = "timm_ternary.quantizers"
"""Group of entry points by which an installed package offers its methods.

Each names a subclass of `Quantizer`, or a module whose import registers some.
"""

_logger = logging.getLogger(__name__)
_methods: dict[str, type[Any]] = {}
# Entry points that are still to be loaded; None: not looked up yet.
_waiting: list[metadata.EntryPoint] | None = None
_Q = TypeVar("_Q", bound=type[Any])


def register(cls: _Q) -> _Q:
    """Class decorator: make the method, a `Quantizer`, available under ``cls.name``.

    Raises:
        ValueError: The name is taken.
    """
    if cls.name in _methods:
        raise ValueError(f"method {cls.name!r} is registered already, by {_methods[cls.name]!r}")
    _methods[cls.name] = cls
    return cls


def names() -> list[str]:
    """Names of all registered methods, sorted; those of installed packages too."""
    _load_installed()
    return sorted(_methods)


def is_installed(name: str) -> bool:
    """Whether there is a method `name`."""
    if name not in _methods:
        _load_installed()
    return name in _methods


def get(name: str) -> type[Any]:
    """The class of the method `name`, a `Quantizer`.

    Raises:
        ValueError: No method has that name (names the nearest).
    """
    if not is_installed(name):
        raise ValueError(
            unknown("method", name, _methods)
            + " For one of another package: pip install it, or type --import MODULE."
        )
    return _methods[name]


def import_methods(modules: Sequence[str]) -> None:
    """Import modules that register methods, from the working directory too.

    Raises:
        ValueError: One cannot be imported. One line.
    """
    if modules and (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last: a file there must not stand in for a library
    for module in modules:
        try:
            importlib.import_module(module)
        # Whatever the code of a user raises, in one line that names its module.
        except Exception as error:
            raise ValueError(
                f"--import {module}: {_reason(error)}; give a module that Python finds here, as "
                f"`python -c 'import {module}'` does"
            ) from error


def take_imports(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take each ``--import MODULE`` out of the words of a command line.

    Returns:
        The other words, and the modules.

    Raises:
        ValueError: ``--import`` is the last word.
    """
    rest: list[str] = []
    modules: list[str] = []
    left = iter(words)
    for word in left:
        option, equals, module = word.partition("=")
        if option != "--import":
            rest.append(word)
            continue
        module = module if equals else next(left, "")
        if not module:
            raise ValueError("--import needs the name of a module, e.g. --import my_methods")
        modules.append(module)
    return rest, modules


def _load_installed() -> None:
    """Load the entry points, once: a package that is broken is named, and the others go on."""
    global _waiting
    if _waiting is None:
        _waiting = list(metadata.entry_points(group=ENTRY_POINTS))
    while _waiting:
        entry = _waiting.pop()
        try:
            found = entry.load()
            if isinstance(found, type) and found not in _methods.values():
                register(found)
        # Whatever the code of others raises: it must not take all other methods with it.
        except Exception as error:
            owner = entry.dist.name if entry.dist is not None else entry.value
            _logger.warning(
                "package %s offers method %s, which cannot be loaded: %s; repair it, or type: "
                "pip uninstall %s",
                *(owner, entry.name, _reason(error), owner),
            )


def _reason(error: Exception) -> str:
    """What an import raised, in one line; with its type where the text alone says little."""
    plain = isinstance(error, (ImportError, ValueError))
    return flat(error) if plain else f"{type(error).__name__}: {flat(error)}"


def option_defaults(cls: type[Any]) -> dict[str, Any]:
    """Options of a method and their defaults: its keyword arguments, but for granularity.

    (``**kwargs``, which a method of one's own may hand on to `Quantizer`, are none.)
    """
    parameters = inspect.signature(cls.__init__).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in ("self", "weight", "granularity")
        and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def create(config: TernaryConfig, weight: Tensor) -> Any:
    """The `Quantizer` that `config` asks for, initialized from `weight`.

    Raises:
        ValueError: Unknown method or option (names the nearest), or a value is not allowed.
    """
    cls = get(config.method)
    allowed = option_defaults(cls)
    for key in config.options:
        if key not in allowed:
            raise ValueError(unknown(f"option of method {config.method!r}", key, allowed))
    return cls(weight, granularity=config.granularity, **config.options)


def check(config: TernaryConfig, *, coded: bool = False) -> None:
    """Raise the ValueError of `create`, if any, without a layer at hand.

    Args:
        coded: Codes and scales are at hand, and suffice: a method that is not installed passes.
    """
    if not coded or is_installed(config.method):
        create(config, torch.zeros(1, 1))


def resolve(config: TernaryConfig) -> TernaryConfig:
    """`config` with the method's own granularity in the place of None; equal ones mean the same.

    A method that is not installed keeps None, which nobody here can resolve.
    """
    if config.granularity is not None or not is_installed(config.method):
        return config
    return replace(config, granularity=get(config.method).default_granularity)
