"""What timm would build from a config.json, compared with the model that it is written for.

Before a byte is written: names and shapes (on the meta device, where nothing is computed), values
as timm loads them, and the outputs for one image. The model itself is not touched: a copy on the
CPU in float32 is run, and random numbers are drawn by nobody's generator. Nor do processes speak to
each other: the one that writes may compare alone (of FSDP, what it has put together to be written).
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..compat.accelerate import own_forward
from ..compat.timm import built_with, first_convolutions
from ..config import TernaryConfig
from ..errors.foreign import FileError, foreign
from ..errors.wording import flat
from ..names import base_name
from ..nn.convert import ternary_layers
from ..nn.forms import make_plain
from ..nn.select import select_layers
from ..nn.state_dict import weight_key
from ..quantizers import resolve
from .config_json import CONFIG_NAME, with_channels
from .skeleton import differences, on_meta

__all__ = ["adapt", "check_names", "check_rebuilds", "images_of"]

TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest, where all modules are the same: kernels
may choose by the alignment of memory. Where modules differ, every bit counts."""


def adapt(values: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """timm's config.json of `model`, with the classes and channels that its layers have now.

    A head or a stem that was replaced by hand leaves ``model.num_classes`` and ``in_chans`` as they
    were, by which timm writes the file.

    Args:
        values: As timm makes it.

    Returns:
        A changed copy.
    """
    values = copy.deepcopy(values)
    cfg = values["pretrained_cfg"]
    if (classes := _classes(model)) is not None and classes != values["num_classes"]:
        values["num_classes"] = cfg["num_classes"] = classes
    for place in (values, cfg):
        names = place.get("label_names")
        if names and len(names) != values["num_classes"]:
            del place["label_names"]  # of another head
            place.pop("label_descriptions", None)
    channels = _channels(model, values)
    if channels is not None and channels != cfg["input_size"][0]:
        values["pretrained_cfg"] = with_channels(cfg, channels)
        values.setdefault("model_args", {})["in_chans"] = channels
    return values


def images_of(model: nn.Module) -> dict[str, Any]:
    """timm's pretrained_cfg of `model`, for images of the channels that its layers take now.

    Args:
        model: Any; one that is none of timm's, or whose channels cannot be told, keeps its own.
    """
    cfg = dict(getattr(model, "pretrained_cfg", None) or {})
    if not cfg.get("input_size"):
        return cfg
    own = {k: v for k, v in cfg.items() if k != "state_dict"}
    values = {
        "architecture": str(cfg.get("architecture")),
        "pretrained_cfg": own,
        "model_args": built_with(model),
    }
    with suppress(FileError):
        if channels := _channels(model, values):
            return with_channels(cfg, channels)
    return cfg


def check_names(
    values: dict[str, Any], model: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], nn.Module]:
    """Compare names and shapes with what timm would build.

    Args:
        values: Content of config.json.
        model: For what to type.
        tensors: By timm's names, ternary weights under those of the float ones.

    Returns:
        `values`, with the argument by which timm builds a fused network where it has one (LCNetV2);
        and what timm builds, on the meta device.

    Raises:
        ValueError: They differ. One line: where, and what to type.
    """
    name = values["architecture"]
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    with foreign(f"timm cannot build {name!r} again", hint=_TYPE):
        skeleton = _skeleton(values)
    found = differences(shapes, skeleton)
    if not found:
        return values, skeleton
    arguments = {**(values.get("model_args") or {}), "inference_mode": True}
    fused = {**values, "model_args": arguments}
    with suppress(FileError), foreign("no such argument"):
        skeleton = _skeleton(fused)
        if not differences(shapes, skeleton):
            return fused, skeleton
    more = f" (and {len(found) - 2} more)" if len(found) > 2 else ""
    raise ValueError(
        f"timm would build another {name!r} than this model: {'; '.join(found[:2])}{more}; "
        f"{_what_to_type(model, found)}"
    )


