"""``python -m timm_ternary.cli``."""

from . import main

__all__ = ["main"]

main()
