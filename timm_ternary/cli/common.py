"""What the commands share: the app, the words for a model, and how it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleDimensions

__all__ = [
    "Channels",
    "Checkpoint",
    "Classes",
    "Json",
    "Model",
    "Output",
    "Ternary",
    "app",
    "err",
    "load",
    "load_ternary",
    "out",
    "print_json",
]

# Columns of an output that nobody's window cuts.
_WIDE = 100_000


class Output(Console):
    """What a command prints: tables and lines. No line is cut or wrapped where no terminal is.

    Attributes:
        brief: Print lines and no tables: what `timm-ternary --quiet` leaves.
    """

    brief = False

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines of the terminal; without one, as many columns as are needed."""
        found = super().size
        # Not is_terminal: FORCE_COLOR takes a pipe for one.
        return found if self.file.isatty() else ConsoleDimensions(_WIDE, found.height)

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        self._width, self._height = size

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, but for tables where `brief`."""
        if not self.brief or all(isinstance(entry, str) for entry in objects):
            super().print(*objects, **options)

    def instead(self, line: str) -> None:
        """Print `line` where `brief` leaves a table out."""
        if self.brief:
            super().print(line, highlight=False, soft_wrap=True)


# Commands import what they need: `timm-ternary --help` answers before torch could load.
app = typer.Typer(
    name="timm-ternary",
    help="Ternary-weight {-1, 0, +1} variants of every timm model. Every command takes --import "
    "MODULE, which registers methods of your own, and --quiet, which leaves errors and the result.",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: word.replace("_", "-"),  # --batch_size, as in recipes
    },
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# What is printed holds names of files and classes: no markup.
out = Output(markup=False, emoji=False)
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
    from ..names import is_ternary_name, ternary_name
    from ..nn.convert import config_of

    name = base_of(model)
    # A float name is refused before anything is downloaded.
    if name is not None and not is_ternary_name(name):
        check_name(name)
    else:
        network = load(model, *rest, weights=weights)
        if config_of(network) is not None:
            return network
    hint = (
        f"type {ternary_name(name)}" if name else "train a ternary one from it: timm-ternary train"
    )
    raise ValueError(f"{model!r} is a float model; {hint}")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))
