"""quickstart and train."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import tables
from .common import Json, app, err, out, print_json

__all__ = ["launch", "quickstart", "train"]


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Directory to write.")] = Path(
        "timm-ternary-quickstart"
    ),
    as_json: Json = False,
) -> None:
    """Try it all on handwritten digits. Float and ternary training, packing, loading."""
    from .quickstart import quickstart as run

    metrics = asdict(run(output, say=lambda line: err.print(line, highlight=False)))
    if as_json:
        print_json(metrics)
        return
    if out.brief:
        out.print(f"{output / 'ternary'}: accuracy {metrics['reloaded_accuracy']:.2%}")
        return
    out.print(tables.quickstart(metrics))
    out.print(f"{metrics['seconds']:.0f} s; {output / 'ternary'} loads with", highlight=False)
    call = f'timm.create_model("local-dir:{output / "ternary"}", pretrained=True)'
    out.print(f"  import timm, timm_ternary; {call}", highlight=False, soft_wrap=True)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
        "token_normalize_func": None,
    }
)
def train(context: typer.Context) -> None:
    """Train from RECIPE.yaml [--field value]... (--help lists all)."""
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
        from ..quantizers import import_methods, take_imports
        from ..training.arguments.recipe import check
        from ..training.run import ARGUMENTS

        file, rest = words[place + 1], [*words[:place], *words[place + 2 :]]
        own, modules = take_imports(rest)
        import_methods(modules)
        check(own, *ARGUMENTS)  # here, in one line, rather than in every process
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file]
        command += ["-m", "timm_ternary.train", *rest]
        raise typer.Exit(launch(command))
    from ..train import main as run

    run(words)


def launch(command: list[str]) -> int:
    """Run a command that starts processes of its own; SIGTERM is passed on, not left to orphan it.

    Returns:
        Its exit status, 128 and the signal's number where one ended it.
    """
    with subprocess.Popen(command) as child:
        before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            status = child.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    return status if status >= 0 else 128 - status
