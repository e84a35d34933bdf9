"""``timm-ternary --version``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..version import __version__
from .common import app

__all__ = ["top"]


def _print(wanted: bool) -> None:
    if wanted:
        print(f"timm-ternary {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Options that go before a command."""
