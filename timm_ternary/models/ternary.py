"""Every ``<name>_tern``: timm's own entry point, then made ternary."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import (
    DefaultCfg,
    get_arch_pretrained_cfgs,
    register_model,
    resolve_pretrained_cfg,
    split_model_name_tag,
)
from torch import Tensor, nn

from .. import packing
from ..checkpoint.config_json import with_channels
from ..checkpoint.skeleton import differences
from ..checkpoint.weights_file import StoredWeights, WeightsFile
from ..config import TernaryConfig
from ..errors.foreign import FileError
from ..errors.printable import printable
from ..errors.wording import unknown
from ..names import is_ternary_name, ternary_name, ternary_pattern
from ..nn.convert import install_, pack_, quantizers_of
from ..nn.state_dict import weight_key
from ..quantizers import check, resolve
from .sources import SOURCE_KEYS, read_stored, weights_path
from .starting_weights import adapt_head

__all__ = ["SKELETON_ENCODINGS", "register_all", "register_ternary"]

SKELETON_ENCODINGS = {"2bit"}
"""Encodings that transformers loads from files; timm_ternary.hf adds those that it decodes."""

_logger = logging.getLogger(__name__)
# timm files the names under the last part of this module's name, and users list them by it
# (timm.list_models(module="ternary")); its register_model looks here for their pretrained_cfgs.
default_cfgs: dict[str, DefaultCfg] = {}
# Those of features_only: it renames what its model holds.
_FEATURE_KEYS = ("features_only", "feature_cls", "out_indices")


def register_all() -> None:
    """Register ``<name>_tern`` for every name that timm lists and that has none yet."""
    for base in timm.list_models(exclude_filters=ternary_pattern("*")):
        if not timm.is_model(ternary_name(base)):
            register_ternary(base)


def register_ternary(base: str) -> str:
    """Register ``<base>_tern``, with all pretrained tags of `base`; for models of your own.

    Args:
        base: Name of a float model that is registered with timm.

    Returns:
        The new name.

    Raises:
        ValueError: timm knows no model `base` (names the nearest), `base` is ternary itself, or the
            new name is taken.
    """
    if is_ternary_name(base):
        raise ValueError(f"{base!r} names a ternary model; give the float model's name")
    if not timm.is_model(base):
        raise ValueError(unknown("model", base, timm.list_models()))
    name = ternary_name(base)
    if timm.is_model(name):
        raise ValueError(f"model {name!r} is registered already")
    # Not the raw default_cfgs of the base's module: their hf_hub_id 'timm/' would be completed
    # with the new name, and no such repository exists.
    configs = get_arch_pretrained_cfgs(base)
    if configs:
        by_tag = {split_model_name_tag(key)[1]: config for key, config in configs.items()}
        has_weights = any(config.has_weights for config in by_tag.values())
        default_cfgs[name] = DefaultCfg(deque(by_tag), by_tag, is_pretrained=bool(has_weights))
    register_model(_entry_point(base, name))
    return name


def _entry_point(base: str, name: str) -> Callable[..., nn.Module]:
    create_base = timm.model_entrypoint(base)

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(create_base, base, name, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = (
        f"Ternary {base}: `ternary` names the method, `packed` asks for packed weights."
    )
    # register_model files the name under this module and looks for default_cfgs in it.
    create.__module__ = __name__
    return create


def _create(
    create_base: Callable[..., nn.Module],
    base: str,
    name: str,
    pretrained: bool,
    *,
    ternary: TernaryConfig | Mapping[str, Any] | str | None = None,
    packed: bool | str = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    if isinstance(packed, str):
        packing.check_encoding(packed)
    overlay, file = _split_overlay(pretrained_cfg_overlay)
    cfg = resolve_pretrained_cfg(name, pretrained_cfg, overlay).to_dict()
    where = str(file.path.parent) if file else cfg.get("file") or cfg.get("hf_hub_id")
    stored = None
    if not pretrained:
        _check_skeleton(packed)
    elif found := file or weights_path(cfg, cache_dir):
        skeleton = partial(create_base, pretrained_cfg=dict(cfg, architecture=base))
        stored = read_stored(found, cfg, kwargs.get("pretrained_model_args", {}), skeleton, where)
    if stored is not None and stored.config is not None:
        ternary = stored.config if ternary is None else ternary
    config = TernaryConfig.of(ternary)
    # Before minutes of download and construction. For the packed form, codes and scales suffice.
    coded = stored is not None and bool(stored.codes) and stored.config == config
    check(config, coded=bool(packed) and coded)

    base_cfg = dict(cfg, architecture=base)
    if stored is not None:
        base_cfg = {k: v for k, v in base_cfg.items() if k not in SOURCE_KEYS}
        base_cfg.update(state_dict=stored.dense, custom_load=False)
    elif pretrained:
        _logger.info("%s starts from the float checkpoint of %s", name, base)
    model: Any = _call_base(create_base, pretrained, base_cfg, cache_dir, kwargs, where)
    source = {key: cfg[key] for key in SOURCE_KEYS if key in cfg and key != "state_dict"}
    own = {k: v for k, v in model.pretrained_cfg.items() if k != "state_dict"}
    own = {**own, **source, "architecture": name}
    # timm leaves it at three channels; files, exports and predictions are made by it.
    if kwargs.get("in_chans"):
        own = with_channels(own, kwargs["in_chans"])
    model.pretrained_cfg = model.default_cfg = own
    model.register_load_state_dict_pre_hook(adapt_head)
    return _make_ternary(model, config, bool(packed), stored)


def _split_overlay(
    overlay: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], WeightsFile | None]:
    """timm's overlay, and the weights file that somebody has read and put where tensors go."""
    overlay = dict(overlay or {})
    if isinstance(overlay.get("state_dict"), WeightsFile):
        return overlay, overlay.pop("state_dict")
    return overlay, None


