"""Ternarization methods: one file, one paper. ``get("tga")`` gives the class."""

from .base import Quantizer, check, create, get, names, register
from .tga import TGA
from .ttq import TTQ
from .twn import TWN

__all__ = ["TGA", "TTQ", "TWN", "Quantizer", "check", "create", "get", "names", "register"]
