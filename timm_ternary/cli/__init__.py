"""The command line: one function a command. Mistakes end in one line on stderr and status 2."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any, NoReturn

import typer

from ..errors.wording import flat
from . import (  # noqa: F401  (they add commands)
    card,
    completion,
    evaluate,
    export,
    models,
    report,
    sharing,
    training,
    version,
)
from .common import app, err, out

__all__ = ["app", "main"]

# typer has its own copy of click, or click itself, by release: this is UsageError in either.
_UsageError: Any = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command line; mistakes of the user end in one line and exit status 2."""
    try:
        status = app(_words(_loud(sys.argv[1:])) or ["--help"], standalone_mode=False)
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


def _loud(words: list[str]) -> list[str]:
    """The words without ``--quiet``, which holds for every command; `train` has a field for it."""
    rest = [word for word in words if word not in ("-q", "--quiet")]
    out.brief = err.quiet = len(rest) < len(words)
    if not out.brief:
        return words
    if rest[:1] == ["train"]:
        return [*rest, "--quiet"]
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    return rest


def _words(words: list[str]) -> list[str]:
    """The words that are left for the commands; modules that ``--import`` names are imported.

    Not those of `train`, whose processes each import them.
    """
    if words[:1] == ["train"] or not any(word.startswith("--import") for word in words):
        return words
    from ..quantizers import import_methods, take_imports

    words, modules = take_imports(words)
    import_methods(modules)
    return words


def _fail(message: str) -> NoReturn:
    print("error: " + flat(message), file=sys.stderr)
    sys.exit(2)
