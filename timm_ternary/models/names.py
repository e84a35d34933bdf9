"""MODEL as users type it: a timm name, ``local-dir:PATH``, ``hf-hub:ID``, or a plain directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.models import load_state_dict, parse_model_name, split_model_name_tag
from torch import nn

from ..checkpoint.config_json import with_channels
from ..checkpoint.directory import check_directory
from ..checkpoint.skeleton import check_room
from ..checkpoint.weights_file import WeightsFile, check_digests, read_file
from ..errors.foreign import foreign
from ..errors.hub import explain
from ..errors.printable import shown
from ..errors.wording import unknown
from ..files import check_regular
from .sources import one_commit

__all__ = ["base_of", "check_name", "load_model"]


def check_name(name: str) -> None:
    """Check a plain timm name, ``architecture`` or ``architecture.tag``.

    Raises:
        ValueError: timm knows no such architecture or tag; names the nearest.
    """
    architecture, tag = split_model_name_tag(name)
    if not timm.is_model(architecture):
        raise ValueError(unknown("model", architecture, timm.list_models()))
    if tag and name not in (known := timm.list_models(f"{architecture}.*", include_tags=True)):
        tags = [split_model_name_tag(n)[1] for n in known]
        raise ValueError(unknown(f"tag of {architecture}", tag, tags))


def base_of(model: str) -> str | None:
    """The architecture that a plain timm name states; None for directories and repositories."""
    if Path(model).is_dir():
        return None
    source, name = parse_model_name(model)
    return split_model_name_tag(name)[0] if source is None else None


def load_model(model: str, *, pretrained: bool | None = None, **kwargs: Any) -> nn.Module:
    """Build or load the model that `model` names, in evaluation mode.

    Args:
        model: A timm name with or without tag, ``local-dir:PATH``, ``hf-hub:ID``, or a directory.
        pretrained: Load weights. Default: yes, but for a name without a tag and for one whose
            `checkpoint_path` is given.
        **kwargs: As ``timm.create_model``.

    Raises:
        ValueError: There is no such model, or its files cannot be read. One line.
    """
    if Path(model).is_dir():
        model = f"local-dir:{model}"
    source, name = parse_model_name(model)
    if source is None:
        check_name(name)
        if pretrained is None:
            pretrained = "." in name and not kwargs.get("checkpoint_path")
    checkpoint = kwargs.pop("checkpoint_path", None)
    with foreign(f"cannot load {shown(model)}", explain=explain):
        if source == "local-dir":
            # Weights that somebody has read, timm does not read again.
            read = pretrained is not False and "pretrained_cfg_overlay" not in kwargs
            unfound = check_directory(Path(name), weights=read)
            if unfound is not None:
                # timm takes tensors where the source of the weights is none of its own.
                tensors = unfound.stored.dense
                overlay = {"source": None, "file": None, "state_dict": tensors}
                kwargs["pretrained_cfg_overlay"] = overlay
        asked = model
        if source == "hf-hub":
            asked = f"{source}:{one_commit(name, kwargs.get('cache_dir'))}"
        file = None if checkpoint is None else _tensor_file(Path(checkpoint))
        loaded = timm.create_model(asked, pretrained=pretrained is not False, **kwargs)
        if file is not None:
            check_room(file, loaded)
        if checkpoint is not None:  # not by create_model: a head of other classes is no use here
            loaded.load_state_dict(load_state_dict(str(checkpoint)))
    if source == "hf-hub":
        loaded.pretrained_cfg["hf_hub_id"] = name  # as it was asked for, not that commit
    if kwargs.get("in_chans"):
        loaded.pretrained_cfg = with_channels(dict(loaded.pretrained_cfg), kwargs["in_chans"])
    return loaded.eval()


def _tensor_file(checkpoint: Path) -> WeightsFile | None:
    """The file, if it is one of safetensors; a packed one is compared with its digests."""
    check_regular(checkpoint)
    if checkpoint.suffix != ".safetensors":
        return None
    file = read_file(checkpoint)
    if file.is_packed:
        check_digests(file)  # timm would not
    return file
