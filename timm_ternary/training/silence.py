"""What other libraries say beside errors, switched off for this process."""

from __future__ import annotations

import logging
import warnings

import datasets
import transformers

__all__ = ["silence"]


def silence() -> None:
    """Let nothing but errors be printed from now on: no log, no warning, no bar."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
