"""Weights that a run starts from: found, read, and fitted to other classes by timm's own means."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.models import load_model_config_from_hf, load_state_dict
from torch import Tensor, nn

from ..checkpoint.config_json import CONFIG_NAME, read_config
from ..checkpoint.pair import WAITING_NAME, check_pair, weights_in
from ..checkpoint.skeleton import check_room, skeleton
from ..checkpoint.weights_file import WEIGHTS_NAME, WeightsFile, read_file
from ..compat.timm import in_load_checkpoint
from ..errors.foreign import foreign
from ..errors.hub import explain
from ..names import base_name, is_ternary_name
from ..nn.state_dict import latent_layer, weight_key
from ..nn.timm_wrapper import timm_names
from .sources import one_commit, weights_path

__all__ = ["StartingWeights", "adapt_head", "find_weights", "start_head"]

_logger = logging.getLogger(__name__)

_KINDS = (
    "a .safetensors file, a .pth or .pth.tar file of timm, the output_dir of a finished run, "
    "local-dir:PATH or hf-hub:ID"
)
# What describes the images that the weights were trained on.
_IMAGES = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")
# Where timm's models keep their classifier; a file of another origin may spell it otherwise.
_HEADS = ("fc", "head", "classifier", "head.fc", "classifier.fc", "last_linear", "head.l", "linear")


@dataclass(frozen=True)
class StartingWeights:
    """A weights file, found but not read.

    Attributes:
        name: As the user gave it, for errors.
        path: Of the file.
        images: What config.json beside it says of the images: size, mean, std, crop. Empty where
            there is none.
        architecture: What config.json says; None where there is none.
    """

    name: str
    path: Path
    images: Mapping[str, Any] = field(default_factory=dict)
    architecture: str | None = None

    def arguments(
        self, architecture: str, cfg: Mapping[str, Any], num_classes: int, **kwargs: Any
    ) -> dict[str, Any]:
        """Arguments with which ``timm.create_model(architecture, ...)`` starts from this file.

        A classifier of other classes than `num_classes` is left out, and the model keeps its new
        one; a line on the log says so. Everything else must fit.

        Not timm's ``checkpoint_path``: it loads after construction, when thresholds have been set
        from the random weights, and refuses other classes.

        Args:
            architecture: timm's name, without a tag; ternary or float.
            cfg: timm's pretrained_cfg of it.
            num_classes: Classes of the model to build.
            **kwargs: Further arguments of ``timm.create_model``, for the model that the file is of.

        Raises:
            ValueError: The file cannot be read, or is of another network. One line.
        """
        file = self._read()
        own = {k: v for k, v in kwargs.items() if k not in ("ternary", "packed")}
        with foreign(f"cannot build {architecture!r}"):  # before anything is decoded
            check_room(file, skeleton(architecture, num_classes=num_classes, **own))
        stored = file.stored
        classes = _classes(stored.dense, cfg)
        known = num_classes if classes is None else classes
        overlay: dict[str, Any] = {"num_classes": known, "label_offset": 0, "custom_load": False}
        first = stored.dense.get(weight_key(str(cfg.get("first_conv"))))
        if first is not None and first.ndim == 4:
            overlay["input_size"] = (first.shape[1], *cfg["input_size"][1:])
        if known != num_classes:
            self._check_fit(architecture, {**overlay, "state_dict": dict(stored.dense)}, kwargs)
            _logger.warning(
                "checkpoint %s has %d classes, the data have %d: its backbone is taken, the head "
                "is new",
                self.name,
                known,
                num_classes,
            )
        ternary = stored.config is not None or bool(stored.quantizers)
        # A ternary file goes with its codes; the entry point takes it as it was read.
        named = self.path.name in (WEIGHTS_NAME, WAITING_NAME)
        whole = ternary and is_ternary_name(architecture) and named
        overlay["state_dict"] = file if whole else stored.dense
        return {"pretrained": True, "pretrained_cfg_overlay": overlay}

    def _read(self) -> WeightsFile:
        with foreign(self.path), self.path.open("rb") as raw:
            start = raw.read(2)
        if start != b"PK" and start[:1] != b"\x80":
            file = read_file(self.path)
            check_pair(self.path, file.metadata, self.path.with_name(CONFIG_NAME))
            return file
        if self.path.suffix in (".npz", ".npy"):
            raise ValueError(f"checkpoint {self.name!r} is a file of numpy; give {_KINDS}")
        again = "where you trust it, save it anew: torch.save(model.state_dict(), FILE)"
        with foreign(f"checkpoint {self.name!r} cannot be read as tensors alone", hint=again):
            tensors = load_state_dict(str(self.path), weights_only=True)
        if not isinstance(tensors, dict) or not all(
            isinstance(tensor, Tensor) for tensor in tensors.values()
        ):
            raise ValueError(
                f"checkpoint {self.name!r} holds no state dict; "
                "save one: torch.save(model.state_dict(), FILE)"
            )
        return WeightsFile.of(self.path, timm_names(tensors))

    def _check_fit(
        self, architecture: str, overlay: Mapping[str, Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Load everything, strictly, into a model with the classes of the file.

        For timm leaves out a classifier of other classes by loading what happens to fit.
        """
        arguments = {k: v for k, v in kwargs.items() if k not in ("ternary", "packed")}
        arguments["in_chans"] = overlay.get("input_size", (arguments.get("in_chans") or 3,))[0]
        own = f" (config.json beside it: {self.architecture})" if self.architecture else ""
        with foreign(f"checkpoint {self.name!r}{own} does not fit {architecture}"):
            timm.create_model(
                base_name(architecture),
                pretrained=True,
                pretrained_cfg_overlay=dict(overlay),
                num_classes=overlay["num_classes"],
                **arguments,
            )


