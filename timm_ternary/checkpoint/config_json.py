"""The file config.json: what timm, transformers and this project say there of a model.

timm reads it on its own where it loads a directory; everybody else reads it here.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..compat.timm import save_config
from ..errors.foreign import FileError, foreign
from ..errors.numbers import is_number, is_whole
from ..errors.printable import shown
from ..files import read_json

__all__ = ["CONFIG_NAME", "ModelConfig", "config_values", "read_config", "with_channels"]

CONFIG_NAME = "config.json"
_SIDE = 1 << 14  # pixels; and channels
_TYPE = "let timm or timm_ternary write it: timm-ternary pack MODEL DIR"
_WORDS = {str: "a text", int: "a whole number", dict: "an object"}
_KINDS: dict[str, type] = {
    "architecture": str,
    "num_classes": int,
    "model_args": dict,
    "pretrained_cfg": dict,
    "quantization_config": dict,
}


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says of a model; what it does not say is None, or empty.

    Attributes:
        path: Of the file, for errors.
        architecture: timm's name, without a tag.
        num_classes: Number of classes.
        label_names: Their names.
        model_args: What timm builds the model with; of a ternary one with ``ternary`` and
            ``packed``.
        pretrained_cfg: timm's: input size, mean, standard deviation, ...
        quantization_config: transformers': as `nn.timm_wrapper.quantization_dict` makes it.
        nulls: Entries of these that the file gives as null, as transformers writes what it does
            not know.
    """

    path: Path
    architecture: str | None = None
    num_classes: int | None = None
    label_names: tuple[str, ...] = ()
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained_cfg: Mapping[str, Any] = field(default_factory=dict)
    quantization_config: Mapping[str, Any] | None = None
    nulls: tuple[str, ...] = ()

    @property
    def input_size(self) -> tuple[int, ...]:
        """Of an image, (channels, height, width); empty where the file does not say it."""
        size = self.pretrained_cfg.get("input_size")
        return tuple(n for n in size if isinstance(n, int)) if isinstance(size, list) else ()

    def check_timm_reads(self) -> None:
        """Refuse what timm, which reads the file on its own, takes for an object and is null.

        Raises:
            FileError: See above.
        """
        for key in ("model_args", "pretrained_cfg"):
            if key in self.nulls:
                raise FileError(
                    f"{self.path}: {key} is null, and timm needs an object there; delete the entry"
                )

    def check_architecture(self, wanted: str | None = None) -> None:
        """Refuse a file that names no architecture.

        Args:
            wanted: The architecture that the weights beside it are of, where they say it.

        Raises:
            ValueError: It names none, or another one.
        """
        if self.architecture is None:
            raise FileError(f"{self.path}: it names no architecture; {_TYPE}")
        if wanted is not None and self.architecture != wanted:
            raise FileError(
                f"{self.path}: the weights are those of {wanted!r}, not of {self.architecture!r}"
            )


def read_config(path: Path) -> ModelConfig:
    """Read a config.json of timm, transformers or this project.

    Args:
        path: Of the file.

    Raises:
        FileError: It cannot be read, is no JSON object, or an entry is of another type. One line
            that names it.
    """
    try:
        values = read_json(path)
    except FileError as error:
        raise FileError(f"{error}; {_TYPE}") from None
    nulls = tuple(key for key in _KINDS if key in values and values[key] is None)
    found = {key: values[key] for key in _KINDS if values.get(key) is not None}
    for key, value in found.items():
        if not isinstance(value, _KINDS[key]) or isinstance(value, bool):
            words, got = _WORDS[_KINDS[key]], type(value).__name__
            raise FileError(f"{path}: {key} must be {words}, got {got}; {_TYPE}")
    _check_images(path, found.get("pretrained_cfg", {}))
    names = values.get("label_names")
    if isinstance(names, list) and not all(isinstance(name, (str, int, float)) for name in names):
        raise FileError(f"{path}: label_names must be a list of texts; {_TYPE}")
    labels = tuple(map(str, names)) if isinstance(names, list) else ()
    return ModelConfig(path, label_names=labels, nulls=nulls, **found)


def _check_images(path: Path, cfg: Mapping[str, Any]) -> None:
    """Refuse a description of the images that no network takes: predictions go by it."""
    size = cfg.get("input_size")
    if size is not None and not (
        isinstance(size, list)
        and len(size) == 3
        and all(is_whole(n, low=1, high=_SIDE) for n in size)
    ):
        raise FileError(
            f"{path}: input_size must be [channels, height, width], each from 1 to {_SIDE}, "
            f"got {shown(size)}; {_TYPE}"
        )
    for key, above in (("mean", -math.inf), ("std", 0.0)):
        numbers = cfg.get(key)
        if numbers is not None and not (
            isinstance(numbers, list)
            and 1 <= len(numbers) <= _SIDE
            and all(is_number(n, above=above) for n in numbers)
        ):
            raise FileError(
                f"{path}: {key} must be a list of numbers, one a channel, got {shown(numbers)}; "
                f"{_TYPE}"
            )


def config_values(
    model: nn.Module, extra: Mapping[str, Any], model_args: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of timm's config.json for `model`, as timm makes it.

    Args:
        model: A timm model.
        extra: More top-level entries; those of ``pretrained_cfg`` go over the model's own.
        model_args: Go over those that timm knows the model to be built with; None: leave out.

    Raises:
        ValueError: The model was built with an argument that is none of JSON's (timm names it).
    """
    pretrained_cfg: Any = model.pretrained_cfg
    extra = dict(extra)
    if pretrained_cfg.get("label_names"):
        extra["label_names"] = pretrained_cfg["label_names"]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / CONFIG_NAME
        with foreign("config.json cannot say what the model is"):
            save_config(model, path, extra=extra, model_args=model_args)
        values = read_json(path)
    # TimmWrapper passes num_classes itself: twice is an error. It stands at the top level too.
    left = {"num_classes", *(key for key, value in model_args.items() if value is None)}
    arguments = {k: v for k, v in values.pop("model_args", {}).items() if k not in left}
    return {**values, "model_args": arguments} if arguments else values


def with_channels(cfg: Mapping[str, Any], in_chans: int) -> dict[str, Any]:
    """timm's pretrained_cfg for images of `in_chans` channels; mean and std become their means."""
    size = cfg.get("input_size")
    if not size or size[0] == in_chans:
        return dict(cfg)
    changed: dict[str, Any] = {"input_size": (in_chans, *size[1:])}
    for key in ("mean", "std"):
        if (values := cfg.get(key)) and len(values) != in_chans:
            changed[key] = (sum(values) / len(values),) * in_chans
    return {**cfg, **changed}