def _call_base(
    create_base: Callable[..., nn.Module],
    pretrained: bool,
    base_cfg: dict[str, Any],
    cache_dir: str | Path | None,
    kwargs: dict[str, Any],
    where: str | None,
) -> nn.Module:
    """The float model; a stored file that does not fit it is the user's error, not a crash."""
    try:
        return create_base(
            pretrained=pretrained, pretrained_cfg=base_cfg, cache_dir=cache_dir, **kwargs
        )
    except RuntimeError as error:
        tensors = base_cfg.get("state_dict")
        if tensors is None:
            raise
        # Built once more, without them: what cannot even be built raises the same error again.
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        found = differences(shapes, _as_stored(create_base, base_cfg, kwargs))
        if not found:
            raise
        lines = printable("; ".join(found[:5]), 400)
        raise FileError(f"{where}: config.json disagrees with the tensors: {lines}") from error


def _as_stored(
    create_base: Callable[..., nn.Module], base_cfg: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> nn.Module:
    """The float model with the classes and channels that config.json states, and no other."""
    cfg = {key: value for key, value in base_cfg.items() if key != "state_dict"}
    stated = {"num_classes": cfg["num_classes"], "in_chans": cfg["input_size"][0]}
    own = {k: stated.get(k, v) for k, v in kwargs.items() if k not in _FEATURE_KEYS}
    return create_base(pretrained_cfg=cfg, **own)


def _check_skeleton(packed: bool | str) -> None:
    """Refuse to build what no file will fit, as transformers builds models: before it reads files.

    It then assigns tensors of the very sizes that the layers have, those of 2bit.
    """
    if (
        isinstance(packed, str)
        and packed not in SKELETON_ENCODINGS
        and torch.get_default_device().type == "meta"
    ):
        raise ValueError(
            f"codes in {packed} load through transformers after `import timm_ternary.hf`: type "
            "that first, or write a directory that loads without it: timm-ternary pack DIR OUT "
            "--encoding 2bit"
        )


def _make_ternary(
    model: nn.Module, config: TernaryConfig, packed: bool, stored: StoredWeights | None
) -> nn.Module:
    if stored is None:
        return install_(model, config, packed=packed)
    origins = {_spell(name): name for name in stored.codes.keys() | stored.quantizers.keys()}
    kept: dict[str, str] = {}  # names of layers that hold what is stored, and their names there
    for name, module in model.named_modules():
        origin = name if name in stored.codes else origins.get(_spell(name))
        if origin is None or not isinstance(weight := getattr(module, "weight", None), Tensor):
            continue  # also an nn.Identity in the place of the classifier
        # Layers that timm adapted to other channels or classes no longer hold the stored weight.
        if _same(weight, stored.dense[weight_key(origin)]):
            kept[name] = origin
        else:
            _logger.warning("%s was adapted on loading, and is encoded anew", name)
    if not stored.quantizers:
        # Another method makes its own codes, from the decoded weights.
        same = stored.config is not None and resolve(stored.config) == resolve(config)
        codes = {name: stored.codes[origin] for name, origin in kept.items() if same}
        return install_(model, config, packed=packed, codes=codes)
    install_(model, config, packed=False)
    for name, quantizer in quantizers_of(model).items():
        state = stored.quantizers.get(kept.get(name, ""), {})
        if _shapes(state) == _shapes(quantizer.state_dict()):  # else `ternary` asks for another
            quantizer.load_state_dict(state)
    return pack_(model) if packed else model


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _same(weight: Tensor, stored: Tensor) -> bool:
    return weight.shape == stored.shape and torch.equal(
        weight.detach().cpu(), stored.to(weight.dtype)
    )


def _spell(name: str) -> str:
    """A spelling that a features_only wrapper shares: it renames ``a.b`` to ``a_b``."""
    return name.removeprefix("model.").replace(".", "_")
