"""Ternarization methods: one file, one paper. ``get("tga")`` gives the class."""

from .abcnet import ABCNet
from .admm import ADMM
from .base import Quantizer, check, create, get, names, register, resolve
from .bitnet import BitNet
from .bwn import BWN
from .dorefa import DoReFa
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
    "Quantizer",
    "check",
    "create",
    "get",
    "names",
    "register",
    "resolve",
]
