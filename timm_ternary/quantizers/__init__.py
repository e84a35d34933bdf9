"""Ternarization methods: one file, one paper. ``get("tga")`` gives the class."""

from .abcnet import ABCNet
from .admm import ADMM
from .base import Quantizer
from .bitnet import BitNet
from .bwn import BWN
from .dorefa import DoReFa
from .functional import Quantized
from .registry import (
    check,
    create,
    get,
    import_methods,
    is_installed,
    names,
    register,
    resolve,
    take_imports,
)
from .rel import REL
from .tga import TGA
from .ttq import TTQ
from .twn import TWN

__all__ = [
    "ADMM",
    "BWN",
    "REL",
    "TGA",
    "TTQ",
    "TWN",
    "ABCNet",
    "BitNet",
    "DoReFa",
    "Quantized",
    "Quantizer",
    "check",
    "create",
    "get",
    "import_methods",
    "is_installed",
    "names",
    "register",
    "resolve",
    "take_imports",
]
