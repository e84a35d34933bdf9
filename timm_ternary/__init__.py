"""Ternary-weight {-1, 0, +1} variants of every timm model.

Importing the package registers ``<name>_tern`` for every name that timm lists.
"""

import importlib
from types import ModuleType

from . import checkpoint, quantizers
from .code import TernaryCode
from .config import TernaryConfig
from .convert import pack_, ternarize_, unpack_
from .models import register_ternary
from .summary import summarize
from .version import __version__

__all__ = [
    "TernaryCode",
    "TernaryConfig",
    "__version__",
    "checkpoint",
    "hf",
    "pack_",
    "quantizers",
    "register_ternary",
    "summarize",
    "ternarize_",
    "training",
    "unpack_",
]


def __getattr__(name: str) -> ModuleType:
    # They import transformers and datasets, seconds that a mere import must not cost.
    if name in ("hf", "training"):
        return importlib.import_module(".training", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
