"""card: the model card of a packed directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Json, app, out, print_json

__all__ = ["card"]


@app.command()
def card(
    directory: Annotated[Path, typer.Argument(help="A packed directory.")],
    repo_id: Annotated[str | None, typer.Option(help="USER/NAME on the Hub.")] = None,
    license: Annotated[
        str | None, typer.Option(help="Of the weights, e.g. apache-2.0 (default: not stated).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the model card of a packed directory, README.md. Its figures were measured."""
    from ..hub.card import write_card

    path = write_card(directory, repo_id, license)
    if as_json:
        print_json({"card": str(path)})
    else:
        out.print(str(path), highlight=False, soft_wrap=True)
