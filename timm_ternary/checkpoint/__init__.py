"""Directories that timm loads: model.safetensors and config.json, written and read."""

from .directory import (
    CONFIG_NAME,
    StoredDirectory,
    accept_config,
    load_packed,
    open_directory,
    packed_parts,
    save_float,
    save_packed,
)

__all__ = [
    "CONFIG_NAME",
    "StoredDirectory",
    "accept_config",
    "load_packed",
    "open_directory",
    "packed_parts",
    "save_float",
    "save_packed",
]
