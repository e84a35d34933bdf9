"""Ternary-weight {-1, 0, +1} variants of every timm model.

Importing the package registers ``<name>_tern`` for every name that timm lists.
"""

import importlib
from typing import Any

from . import checkpoint, quantizers
from .code import TernaryCode
from .config import TernaryConfig
from .models import register_ternary
from .nn.convert import pack_, ternarize_, unpack_
from .nn.summary import summarize
from .version import __version__

__all__ = [
    "TernaryCode",
    "TernaryConfig",
    "__version__",
    "checkpoint",
    "hf",
    "pack_",
    "push_to_hub",
    "quantizers",
    "register_ternary",
    "summarize",
    "ternarize_",
    "training",
    "unpack_",
]


def __getattr__(name: str) -> Any:
    # They import transformers and datasets, seconds that a mere import must not cost.
    if name in ("hf", "training"):
        return importlib.import_module(f".{name}", __name__)
    if name == "push_to_hub":
        return importlib.import_module(".hub.push", __name__).push_to_hub
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
