"""What the commands share: the app, the words for a model, and how it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

__all__ = [
    "Channels",
    "Checkpoint",
    "Classes",
    "Json",
    "Model",
    "Ternary",
    "app",
    "err",
    "load",
    "load_ternary",
    "out",
    "print_json",
]

# Commands import what they need: `timm-ternary --help` answers before torch could load.
app = typer.Typer(
    name="timm-ternary",
    help="Ternary-weight {-1, 0, +1} variants of every timm model. Every command takes --import "
    "MODULE, which registers methods of your own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# What is printed holds names of files and classes: no markup.
out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)

Model = Annotated[str, typer.Argument(help="timm name, local-dir:PATH, hf-hub:ID, or a directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Load this .safetensors file: float, trained or packed.")
]
Classes = Annotated[int | None, typer.Option(help="Number of classes of --checkpoint.")]
Channels = Annotated[int | None, typer.Option(help="Input channels of --checkpoint.")]
Ternary = Annotated[
    str | None, typer.Option(help="Method, e.g. ttq, or a TernaryConfig as JSON, for *_tern names.")
]


def load(
    model: str,
    checkpoint: Path | None,
    num_classes: int | None,
    in_chans: int | None,
    ternary: str | None,
    *,
    weights: bool,
) -> Any:
    """The model of a command; with `weights`, a plain name means its default pretrained tag."""
    import timm_ternary  # noqa: F401  (registers the models)

    from ..errors.wording import parse_json
    from ..models.names import load_model

    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}
    if checkpoint is not None:
        if not checkpoint.is_file():
            raise ValueError(f"checkpoint {str(checkpoint)!r}: no such file")
        options["checkpoint_path"] = str(checkpoint)
    if ternary is not None:
        options["ternary"] = parse_json("ternary", ternary)
    load_default = weights and checkpoint is None
    return load_model(model, pretrained=True if load_default else None, **options)


def load_ternary(model: str, *rest: Any, weights: bool) -> Any:
    """As `load`, for commands that only a ternary model makes sense to."""
    from ..models.names import base_of, check_name
    from ..nn.convert import config_of

    name = base_of(model)
    # A float name is refused before anything is downloaded.
    if name is not None and not name.endswith("_tern"):
        check_name(name)
    else:
        network = load(model, *rest, weights=weights)
        if config_of(network) is not None:
            return network
    hint = f"type {name}_tern" if name else "train a ternary one from it: timm-ternary train"
    raise ValueError(f"{model!r} is a float model; {hint}")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))
