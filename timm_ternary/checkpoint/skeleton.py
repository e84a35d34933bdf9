"""The float model that a config.json describes, without memory: what a weights file must fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import nn

from ..errors.foreign import FileError, foreign
from ..errors.printable import printable
from ..names import base_name
from .config_json import ModelConfig
from .weights_file import WeightsFile

__all__ = ["check_fits", "check_room", "differences", "on_meta", "skeleton", "skeleton_of"]

# Arguments of an entry point that say how the weights are held, not what the float model is.
_FORM = ("ternary", "packed")
# A file may hold a few copies of each weight (admm: three), and a head of other classes.
_COPIES, _HEAD = 16, 1 << 24


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` builds, on the meta device where the model can be there; no random numbers are
    used up."""
    with torch.random.fork_rng([]):
        try:
            with torch.device("meta"):
                return build()
        except (NotImplementedError, RuntimeError):  # it reads values of a tensor as it is built
            return build()


def skeleton(architecture: str, **arguments: Any) -> nn.Module:
    """The float model of timm's `architecture`, ternary or not, on the meta device."""
    name = base_name(architecture)
    return on_meta(lambda: timm.create_model(name, **arguments))


def skeleton_of(config: ModelConfig) -> nn.Module:
    """The float model of a directory, with the classes and channels that config.json states.

    Raises:
        FileError: timm cannot build it. One line that names the file.
    """
    config.check_architecture()
    arguments = {k: v for k, v in config.model_args.items() if k not in _FORM}
    if config.num_classes is not None:
        arguments.setdefault("num_classes", config.num_classes)
    with foreign(f"{config.path}: timm cannot build this model"):
        return skeleton(str(config.architecture), **arguments)


def differences(shapes: Mapping[str, Sequence[int]], model: nn.Module) -> list[str]:
    """In what tensors do not fit `model`: one line a tensor, those of another shape first.

    Args:
        shapes: Of the tensors, by name.
    """
    wanted = {name: tuple(own.shape) for name, own in model.state_dict().items()}
    wrong = [
        f"{name} has the shape {tuple(shapes[name])}, the model needs {own}"
        for name, own in wanted.items()
        if name in shapes and tuple(shapes[name]) != own
    ]
    missing = [f"{name} is missing" for name in wanted if name not in shapes]
    return wrong + missing + [f"{name} is too many" for name in shapes if name not in wanted]


def check_fits(file: WeightsFile, model: nn.Module, where: object) -> None:
    """Refuse a packed file of other tensors than those of `model`, before one is read.

    Args:
        model: The float model that config.json describes; on the meta device.
        where: The directory or repository, for the error.

    Raises:
        FileError: A name or a shape differs. One line with the first of them.
    """
    if found := differences(file.weight_shapes, model):
        lines = printable("; ".join(found[:5]), 400)
        raise FileError(f"{where}: config.json disagrees with the tensors: {lines}")


def check_room(file: WeightsFile, model: nn.Module) -> None:
    """Refuse a file whose tensors are of another size altogether than `model`.

    For files whose names and heads may differ from the model's: timm renames and adapts them.

    Args:
        model: On the meta device.

    Raises:
        FileError: It is far larger, or far smaller; or the metadata of a packed file are damaged.
    """
    shapes = file.weight_shapes if file.is_packed else file.shapes
    held = sum(math.prod(shape) for shape in shapes.values())
    needed = sum(tensor.numel() for tensor in model.state_dict().values())
    if held > _COPIES * needed + _HEAD or needed > _COPIES * held + _HEAD:
        raise FileError(
            f"{file.path}: {held:,} values in its tensors, the model has {needed:,}: these are not "
            "the weights of this model"
        )
