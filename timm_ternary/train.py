"""Train from a recipe: ``python -m timm_ternary.train RECIPE.yaml [--field value]...``.

``accelerate launch -m timm_ternary.train RECIPE.yaml`` starts the same module in every process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .errors.wording import flat
from .quantizers import import_methods, take_imports
from .training.arguments.help import describe
from .training.arguments.recipe import parse
from .training.outcome import outcome
from .training.run import ARGUMENTS, fit
from .training.silence import silence
from .training.stop import STATUS, Terminated

__all__ = ["main"]

_USAGE = "timm-ternary train RECIPE.yaml [--accelerate FILE] [--import MODULE] [--field value]..."
_TYPE = "timm-ternary train RECIPE.yaml [--field value]..., or timm-ternary train --help"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train as a command line says; a user's mistake ends in one line and exit status 2.

    An interrupt ends in exit status 130, SIGTERM in 143, after a checkpoint of the step; one line
    says how to go on. Checkpoints and an earlier result stay as they are.

    Args:
        argv: The words after the program's name; None: those of this process.

    Returns:
        The metrics of training and evaluation, as in metrics.json.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if "--help" in words or "-h" in words:
        print(describe(_USAGE, *ARGUMENTS))
        return {}
    try:
        if not words:
            raise ValueError(f"no recipe is given; type: {_TYPE}")
        words, modules = take_imports(words)
        import_methods(modules)
        recipe = None if words[0].startswith("--") else words[0]
        return _train(recipe, *parse(words, *ARGUMENTS))
    except (OSError, ValueError) as error:  # OSError: what is read or written is not there
        # An error in a worker of the loader comes with the traceback before it.
        message = str(error).rpartition("\nValueError: ")[2]
        print("error: " + flat(message), file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print("; ".join(["interrupted", *map(str, error.args)]), file=sys.stderr)
        raise SystemExit(130) from error
    except Terminated as stop:
        if stop.line is not None:
            print(stop.line, file=sys.stderr)
        raise SystemExit(STATUS) from stop


def _train(recipe: str | None, model_args: Any, data_args: Any, args: Any) -> dict[str, Any]:
    if args.quiet:
        silence()
    metrics = fit(model_args, data_args, args).metrics
    if args.process_index == 0 and args.quiet:
        accuracy = metrics.get("eval_accuracy")
        found = "" if accuracy is None else f": accuracy {accuracy:.2%}"
        print(f"{args.output_dir}{found}")
    elif args.process_index == 0:
        directory = Path(args.output_dir)
        for line in outcome(directory, dataset=data_args.dataset, recipe=recipe):
            print(line, file=sys.stderr)
    return metrics


if __name__ == "__main__":
    main()
