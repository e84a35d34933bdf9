"""report: the figures of one model and its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    output: Annotated[
        Path | None,
        typer.Argument(metavar="[OUTDIR]", help="Directory to write (default: report/ in MODEL)."),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help="Output directory of a training, for its curves and the latent weights of its "
            "last checkpoint (MODEL's own is found without); may be repeated."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Measure the accuracy, class by class, on these images.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of --dataset.")] = None,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    in_chans: Channels = None,
    ternary: Ternary = None,
    as_json: Json = False,
) -> None:
    """Draw the figures of a model and its training as a web page."""
    from ..checkpoint.run_files import REPORT_NAME
    from ..report import write_report
    from ..report.runs import find_log

    runs = list(run or ())
    own = Path(model.removeprefix("local-dir:"))
    source = own if own.is_dir() else None
    if output is None:
        if source is None:
            raise ValueError(
                f"{model!r} is no directory that could hold the report; type: "
                f"timm-ternary report {model} OUTDIR"
            )
        output = source / REPORT_NAME
    if source is not None and find_log(source) is not None:
        runs.insert(0, source)
    title = model if source is None else source.resolve().name  # no path of a machine on the page
    network = load_ternary(model, checkpoint, num_classes, in_chans, ternary, weights=True)
    if checkpoint is not None:
        source = None  # other weights than those in the directory
    found = None if dataset is None else _measured(network, dataset, split)
    written = write_report(network, output, title=title, runs=runs, source=source, evaluation=found)
    page, *figures = map(str, written)
    if as_json:
        print_json({"page": page, "figures": figures})
    else:
        out.print(f"{page}: {len(figures)} figures", highlight=False, soft_wrap=True)


def _measured(network: Any, dataset: str, split: str | None) -> Any:
    from ..checkpoint.evaluation_file import Evaluation
    from .evaluate import measure

    result, confusion, split = measure(network, dataset, split)
    path = Path(dataset)
    name = path.resolve().name if path.exists() else dataset
    return Evaluation(result.top1, confusion, dataset=name, split=split)