def check_rebuilds(
    values: dict[str, Any],
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    config: TernaryConfig | None = None,
) -> dict[str, Any]:
    """Refuse a config.json from which timm would build another model than `model`.

    Args:
        values: The file's content.
        model: A timm model, float or ternary in either form, on any device; it is not changed.
        tensors: What is saved of it by timm's names, on the CPU; ternary weights decoded.
        config: How it is ternary.

    Returns:
        `values`, as `check_names` completes them.

    Raises:
        ValueError: Names, shapes, values or outputs differ. One line: where, and what to type.
    """
    name = values["architecture"]
    values, skeleton = check_names(values, model, tensors)
    if config is not None:
        _check_selected(model, skeleton, config)
    with foreign(f"timm could not load {name!r} again", hint=_what_to_type(model, [])):
        with torch.random.fork_rng([]), torch.device("cpu"):
            loaded = _build(values, tensors)
    for key, value in loaded.state_dict().items():
        if not torch.equal(value, tensors[key].to(value.dtype)):
            raise ValueError(f"timm would load other values of {key} for {name!r}; {_TYPE}")
    with torch.device("cpu"), torch.autocast("cpu", enabled=False):
        _check_outputs(name, _twin(model, tensors), loaded, model, tensors, _image(values))
    return values


_TYPE = (
    "if it was built or changed by arguments of timm.create_model, say them: model_args={...}; "
    "else register it under a name of its own: timm.models.register_model, "
    "timm_ternary.register_ternary"
)


def _what_to_type(model: nn.Module, found: list[str]) -> str:
    """The way out of what people do most: fuse a network, or give it a head of their own."""
    names = [line.split(" ", 1)[0] for line in found]
    parts = [*names, *(name for name, _ in model.named_modules())]
    if any(n.endswith(("reparam_conv", "reparam_conv.weight", "running_mean")) for n in parts):
        return f"if it is fused (reparameterized), save it before, and fuse what is loaded; {_TYPE}"
    cfg: Any = model.pretrained_cfg
    stated = cfg.get("classifier") or ()
    heads = [name.partition(".")[0] for name in ((stated,) if isinstance(stated, str) else stated)]
    if names and heads and all(name.partition(".")[0] in heads for name in names):
        return (
            "its head is none of timm's: type model.reset_classifier(NUM_CLASSES), or put one "
            f"Linear in its place; {_TYPE}"
        )
    return _TYPE


def _classes(model: Any) -> int | None:
    """The outputs of the classifier; None where it does not say."""
    try:
        head = model.get_classifier()
    except AttributeError:  # no such method, or another module in the place of timm's head
        return None
    if isinstance(head, nn.Identity):
        return 0
    heads = head if isinstance(head, (tuple, list, nn.ModuleList)) else [head]
    found = {getattr(h, "out_features", getattr(h, "out_channels", None)) for h in heads}
    count = found.pop() if len(found) == 1 else None
    return count if isinstance(count, int) else None


def _channels(model: nn.Module, values: Mapping[str, Any]) -> int | None:
    """The channels of the images that the first convolution takes; None where it does not say.

    Its own number may be a multiple of theirs, where a stem moves pixels to channels.
    """
    stated = values["pretrained_cfg"]["input_size"][0]
    for name in first_convolutions(model):
        try:
            now = model.get_submodule(name)
        except AttributeError:
            continue
        if not isinstance(now, nn.Conv2d) or now.in_channels == stated:
            continue
        with foreign(f"timm cannot build {values['architecture']!r} again", hint=_TYPE):
            then = _skeleton(values).get_submodule(name)
        if isinstance(then, nn.Conv2d):
            channels, rest = divmod(now.in_channels * stated, then.in_channels)
            return None if rest else channels
    return None


def _skeleton(values: Mapping[str, Any]) -> nn.Module:
    """`_build` without memory."""
    return on_meta(lambda: _build(values))