def find_weights(checkpoint: str) -> StartingWeights:
    """Find a weights file, on the disk or on the Hub.

    Args:
        checkpoint: A .safetensors file; a .pth or .pth.tar file as timm and torch save it; a
            directory that holds model.safetensors; ``local-dir:PATH``; or ``hf-hub:ID``.

    Raises:
        ValueError: There is none, or config.json beside it cannot be read. One line.
    """
    source, colon, name = checkpoint.partition(":")
    if colon and source.replace("_", "-") == "hf-hub":
        return _from_hub(checkpoint, name)
    # A colon may stand in a path as well.
    path = Path(name if colon and source == "local-dir" else checkpoint).expanduser()
    directory = path if path.is_dir() else path.parent
    path = weights_in(path) if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"checkpoint {checkpoint!r}: there is no file {path}; give {_KINDS}")
    if not (directory / CONFIG_NAME).is_file():
        return StartingWeights(checkpoint, path)
    config = read_config(directory / CONFIG_NAME)
    return StartingWeights(checkpoint, path, _images(config.pretrained_cfg), config.architecture)


def start_head(model: Any) -> None:
    """Start a new linear head of a trained backbone as torch starts a linear layer.

    Some of timm's start it by its number of classes: in an efficientnet with 6 classes weights are
    up to 0.41, logits of trained features have a spread of several units, and the first steps
    undo the backbone to make up for it (a loss of 4.5 where chance has 1.8).

    Args:
        model: A timm model, float or in its trainable form, whose pretrained_cfg names its head.
    """
    for name in _names(model.pretrained_cfg.get("classifier")):
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            fresh = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            state = {f"{name}.{key}": value for key, value in fresh.state_dict().items()}
            model.load_state_dict(state, strict=False)


def adapt_head(model: Any, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Load-state-dict hook: a file of other classes leaves the model's head as it is.

    Where timm's load_checkpoint loads, and nowhere else: it is strict about the classes, while
    ``pretrained=True`` adapts them.

    Args:
        model: A timm model, whose pretrained_cfg names its classifier.
        state: Of the whole model; the entries of a classifier of other classes become the model's.
        prefix: As torch gives it; empty for the model itself.
    """
    if prefix or not in_load_checkpoint():
        return
    own = model.state_dict()
    for name in _names(model.pretrained_cfg.get("classifier")):
        begin = f"{name}."
        mine = {key: value for key, value in own.items() if key.startswith(begin)}
        theirs = [key for key in state if key.startswith(begin)]
        if not mine or not theirs or not _other_classes(mine, {key: state[key] for key in theirs}):
            continue
        for key in theirs:
            del state[key]
        state.update(mine)
        _logger.warning(
            "the checkpoint has other classes than %s of the model (%d): its backbone is taken, "
            "the head is new",
            name,
            model.num_classes,
        )


def _other_classes(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether two classifiers, each in any form that a state dict has, differ in their rows."""
    rows = [
        {_rows(key, tensor) for key, tensor in part.items()} - {None} for part in (mine, theirs)
    ]
    return bool(rows[0] and rows[1]) and not rows[0] & rows[1]


def _rows(key: str, tensor: Tensor) -> int | None:
    """The number of classes that a tensor of a classifier tells; None if it tells none."""
    name = key.rpartition(".")[2]
    tells = name in ("weight", "bias") or latent_layer(key) is not None
    return int(tensor.shape[0]) if tells and tensor.ndim else None


def _from_hub(checkpoint: str, repository: str) -> StartingWeights:
    with foreign(f"checkpoint {checkpoint!r}", explain=explain):
        commit = one_commit(repository)
        cfg, architecture, _ = load_model_config_from_hf(commit)
        path = weights_path({**cfg, "source": "hf-hub", "hf_hub_id": commit}, None)
    assert path is not None
    return StartingWeights(checkpoint, path, _images(cfg), architecture)


def _images(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {key: cfg[key] for key in _IMAGES if key in cfg}


def _classes(tensors: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> int | None:
    """Of how many classes the classifier in `tensors` is; None: of those of the model, as it seems.

    timm's filter functions rename what a file spells otherwise, so the name in the model's cfg may
    not be there.
    """
    for name in (*_names(cfg.get("classifier")), *_HEADS):
        weight = tensors.get(weight_key(name))
        if weight is not None and weight.ndim in (2, 4):
            return int(weight.shape[0])
    return None


def _names(classifier: Any) -> tuple[str, ...]:
    """The classifiers that timm's pretrained_cfg names: none, one or several."""
    return (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
