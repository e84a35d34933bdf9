"""Models: float bases that timm lacks, and the ternary twin of every name."""

from . import alexnet, resnet_cifar
from .ternary import register_all, register_ternary

__all__ = ["alexnet", "register_all", "register_ternary", "resnet_cifar"]

register_all()
