"""The papers' figures of any ternary model, as PNGs and on one HTML page."""

from __future__ import annotations

from .histograms import weight_histograms
from .write import PAGE_NAME, write_report

__all__ = ["PAGE_NAME", "weight_histograms", "write_report"]
