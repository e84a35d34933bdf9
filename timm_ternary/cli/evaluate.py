"""evaluate: the accuracy of a model on a data set, class by class if asked for."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from . import tables
from .common import (
    Channels,
    Checkpoint,
    Classes,
    Json,
    Model,
    Ternary,
    app,
    err,
    load,
    out,
    print_json,
)

if TYPE_CHECKING:
    from ..confusion import Confusion
    from ..evaluation import Accuracy

__all__ = ["evaluate", "measure"]

# Of the mistakes that --per-class lists below the classes.
_MOST_PAIRS = 10


@app.command()
def evaluate(
    model: Model,
    dataset: Annotated[
        str, typer.Option(help="digits, a directory, a .parquet file or a Hub name.")
    ],
    split: Annotated[
        str | None,
        typer.Option("--split", "--eval-split", help="Split (default: test or validation)."),
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Every class, and the most frequent mistakes.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    image_column: str | None = None,
    label_column: str | None = None,
    max_samples: Annotated[int | None, typer.Option(min=1)] = None,
    device: Annotated[
        str | None, typer.Option(help="E.g. cuda (default: where there is one).")
    ] = None,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    in_chans: Channels = None,
    ternary: Ternary = None,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a model on a data set."""
    network = load(model, checkpoint, num_classes, in_chans, ternary, weights=True)
    result, confusion, _ = measure(
        network,
        dataset,
        split,
        batch_size=batch_size,
        device=device,
        image_column=image_column,
        label_column=label_column,
        max_eval_samples=max_samples,
    )
    values: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        **{key: getattr(result, key) for key in ("top1", "top5", "images", "seconds")},
    }
    if per_class:
        values["majority"] = confusion.majority
        values["classes"] = [asdict(found) for found in confusion.classes()]
        values["confusion"] = confusion.to_list()
    if as_json:
        print_json(values)
        return
    out.print(tables.evaluation(values))
    out.instead(f"{model}: top-1 {result.top1:.2%}, top-5 {result.top5:.2%}")
    if per_class:
        out.print(tables.classes(values["classes"]))
        if pairs := confusion.pairs(_MOST_PAIRS):
            out.print(tables.mistakes([asdict(pair) for pair in pairs]))


def measure(
    network: Any,
    dataset: str,
    split: str | None,
    *,
    batch_size: int = 256,
    device: str | None = None,
    **options: Any,
) -> tuple[Accuracy, Confusion, str]:
    """The accuracy of a model on a data set of the command line, with a bar while it counts.

    Args:
        network: A timm model; it is moved to the device.
        dataset: As `DataArguments`.
        split: Of the data; None: test or validation, as the data call it.
        device: None: the GPU where there is one.
        **options: Further fields of `DataArguments`.

    Returns:
        The result, the classes taken for one another, and the name of the split.

    Raises:
        ValueError: The data cannot be read, or are of other classes than the model.
    """
    import torch
    from torch.utils.data import DataLoader

    from ..data.arguments import DataArguments
    from ..data.load import load_data
    from ..data.sources.base import HELD_OUT
    from ..evaluation import accuracy, check_classes, class_names

    config: Any = network.pretrained_cfg
    if split is not None:
        options["eval_split"] = split
        if split != HELD_OUT:
            options["train_split"] = split
    data = load_data(
        DataArguments(dataset=dataset, max_train_samples=1, **options),
        model_cfg=config,
        trained=True,
        in_chans=config["input_size"][0],
    )
    check_classes(network, data.label_names)
    loader = DataLoader(data.eval, batch_size, collate_fn=data.data_collator)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        total = len(data.eval) if isinstance(data.eval, Sized) else None
        task = progress.add_task("images", total=total)
        result = accuracy(
            network, loader, device=device, progress=lambda n: progress.advance(task, n)
        )
    return result, result.confusion(class_names(network, data.label_names)), data.splits[1]
