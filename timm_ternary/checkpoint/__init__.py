"""Directories that timm loads: model.safetensors and config.json, written and read."""

from .directory import CONFIG_NAME, load_packed, packed_parts, save_float, save_packed

__all__ = ["CONFIG_NAME", "load_packed", "packed_parts", "save_float", "save_packed"]
