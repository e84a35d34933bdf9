"""report: the figures of one model and its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import (
    Channels,
    Checkpoint,
    Classes,
    Json,
    Model,
    Ternary,
    app,
    load_ternary,
    out,
    print_json,
)

__all__ = ["report"]


@app.command()
def report(
    model: Model,
    output: Annotated[Path, typer.Argument(metavar="OUTDIR", help="Directory to write.")],
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Output directory of a training, for its curves; may be repeated."),
    ] = None,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    in_chans: Channels = None,
    ternary: Ternary = None,
    as_json: Json = False,
) -> None:
    """Draw the papers' figures of a ternary model on one HTML page."""
    from ..report import write_report
    from ..report.runs import find_log

    runs = list(run or ())
    own = Path(model.removeprefix("local-dir:"))
    if own.is_dir() and find_log(own) is not None:
        runs.insert(0, own)
    title = own.resolve().name if own.is_dir() else model  # no path of a machine on the page
    network = load_ternary(model, checkpoint, num_classes, in_chans, ternary, weights=True)
    page, *figures = map(str, write_report(network, output, title=title, runs=runs))
    if as_json:
        print_json({"page": page, "figures": figures})
    else:
        out.print(f"{page}: {len(figures)} figures", highlight=False, soft_wrap=True)
