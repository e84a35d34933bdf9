"""The latent weights of a packed model, in a checkpoint of the training that made it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..checkpoint.run_files import STATE_NAME, newest_checkpoint
from ..checkpoint.weights_file import WEIGHTS_NAME, read_file
from ..files import LOG_BYTES, read_json
from ..nn.convert import ternary_layers, unpack_
from ..nn.forms import layer_code
from ..nn.state_dict import latent_layer
from ..nn.timm_wrapper import timm_names

__all__ = ["LEAST_AGREEMENT", "Latent", "find_latent"]

LEAST_AGREEMENT = 0.75
"""Of the codes. Unrelated ternary networks agree in a third of them, binary ones in half; a late
checkpoint of the same training in more than nine tenths."""

# Beside the weights: what was evaluated and packed where training kept a moving average.
_NAMES = ("ema.safetensors", WEIGHTS_NAME)


@dataclass(frozen=True)
class Latent:
    """A trainable twin of a packed model.

    Attributes:
        model: With the latent weights and thresholds of the training.
        source: Where they come from, e.g. ``checkpoint-92 of tga``.
        agreement: Fraction of its codes that are those of the packed model.
    """

    model: nn.Module
    source: str
    agreement: float


def find_latent(model: nn.Module, runs: Sequence[Path]) -> Latent | str:
    """The trainable twin of `model` from the last (or the best) checkpoint of a run.

    Args:
        model: Packed; it is not changed.
        runs: Output directories; the one whose codes are most like the model's is taken.

    Returns:
        It; or why there is none and what to type, in one short line.
    """
    if not runs:
        return "type timm-ternary report MODEL OUTDIR --run DIR, the output_dir of its training"
    files = list(dict.fromkeys(path for run in runs for path in _files(run)))
    if not files:
        return "the run kept no checkpoint; type timm-ternary train with --save_strategy epoch"
    try:
        twin = unpack_(deepcopy(model))
    except ValueError as error:  # the method is not installed here
        return str(error)
    best: Latent | None = None
    reason = ""
    for path in files:
        source = f"{path.parent.name} of {path.parent.parent.resolve().name}"
        try:
            _load(twin, path)
        except (ValueError, RuntimeError) as error:
            reason = f"{source}: {str(error).splitlines()[0]}"
            continue
        agreement = _agreement(twin, model)
        if best is None or agreement > best.agreement:
            best = Latent(deepcopy(twin), source, agreement)
        if agreement == 1:
            break
    if best is None:
        return f"no checkpoint could be read ({reason})"
    if best.agreement < LEAST_AGREEMENT:
        return (
            f"only {best.agreement:.0%} of the codes of {best.source} are this model's; "
            "type --run with the output_dir of its own training"
        )
    return best


def _files(run: Path) -> Iterator[Path]:
    """Weights of the last checkpoint and of the best one."""
    last = run if (run / STATE_NAME).is_file() else newest_checkpoint(run)
    if last is None:
        return
    found = [last]
    try:
        best = read_json(last / STATE_NAME, LOG_BYTES).get("best_model_checkpoint")
    except (OSError, ValueError):
        best = None
    if isinstance(best, str):
        found.append(last.parent / Path(best).name)  # the run may lie elsewhere today
    for directory in found:
        yield from (path for name in _NAMES if (path := directory / name).is_file())


def _load(twin: nn.Module, path: Path) -> None:
    tensors = timm_names(dict(read_file(path).tensors))
    if not any(latent_layer(name) for name in tensors):
        raise ValueError("no latent weights in it")
    twin.load_state_dict(tensors)


@torch.no_grad()
def _agreement(twin: nn.Module, model: nn.Module) -> float:
    layers, same, count = ternary_layers(model), 0, 0
    for name, layer in ternary_layers(twin).items():
        codes, own = layer_code(layer).codes, layer_code(layers[name]).codes
        if codes.shape == own.shape:
            same += int((codes.cpu() == own.cpu()).sum())
        count += own.numel()
    return same / max(count, 1)
