"""What is done with one model: predict, inspect, pack; and the list of all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors.printable import LINE, printable
from . import tables
from .common import (
    Channels,
    Checkpoint,
    Classes,
    Json,
    Model,
    Ternary,
    app,
    load,
    load_ternary,
    out,
    print_json,
)

__all__ = ["inspect", "list_", "pack", "predict"]


@app.command()
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to show.")] = 5,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    in_chans: Channels = None,
    ternary: Ternary = None,
    as_json: Json = False,
) -> None:
    """Classify images. Files that cannot be read are named and skipped."""
    from ..evaluation import predict as run

    network = load(model, checkpoint, num_classes, in_chans, ternary, weights=True)

    def skipped(path: str, reason: str) -> None:
        print(f"skipped {printable(path, LINE)}: {printable(reason, LINE)}", file=sys.stderr)

    results = [asdict(found) for found in run(network, images, top=top, skipped=skipped)]
    if as_json:
        print_json(results)
    else:
        for result in results:
            out.print(tables.prediction(result))
            best = f"{printable(result['names'][0])} {result['probabilities'][0]:.1%}"
            out.instead(f"{printable(result['path'], LINE)}: {best}")
    if not results:
        raise ValueError("no image could be read")


@app.command()
def inspect(
    model: Model,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    in_chans: Channels = None,
    ternary: Ternary = None,
    as_json: Json = False,
) -> None:
    """Show the ternary layers: codes, zeros, scales and bytes."""
    from ..nn.summary import summarize

    network = load_ternary(model, checkpoint, num_classes, in_chans, ternary, weights=False)
    summary = summarize(network)
    if as_json:
        print_json(summary.to_dict())
        return
    out.print(tables.layers(summary.to_dict()))
    form = "packed" if summary.packed else "trainable"
    out.print(
        f"{printable(summary.method)}, {form}: {len(summary.layers)} ternary layers, "
        f"{summary.ternary_weights:,} weights, {summary.zeros:.1%} zeros; "
        f"{summary.packed_bytes:,} bytes packed, {summary.float_bytes:,} in float "
        f"({summary.float_bytes / summary.packed_bytes:.1f}x)",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def pack(
    model: Model,
    output: Annotated[Path, typer.Argument(help="Directory to write.")],
    encoding: Annotated[str, typer.Option(help="2bit, base3 or zstd.")] = "2bit",
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    in_chans: Channels = None,
    ternary: Ternary = None,
    as_json: Json = False,
) -> None:
    """Write a model as a packed directory. timm loads it; of a packed one, change the encoding."""
    from ..checkpoint.directory import save_packed
    from ..checkpoint.weights_file import WEIGHTS_NAME
    from ..packing.encodings import check_encoding

    check_encoding(encoding)  # before minutes of loading
    network = load_ternary(model, checkpoint, num_classes, in_chans, ternary, weights=True)
    keep = _what_is_known(model)  # the output may be that very directory
    save_packed(network, output, encoding)
    kept = keep(output)
    size = (output / WEIGHTS_NAME).stat().st_size
    if as_json:
        values = {"directory": str(output), "encoding": encoding, "bytes": size, "kept": kept}
        print_json(values)
        return
    out.print(
        f"{printable(output / WEIGHTS_NAME, LINE)}: {size:,} bytes, {encoding}", highlight=False
    )
    if kept:
        out.print(f"kept of the run: {', '.join(kept)}", highlight=False, soft_wrap=True)


def _what_is_known(model: str) -> Callable[[Path], list[str]]:
    """What a directory says of the run that made it, to be written beside the same weights."""
    from ..checkpoint.carried import known_run
    from ..checkpoint.directory import open_directory
    from ..checkpoint.weights_file import WEIGHTS_NAME, is_packed_file
    from ..hub.card import CARD_NAME, generated_license, is_generated, write_card

    path = Path(model.removeprefix("local-dir:"))
    card = path / CARD_NAME
    run = None
    if path.is_dir() and is_packed_file(path / WEIGHTS_NAME):
        try:
            run = known_run(open_directory(path))
        except ValueError as error:
            print(f"what is known of the run is not kept: {error}", file=sys.stderr)
    made = run is not None and card.is_file() and is_generated(card)
    text = card.read_text(encoding="utf-8") if run is not None and card.is_file() else None
    license = generated_license(card) if made else None

    def keep(output: Path) -> list[str]:
        kept = [] if run is None else run.write(output)
        if kept and text is not None:
            if made:
                write_card(output, license=license)
            else:
                (output / CARD_NAME).write_text(text, encoding="utf-8")
            kept.append(CARD_NAME)
        return kept

    return keep


@app.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(help="Glob on names.")] = "*",
    tags: Annotated[bool, typer.Option("--tags", help="Names with pretrained tags.")] = False,
    methods: Annotated[bool, typer.Option("--methods", help="Methods instead of models.")] = False,
    as_json: Json = False,
) -> None:
    """List the ternary models, or the methods. Those with their options."""
    import timm

    from .. import quantizers
    from ..names import ternary_pattern
    from ..quantizers.registry import option_defaults

    if methods:
        found = {name: option_defaults(quantizers.get(name)) for name in quantizers.names()}
        if as_json:
            print_json(found)
            return
        lines = {
            name: (quantizers.get(name).__doc__ or "").strip().partition("\n")[0] for name in found
        }
        out.print(tables.methods({name: (found[name], lines[name]) for name in found}))
        out.instead("\n".join(found))
        return
    pattern = ternary_pattern(pattern)
    names = timm.list_models(pattern, module="ternary", include_tags=tags)
    if not names:
        raise ValueError(f"no ternary model matches {pattern!r}; type: timm-ternary list 'resnet*'")
    if as_json:
        print_json(names)
    else:
        sys.stdout.writelines(f"{name}\n" for name in names)
