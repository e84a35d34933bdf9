"""Ternary models as ONNX files."""

from .export import export_onnx

__all__ = ["export_onnx"]