def _build(values: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The float model that timm builds from a directory with this config.json, and `tensors`."""
    arguments = {
        k: v for k, v in (values.get("model_args") or {}).items() if k not in ("ternary", "packed")
    }
    said = {**values, "architecture": base_name(values["architecture"]), "model_args": arguments}
    # timm takes tensors where the source of the weights is none of its own.
    overlay = None
    if tensors is not None:
        overlay = {"source": None, "file": None, "state_dict": dict(tensors)}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / CONFIG_NAME).write_text(json.dumps(said), encoding="utf-8")
        return timm.create_model(
            f"local-dir:{scratch}",
            pretrained=tensors is not None,
            pretrained_cfg_overlay=overlay,
        )


def _check_selected(model: nn.Module, skeleton: nn.Module, config: TernaryConfig) -> None:
    """The layers that `config` selects where the file is loaded must be those that are ternary."""
    mine, theirs = set(ternary_layers(model)), set(select_layers(skeleton, config))
    for name in sorted(mine ^ theirs):
        state = "ternary, and would be float" if name in mine else "float, and would be ternary"
        raise ValueError(
            f"layer {name!r} is {state} where the file is loaded, by exclude="
            f"{list(config.exclude)}; make the whole model ternary at once: ternarize_(model, ...)"
        )
    said = replace(resolve(config), exclude=())
    layer: Any
    for name, layer in ternary_layers(model).items():
        if (own := replace(resolve(layer.ternary_config), exclude=())) != said:
            raise ValueError(
                f"layer {name!r} is made ternary by {own.to_dict()}, others by {said.to_dict()}; a "
                "file holds one method: make the whole model ternary at once"
            )


def _image(values: Mapping[str, Any]) -> Tensor:
    size = values["pretrained_cfg"]["input_size"]
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(0))


def _twin(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` on the CPU in float32, with plain layers; what can be shared is shared."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for tensor in held:
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _on_cpu(tensor)
    twin = own_forward(copy.deepcopy(model, memo)).eval()
    for name, layer in ternary_layers(twin).items():
        make_plain(layer)
        layer.weight = nn.Parameter(tensors[weight_key(name)].float(), requires_grad=False)
    return twin


def _on_cpu(tensor: Tensor) -> Tensor:
    copied = tensor.detach().cpu().contiguous()
    copied = copied.float() if copied.is_floating_point() else copied
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, requires_grad=False)
    return copied.clone()


@torch.no_grad()
def _check_outputs(
    name: str,
    twin: nn.Module,
    loaded: nn.Module,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    image: Tensor,
) -> None:
    """Both models, with the very same tensors, must give the same outputs.

    A parameter of zeros alone, as batch norms of residual branches and layer scales begin with,
    would hide what it is multiplied with: it is 0.5 here.
    """
    parameters = dict(loaded.named_parameters(remove_duplicate=False))
    state = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    for key in parameters.keys() & state.keys():
        if not key.endswith("bias") and not state[key].any():
            state[key] = torch.full_like(state[key], 0.5)
    state |= _rounded(model, loaded, state)
    size = "x".join(map(str, image.shape[1:]))
    outputs = []
    for network in (twin, loaded.float().eval()):
        what = f"{name!r} does not take the {size} images that config.json would state"
        with foreign(what, hint=_TYPE):
            output = functional_call(network, state, (image,), tie_weights=False)
        outputs.append(_leaves(output))
    mine, theirs = outputs
    if len(mine) == len(theirs) and all(map(_equal, mine, theirs)):
        return
    others = _other_modules(twin, loaded)
    if not others and len(mine) == len(theirs) and all(map(_close, mine, theirs)):
        return
    where = "; ".join(others[:2]) or "its forward is not that of the architecture"
    raise ValueError(
        f"timm would build {name!r} with the same tensors and other outputs: {where}; {_TYPE}"
    )


def _rounded(model: nn.Module, loaded: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Buffers that no file holds, which a model in half precision has rounded: those of timm."""
    theirs = dict(loaded.named_buffers())
    return {
        key: theirs[key]
        for key, buffer in model.named_buffers()
        if key not in state
        and key in theirs
        and buffer.is_floating_point()
        and torch.equal(theirs[key].to(buffer.dtype), buffer.cpu())
    }


def _leaves(output: Any) -> list[Tensor]:
    """The tensors of what a model returns."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [leaf for value in output.values() for leaf in _leaves(value)]
    if isinstance(output, (tuple, list)):
        return [leaf for value in output for leaf in _leaves(value)]
    return []


def _equal(mine: Tensor, theirs: Tensor) -> bool:
    return mine.shape == theirs.shape and torch.equal(mine.nan_to_num(), theirs.nan_to_num())


def _close(mine: Tensor, theirs: Tensor) -> bool:
    if mine.shape != theirs.shape:
        return False
    limit = TOLERANCE * float(theirs.abs().nan_to_num().max()) if theirs.numel() else 0.0
    return torch.allclose(mine, theirs, rtol=0, atol=limit, equal_nan=True)


def _other_modules(twin: nn.Module, loaded: nn.Module) -> list[str]:
    """The modules that are others in the two: what they are, and what timm builds."""
    mine, theirs = dict(_described(twin)), dict(_described(loaded))
    return [
        f"{name or 'the model'} is {mine.get(name, 'not there')}, timm builds "
        f"{theirs.get(name, 'nothing')}"
        for name in [*theirs, *(n for n in mine if n not in theirs)]
        if mine.get(name) != theirs.get(name)
    ]


def _described(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        yield name, f"{type(module).__name__}({flat(module.extra_repr())[:100]})"
