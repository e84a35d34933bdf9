"""From ModelArguments to a model: its name, its starting weights, and what they were trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import load_model_config_from_hf, parse_model_name, split_model_name_tag
from torch import nn

from ..checkpoint.directory import CONFIG_NAME
from ..checkpoint.weights_file import WEIGHTS_NAME, read_weights
from ..compat.timm import directory_config
from ..errors.hub import HTTPError, explain
from ..errors.wording import flat, unknown
from ..models.names import check_name
from ..models.ternary import SUFFIX
from .arguments.model import ModelArguments

__all__ = ["Start", "build_model", "find_start"]

_SOURCE_KEYS = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict")


@dataclass(frozen=True)
class Start:
    """Where a run starts from.

    Attributes:
        architecture: timm's name, without a tag.
        cfg: timm's pretrained_cfg: of the starting weights, else of the architecture.
        trained: `cfg` describes weights that the run starts from.
    """

    architecture: str
    cfg: Mapping[str, Any]
    trained: bool


def find_start(args: ModelArguments) -> Start:
    """Look up what `args` names, without building it.

    Raises:
        ValueError: No such model, tag, directory or repository; or fields that do not fit it.
    """
    source, name = parse_model_name(args.model)
    if source is None:
        start = _named(args, name)
    else:
        start = _stored(args, source, name)
    if args.ternary is not None and not start.architecture.endswith(SUFFIX):
        raise ValueError(
            f"ternary is set, but {args.model!r} is a float model: "
            f"type model: {start.architecture}{SUFFIX}, or leave ternary out"
        )
    return start


def build_model(
    args: ModelArguments,
    start: Start | None = None,
    *,
    num_classes: int,
    in_chans: int,
    data_cfg: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model to train, on the CPU.

    Args:
        start: From `find_start(args)`, where known already.
        num_classes: Classes of the data.
        in_chans: Channels of the images.
        data_cfg: Entries of pretrained_cfg that the data decide, as `Data.pretrained_cfg` gives
            them; the model carries them, and the saved config.json holds them.

    Raises:
        ValueError: The model or its starting weights cannot be made for these data. One line.
    """
    start = start or find_start(args)
    data_cfg = dict(data_cfg or {})
    kwargs: dict[str, Any] = {**_stored_form(args, start), **_kwargs(args)}
    size = tuple(data_cfg.get("input_size", ()))[1:]
    if start.cfg.get("fixed_input_size") and size and size != tuple(start.cfg["input_size"][1:]):
        kwargs.setdefault("img_size", size)  # e.g. ViT: its position embedding has that size
    if args.ternary is not None:
        kwargs["ternary"] = args.ternary
    if args.checkpoint:
        kwargs |= _checkpoint(args.checkpoint, start, num_classes)
    else:
        kwargs["pretrained"] = start.trained
    try:
        model = timm.create_model(args.model, num_classes=num_classes, in_chans=in_chans, **kwargs)
    except (RuntimeError, TypeError, OSError, HTTPError) as error:  # timm's, for what does not fit
        lines = explain(error) or flat(error)
        raise ValueError(f"cannot build {args.model!r}: {lines[:500]}") from error
    cfg = {k: v for k, v in dict(model.pretrained_cfg).items() if k not in _SOURCE_KEYS}
    if size and size != tuple(start.cfg.get("input_size", ()))[1:]:
        cfg["pool_size"] = None  # it belongs to the other size
    model.pretrained_cfg = model.default_cfg = {**cfg, **data_cfg}
    return model


def _named(args: ModelArguments, name: str) -> Start:
    check_name(name)
    architecture = split_model_name_tag(name)[0]
    found = timm.get_pretrained_cfg(name)
    if args.pretrained and (found is None or not found.has_weights):
        raise ValueError(
            f"no weights are published for {name!r}: leave pretrained out, or give checkpoint: PATH"
        )
    cfg = found.to_dict() if found is not None else {}
    if args.checkpoint and (recorded := _recorded(Path(args.checkpoint))):
        return Start(architecture, cfg | recorded, trained=True)
    return Start(architecture, cfg, trained=bool(args.pretrained))


def _stored(args: ModelArguments, source: str, name: str) -> Start:
    if args.checkpoint:
        raise ValueError(f"model {args.model!r} brings its weights: leave checkpoint out")
    load = directory_config if source == "local-dir" else load_model_config_from_hf
    try:
        cfg, architecture, _ = load(name)
    except (OSError, KeyError, ValueError, HTTPError) as error:
        reason = explain(error) or error
        raise ValueError(f"cannot read model {args.model!r}: {reason}") from error
    if not timm.is_model(architecture):
        raise ValueError(f"{args.model!r}: " + unknown("model", architecture, timm.list_models()))
    return Start(architecture, dict(cfg), trained=args.pretrained is not False)


def _recorded(checkpoint: Path) -> dict[str, Any]:
    """The pretrained_cfg in the config.json beside a checkpoint, if there is one."""
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / CONFIG_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = dict(content.get("pretrained_cfg", {}))
    except (AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a model's configuration: {error}") from error
    names = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")
    return {key: found[key] for key in names if key in found}


def _kwargs(args: ModelArguments) -> Mapping[str, Any]:
    return args.model_kwargs if isinstance(args.model_kwargs, dict) else {}


def _stored_form(args: ModelArguments, start: Start) -> dict[str, Any]:
    """A packed directory is trained in its trainable form."""
    source, _ = parse_model_name(args.model)
    return {"packed": False} if source and start.architecture.endswith(SUFFIX) else {}


def _checkpoint(checkpoint: str, start: Start, num_classes: int) -> dict[str, Any]:
    """Arguments with which timm starts from a weights file, before anything is made ternary.

    Not timm's own checkpoint_path: that loads after construction, when thresholds have been set
    from the random weights.
    """
    path = Path(checkpoint).expanduser()
    path = path / WEIGHTS_NAME if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"checkpoint {checkpoint!r}: no such file; give a .safetensors file, or the "
            f"output_dir of a finished run, which holds {WEIGHTS_NAME}"
        )
    stored = read_weights(path)
    _check_classes(checkpoint, stored.dense, start.cfg, num_classes)
    overlay: dict[str, Any] = {"num_classes": num_classes, "label_offset": 0, "custom_load": False}
    first = stored.dense.get(f"{start.cfg.get('first_conv')}.weight")
    if first is not None and first.ndim == 4:
        overlay["input_size"] = (first.shape[1], *start.cfg["input_size"][1:])
    ternary = stored.config is not None or bool(stored.quantizers)
    if ternary and start.architecture.endswith(SUFFIX) and path.name == WEIGHTS_NAME:
        overlay |= {"source": "local-dir", "file": str(path.parent)}
    else:
        overlay["state_dict"] = stored.dense
    return {"pretrained": True, "pretrained_cfg_overlay": overlay}


def _check_classes(
    checkpoint: str, tensors: Mapping[str, Any], cfg: Mapping[str, Any], num_classes: int
) -> None:
    classifier = cfg.get("classifier")
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    for name in names:
        weight = tensors.get(f"{name}.weight")
        if weight is not None and weight.shape[0] != num_classes:
            raise ValueError(
                f"checkpoint {checkpoint!r} has {weight.shape[0]} classes, but the data have "
                f"{num_classes}: give the data it was trained on, or other weights"
            )
