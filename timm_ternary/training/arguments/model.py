"""ModelArguments: which model is trained, and the weights it starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...errors.wording import parse_json

__all__ = ["ModelArguments"]

# Dicts are typed `dict | str | None`, as transformers types its own: its parser then takes a
# JSON string or a plain name from the command line.


@dataclass
class ModelArguments:
    """Which model is trained, and the weights it starts from.

    Raises (on construction):
        ValueError: A value is missing or not allowed.
    """

    model: str = field(
        default="",
        metadata={
            "help": "timm name (resnet20_cifar_tern is ternary, resnet20_cifar is float), "
            "local-dir:PATH or hf-hub:ID."
        },
    )
    pretrained: bool | None = field(
        default=None,
        metadata={
            "help": "Start from the name's published weights. Default: yes for local-dir: and "
            "hf-hub:, no for a plain name."
        },
    )
    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Start from these weights, float or ternary: a .safetensors file, a .pth or "
            ".pth.tar file of timm, a directory that holds model.safetensors (the output_dir of "
            "another run), local-dir:PATH or hf-hub:ID. For other classes than those of the data "
            "the head is new. Also spelled pretrained_path, as in timm's train.py.",
            "aliases": ["--pretrained_path", "--pretrained-path"],
        },
    )
    ternary: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Method name (tga, ttq, twn, ...), or the TernaryConfig as JSON; for models "
            "whose name ends in _tern. Default: TernaryConfig()."
        },
    )
    model_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Passed to timm.create_model, e.g. {"drop_path_rate": 0.1}.'},
    )
    in_chans: int | None = field(
        default=None,
        metadata={"help": "Input channels, 1 (grey) or 3 (RGB). Default: as the images have."},
    )

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is missing: name one, e.g. model: resnet20_cifar_tern")
        self.ternary = parse_json("ternary", self.ternary)
        self.model_kwargs = parse_json("model_kwargs", self.model_kwargs)
        if isinstance(self.model_kwargs, str):
            raise ValueError(
                f'model_kwargs must be a mapping, e.g. {{"drop_path_rate": 0.1}}, '
                f"got {self.model_kwargs!r}"
            )
        if self.in_chans not in (None, 1, 3):
            raise ValueError(f"in_chans must be 1 (grey) or 3 (RGB), got {self.in_chans}")
        if self.checkpoint and self.pretrained:
            raise ValueError("checkpoint and pretrained both name starting weights: give one")
