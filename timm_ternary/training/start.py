"""From ModelArguments to a model: its name, its starting weights, and what they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import load_model_config_from_hf, parse_model_name, split_model_name_tag
from torch import nn

from ..checkpoint.directory import check_directory
from ..compat.timm import directory_config
from ..errors.foreign import foreign
from ..errors.hub import explain
from ..errors.printable import shown
from ..errors.wording import unknown
from ..models.names import check_name
from ..models.sources import SOURCE_KEYS, one_commit
from ..models.starting_weights import StartingWeights, find_weights, start_head
from ..names import is_ternary_name, ternary_name
from .arguments.model import ModelArguments

__all__ = ["Start", "build_model", "find_start"]


@dataclass(frozen=True)
class Start:
    """Where a run starts from.

    Attributes:
        architecture: timm's name, without a tag.
        cfg: timm's pretrained_cfg: of the starting weights, else of the architecture.
        trained: `cfg` describes weights that the run starts from.
        weights: The checkpoint that was asked for, if one was.
    """

    architecture: str
    cfg: Mapping[str, Any]
    trained: bool
    weights: StartingWeights | None = None


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
    if args.ternary is not None and not is_ternary_name(start.architecture):
        raise ValueError(
            f"ternary is set, but {args.model!r} is a float model: "
            f"type model: {ternary_name(start.architecture)}, or leave ternary out"
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
    if start.weights is not None:
        kwargs |= start.weights.arguments(start.architecture, start.cfg, num_classes, **kwargs)
    else:
        kwargs["pretrained"] = start.trained
    # What timm raises for what does not fit.
    with foreign(f"cannot build {shown(args.model)}", explain=explain):
        model = timm.create_model(args.model, num_classes=num_classes, in_chans=in_chans, **kwargs)
    of_weights = kwargs.get("pretrained_cfg_overlay", start.cfg).get("num_classes", num_classes)
    if kwargs["pretrained"] and of_weights != num_classes:
        start_head(model)
    cfg = {k: v for k, v in dict(model.pretrained_cfg).items() if k not in SOURCE_KEYS}
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
    if not args.checkpoint:
        return Start(architecture, cfg, trained=bool(args.pretrained))
    weights = find_weights(args.checkpoint)
    # Without a config.json beside it, a file of a name that has published weights is taken for
    # one of these: its images are normalized as theirs.
    published = found is not None and found.has_weights
    return Start(
        architecture, cfg | dict(weights.images), bool(weights.images) or published, weights
    )


def _stored(args: ModelArguments, source: str, name: str) -> Start:
    if args.checkpoint:
        raise ValueError(f"model {args.model!r} brings its weights: leave checkpoint out")
    load = directory_config if source == "local-dir" else load_model_config_from_hf
    with foreign(f"cannot read model {shown(args.model)}", explain=explain):
        if source == "local-dir":
            check_directory(Path(name))
        else:
            one_commit(name)  # its config.json, looked at before timm reads it
        cfg, architecture, _ = load(name)
    if not timm.is_model(architecture):
        raise ValueError(f"{args.model!r}: " + unknown("model", architecture, timm.list_models()))
    return Start(architecture, dict(cfg), trained=args.pretrained is not False)


def _kwargs(args: ModelArguments) -> Mapping[str, Any]:
    return args.model_kwargs if isinstance(args.model_kwargs, dict) else {}


def _stored_form(args: ModelArguments, start: Start) -> dict[str, Any]:
    """A packed directory is trained in its trainable form."""
    source, _ = parse_model_name(args.model)
    return {"packed": False} if source and is_ternary_name(start.architecture) else {}
