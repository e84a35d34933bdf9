"""Ternary-weight {-1, 0, +1} variants of every timm model.

Importing the package registers ``<name>_tern`` for every name that timm lists.
"""

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
    "pack_",
    "register_ternary",
    "summarize",
    "ternarize_",
    "unpack_",
]
