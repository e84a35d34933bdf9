"""The command line: one function a command. Mistakes end in one line on stderr and status 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sized
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress

from . import tables

__all__ = ["app", "main"]

# Commands import what they need: `timm-ternary --help` answers before torch could load.
app = typer.Typer(
    name="timm-ternary",
    help="Ternary-weight {-1, 0, +1} variants of every timm model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_out, _err = Console(), Console(stderr=True)
# typer has its own copy of click, or click itself, by release: this is UsageError in either.
_UsageError: Any = typer.BadParameter.__bases__[0]

_Model = Annotated[
    str, typer.Argument(help="timm name, local-dir:PATH, hf-hub:ID, or a directory.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
_Checkpoint = Annotated[
    Path | None, typer.Option(help="Load this .safetensors file: float, trained or packed.")
]
_Classes = Annotated[int | None, typer.Option(help="Number of classes of --checkpoint.")]
_Channels = Annotated[int | None, typer.Option(help="Input channels of --checkpoint.")]
_Ternary = Annotated[
    str | None, typer.Option(help="Method, e.g. ttq, or a TernaryConfig as JSON, for *_tern names.")
]


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Directory to write.")] = Path(
        "timm-ternary-quickstart"
    ),
    as_json: _Json = False,
) -> None:
    """Handwritten digits: float training, ternary training, packing, loading back."""
    from .quickstart import quickstart as run

    metrics = asdict(run(output, say=lambda line: _err.print(line, highlight=False)))
    if as_json:
        _print_json(metrics)
        return
    _out.print(tables.quickstart(metrics))
    _out.print(f"{metrics['seconds']:.0f} s; {output / 'ternary'} loads with", highlight=False)
    call = f'timm.create_model("local-dir:{output / "ternary"}", pretrained=True)'
    _out.print(f"  import timm, timm_ternary; {call}", highlight=False, soft_wrap=True)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def train(context: typer.Context) -> None:
    """Train: RECIPE.yaml [--accelerate FILE] [--any_field value]... (--help lists the fields)."""
    words = []
    for word in context.args:  # --accelerate=FILE is two words, as --accelerate FILE is
        name, equals, file = word.partition("=")
        words += [name, file] if equals and name == "--accelerate" else [word]
    if "--accelerate" in words:
        place = words.index("--accelerate")
        if place + 1 == len(words) or not Path(words[place + 1]).is_file():
            got = " ".join(words[place + 1 : place + 2]) or "nothing"
            raise ValueError(
                f"--accelerate needs a file, e.g. recipes/accelerate/multi_gpu.yaml; got {got}"
            )
        from .train import ARGUMENTS
        from .training.recipe import check

        file, rest = words[place + 1], [*words[:place], *words[place + 2 :]]
        check(rest, *ARGUMENTS)  # here, in one line, rather than in every process
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file]
        command += ["-m", "timm_ternary.train", *rest]
        raise typer.Exit(subprocess.run(command, check=False).returncode)
    from .train import main as run

    run(words)


@app.command()
def evaluate(
    model: _Model,
    dataset: Annotated[
        str, typer.Option(help="digits, a directory, a .parquet file or a Hub name.")
    ],
    split: Annotated[str | None, typer.Option(help="Split (default: test or validation).")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    image_column: str | None = None,
    label_column: str | None = None,
    max_samples: Annotated[int | None, typer.Option(min=1)] = None,
    device: Annotated[
        str | None, typer.Option(help="E.g. cuda (default: where there is one).")
    ] = None,
    checkpoint: _Checkpoint = None,
    num_classes: _Classes = None,
    in_chans: _Channels = None,
    ternary: _Ternary = None,
    as_json: _Json = False,
) -> None:
    """Measure the accuracy of a model on a data set."""
    import torch
    from torch.utils.data import DataLoader

    from .inference import accuracy, check_classes
    from .training.arguments import DataArguments
    from .training.data import load_data

    network = _load(model, checkpoint, num_classes, in_chans, ternary, weights=True)
    config: Any = network.pretrained_cfg
    splits: dict[str, Any] = {}
    if split is not None:
        splits = {"train_split": split, "eval_split": split}
    data = load_data(
        DataArguments(
            dataset=dataset,
            image_column=image_column,
            label_column=label_column,
            max_train_samples=1,
            max_eval_samples=max_samples,
            **splits,
        ),
        model_cfg=config,
        trained=True,
        in_chans=config["input_size"][0],
    )
    check_classes(network, data.label_names)
    loader = DataLoader(data.eval, batch_size, collate_fn=data.data_collator)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with Progress(console=_err, transient=True, disable=not _err.is_terminal) as progress:
        total = len(data.eval) if isinstance(data.eval, Sized) else None
        task = progress.add_task("images", total=total)
        result = accuracy(
            network, loader, device=device, progress=lambda n: progress.advance(task, n)
        )
    values = {"model": model, "dataset": dataset, **asdict(result)}
    if as_json:
        _print_json(values)
        return
    _out.print(tables.evaluation(values))


@app.command()
def predict(
    model: _Model,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to show.")] = 5,
    checkpoint: _Checkpoint = None,
    num_classes: _Classes = None,
    in_chans: _Channels = None,
    ternary: _Ternary = None,
    as_json: _Json = False,
) -> None:
    """Classify images. Files that cannot be read are named and skipped."""
    from .inference import predict as run

    network = _load(model, checkpoint, num_classes, in_chans, ternary, weights=True)

    def skipped(path: str, reason: str) -> None:
        print(f"skipped {path}: {reason}", file=sys.stderr)

    results = [asdict(found) for found in run(network, images, top=top, skipped=skipped)]
    if as_json:
        _print_json(results)
    else:
        for result in results:
            _out.print(tables.prediction(result))
    if not results:
        raise ValueError("no image could be read")


@app.command()
def inspect(
    model: _Model,
    checkpoint: _Checkpoint = None,
    num_classes: _Classes = None,
    in_chans: _Channels = None,
    ternary: _Ternary = None,
    as_json: _Json = False,
) -> None:
    """Show the ternary layers: codes, zeros, scales and bytes."""
    from .summary import summarize

    network = _load_ternary(model, checkpoint, num_classes, in_chans, ternary, weights=False)
    summary = summarize(network)
    if as_json:
        _print_json(summary.to_dict())
        return
    _out.print(tables.layers(summary.to_dict()))
    form = "packed" if summary.packed else "trainable"
    _out.print(
        f"{summary.method}, {form}: {len(summary.layers)} ternary layers, "
        f"{summary.ternary_weights:,} weights, {summary.zeros:.1%} zeros; "
        f"{summary.packed_bytes:,} bytes packed, {summary.float_bytes:,} in float "
        f"({summary.float_bytes / summary.packed_bytes:.1f}x)",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def pack(
    model: _Model,
    output: Annotated[Path, typer.Argument(help="Directory to write.")],
    encoding: Annotated[str, typer.Option(help="2bit, base3 or zstd.")] = "2bit",
    checkpoint: _Checkpoint = None,
    num_classes: _Classes = None,
    in_chans: _Channels = None,
    ternary: _Ternary = None,
    as_json: _Json = False,
) -> None:
    """Write a model as a packed directory, which timm loads; or change the encoding of one."""
    from .checkpoint import save_packed
    from .packing import check_encoding
    from .weights_file import WEIGHTS_NAME

    check_encoding(encoding)  # before minutes of loading
    network = _load_ternary(model, checkpoint, num_classes, in_chans, ternary, weights=True)
    save_packed(network, output, encoding)
    size = (output / WEIGHTS_NAME).stat().st_size
    if as_json:
        _print_json({"directory": str(output), "encoding": encoding, "bytes": size})
    else:
        _out.print(f"{output / WEIGHTS_NAME}: {size:,} bytes, {encoding}", highlight=False)


@app.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(help="Glob on names.")] = "*",
    tags: Annotated[bool, typer.Option("--tags", help="Names with pretrained tags.")] = False,
    methods: Annotated[bool, typer.Option("--methods", help="Methods instead of models.")] = False,
    as_json: _Json = False,
) -> None:
    """List the ternary models, or the methods with their options."""
    import timm

    from . import quantizers
    from .quantizers.base import option_defaults

    if methods:
        found = {name: option_defaults(quantizers.get(name)) for name in quantizers.names()}
        if as_json:
            _print_json(found)
            return
        lines = {name: (quantizers.get(name).__doc__ or "").splitlines()[0] for name in found}
        _out.print(tables.methods({name: (found[name], lines[name]) for name in found}))
        return
    pattern = pattern if "_tern" in pattern else f"{pattern}_tern"
    names = timm.list_models(pattern, module="ternary", include_tags=tags)
    if not names:
        raise ValueError(f"no ternary model matches {pattern!r}; type: timm-ternary list 'resnet*'")
    if as_json:
        _print_json(names)
    else:
        sys.stdout.writelines(f"{name}\n" for name in names)


def main() -> None:
    """Run the command line; mistakes of the user end in one line and exit status 2."""
    try:
        status = app(standalone_mode=False)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has seen enough; nothing is left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except _UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "timm-ternary"
        _fail(f"{error.format_message()} Type: {path} --help")
    except (ValueError, OSError) as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _load(
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

    from .errors import parse_json
    from .models.load import load_model

    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}
    if checkpoint is not None:
        if not checkpoint.is_file():
            raise ValueError(f"checkpoint {str(checkpoint)!r}: no such file")
        options["checkpoint_path"] = str(checkpoint)
    if ternary is not None:
        options["ternary"] = parse_json("ternary", ternary)
    load_default = weights and checkpoint is None
    return load_model(model, pretrained=True if load_default else None, **options)


def _load_ternary(model: str, *rest: Any, weights: bool) -> Any:
    """As `_load`, for commands that only a ternary model makes sense to."""
    from .convert import config_of
    from .models.load import base_of, check_name

    name = base_of(model)
    # A float name is refused before anything is downloaded.
    if name is not None and not name.endswith("_tern"):
        check_name(name)
    else:
        network = _load(model, *rest, weights=weights)
        if config_of(network) is not None:
            return network
    hint = f"type {name}_tern" if name else "train a ternary one from it: timm-ternary train"
    raise ValueError(f"{model!r} is a float model; {hint}")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


if __name__ == "__main__":
    main()
