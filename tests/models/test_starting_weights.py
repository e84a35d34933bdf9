"""Weights that a run starts from, in every form in which people have them."""

from __future__ import annotations

import argparse
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from hub_server import OWNER, Hub
from torch import nn

import timm_ternary  # noqa: F401  (registers the models)
from timm_ternary.checkpoint.directory import save_float, save_packed
from timm_ternary.errors.foreign import FileError
from timm_ternary.hub.push import create_repository, push_directory
from timm_ternary.models.names import load_model
from timm_ternary.models.starting_weights import find_weights
from timm_ternary.training.arguments.model import ModelArguments
from timm_ternary.training.start import build_model, find_start

NAME = "test_resnet"
HEADS = {"fc.weight", "fc.bias"}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model(NAME, num_classes=10)


def start(checkpoint: Any, *, name: str = NAME, classes: int = 3, **kwargs: Any) -> nn.Module:
    args = ModelArguments(model=name, checkpoint=str(checkpoint), **kwargs)
    return build_model(args, num_classes=classes, in_chans=3)


def written(form: str, model: nn.Module, path: Path) -> str:
    """A file or directory of that form, as --checkpoint names it."""
    file = path / form.replace("directory", "x")
    state = model.state_dict()
    if form == "w.safetensors":
        safetensors.torch.save_file(state, file)
    elif form == "w.pth":
        torch.save(state, file)
    elif form == "w.pth.tar":  # as timm's CheckpointSaver writes it
        args = argparse.Namespace(lr=0.1)
        torch.save({"epoch": 3, "arch": NAME, "state_dict": state, "args": args}, file)
    elif form == "ddp.pt":
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, file)
    else:
        save_float(model, path)
        return f"local-dir:{path}" if form == "local-dir" else str(path)
    return str(file)


@pytest.mark.parametrize(
    "form", ["w.safetensors", "w.pth", "w.pth.tar", "ddp.pt", "directory", "local-dir"]
)
@pytest.mark.parametrize("name", [NAME, f"{NAME}_tern"])
def test_the_backbone_is_taken_and_the_head_is_new(
    form: str, name: str, model: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = written(form, model, tmp_path)
    tuned = start(checkpoint, name=name)
    assert tuned.num_classes == 3
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert said == [
        f"checkpoint {checkpoint} has 10 classes, the data have 3: its backbone is taken, the "
        "head is new"
    ]
    plain = {  # the latent weights of a ternary model are the float ones
        key.replace(".parametrizations.weight.original", ".weight"): value
        for key, value in tuned.state_dict().items()
    }
    for key, value in model.state_dict().items():
        assert (key in HEADS) or torch.equal(plain[key], value), key


def test_the_same_classes_load_without_a_word(
    model: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuned = start(written("w.pth", model, tmp_path), classes=10)
    assert all(torch.equal(v, tuned.state_dict()[k]) for k, v in model.state_dict().items())
    assert not caplog.records


def test_a_packed_run_gives_its_backbone(model: nn.Module, tmp_path: Path) -> None:
    ternary = timm.create_model(f"{NAME}_tern", num_classes=10, ternary="twn")
    save_packed(ternary, tmp_path)
    tuned = start(tmp_path, name=f"{NAME}_tern", ternary="twn")
    assert tuned.num_classes == 3
    stored = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(tuned.conv1[0].weight, stored.conv1[0].weight)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite0_tern"])
def test_a_new_head_starts_small(name: str, tmp_path: Path) -> None:
    """timm starts the head of an efficientnet by its number of classes: 0.41 for 6 of them."""
    torch.save(timm.create_model(name[:21], num_classes=10).state_dict(), tmp_path / "w.pth")
    head = start(tmp_path / "w.pth", name=name, classes=6).classifier
    weight = head.parametrizations.weight.original if "_tern" in name else head.weight
    assert weight.shape == (6, 1280) and 0.02 < weight.abs().max() <= 1280**-0.5
    if "_tern" in name:  # and its threshold is that of the new weights
        threshold = head.parametrizations.weight[0].threshold
        assert float(threshold) == pytest.approx(0.1 * float(weight.abs().max()), rel=1e-5)


def test_models_whose_file_is_renamed_on_loading(tmp_path: Path) -> None:
    """Of facebook's ConvNeXt the head is called head, of timm's head.fc."""
    model = timm.create_model("convnext_atto", num_classes=10)
    spelled = {
        r"^stem\.": "downsample_layers.0.",
        r"^stages\.(\d)\.downsample\.": r"downsample_layers.\1.",
        r"\.blocks\.": ".",
        r"\.conv_dw\.": ".dwconv.",
        r"\.mlp\.fc": ".pwconv",
        r"^head\.norm\.": "norm.",
        r"^head\.fc\.": "head.",
    }
    state = model.state_dict()
    for ours, theirs in spelled.items():
        state = {re.sub(ours, theirs, key): value for key, value in state.items()}
    torch.save({"model": state}, tmp_path / "w.pth")
    tuned = start(tmp_path / "w.pth", name="convnext_atto_tern")
    assert tuned.num_classes == 3
    assert torch.equal(tuned.stem[0].parametrizations.weight.original, model.stem[0].weight)


def test_a_file_of_another_network_is_refused(model: nn.Module, tmp_path: Path) -> None:
    checkpoint = written("directory", model, tmp_path)
    for name in ("test_resnet", "test_efficientnet_tern", "resnet10t"):
        if name == NAME:
            continue
        with pytest.raises(ValueError, match="does not fit") as caught:
            start(checkpoint, name=name)
        assert "config.json beside it: test_resnet" in str(caught.value)
        assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_what_cannot_be_read(model: nn.Module, tmp_path: Path) -> None:
    whole = tmp_path / "model.pth"
    torch.save(model, whole)  # a pickled module: code, not tensors
    cut = tmp_path / "cut.pth"
    torch.save(model.state_dict(), tmp_path / "good.pth")
    cut.write_bytes((tmp_path / "good.pth").read_bytes()[:5000])
    other = tmp_path / "other.pth"
    torch.save({"epoch": 3, "lr": 0.1}, other)
    np.savez(tmp_path / "jax.npz", a=np.zeros(3))
    for path, text in {
        whole: "as tensors alone",
        cut: "as tensors alone",
        other: "holds no state dict",
        tmp_path / "jax.npz": "a file of numpy",
        tmp_path / "none.pth": "there is no file",
        "hf-hub:": "hf-hub:",
    }.items():
        with pytest.raises(ValueError, match=text) as caught:
            start(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_images_are_normalized_as_those_of_the_weights(model: nn.Module, tmp_path: Path) -> None:
    published = find_start(
        ModelArguments(model="resnet10t", checkpoint=written("w.pth", model, tmp_path))
    )
    assert published.trained  # resnet10t has weights on ImageNet: a file without a word is of these
    own = find_start(ModelArguments(model="resnet20_cifar", checkpoint=str(tmp_path / "w.pth")))
    assert not own.trained
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": (0.1, 0.2, 0.3)}
    save_float(model, tmp_path)
    stored = find_start(ModelArguments(model="resnet10t", checkpoint=str(tmp_path)))
    assert stored.trained and tuple(stored.cfg["mean"]) == (0.1, 0.2, 0.3)
    config = json.loads((tmp_path / "config.json").read_text())
    assert find_weights(str(tmp_path)).architecture == config["architecture"]


def test_from_the_hub(model: nn.Module, tmp_path: Path, hub: Hub) -> None:
    repository = f"{OWNER}/float"
    save_float(model, tmp_path / "out")
    create_repository(repository)
    push_directory(tmp_path / "out", repository)
    tuned = start(f"hf-hub:{repository}", name=f"{NAME}_tern")
    assert tuned.num_classes == 3
    assert torch.equal(tuned.conv1[0].parametrizations.weight.original, model.conv1[0].weight)
    with pytest.raises(ValueError, match=f"hf-hub:{OWNER}/none"):
        start(f"hf-hub:{OWNER}/none")


@pytest.mark.parametrize("text", [b"[" * 100_000, b" " * (17 << 20), b'{"mean": 1}'])
def test_a_hostile_config_on_the_hub(
    text: bytes, model: nn.Module, tmp_path: Path, hub: Hub
) -> None:
    """Looked at before timm reads it, by every way there is."""
    repository = f"{OWNER}/float"
    save_float(model, tmp_path / "out")
    create_repository(repository)
    push_directory(tmp_path / "out", repository)
    for files in hub.repositories[repository].commits.values():
        if "config.json" in files:
            files["config.json"] = replace(files["config.json"], data=text)
    for call in (
        lambda: start(f"hf-hub:{repository}"),
        lambda: load_model(f"hf-hub:{repository}"),
        lambda: find_start(ModelArguments(model=f"hf-hub:{repository}")),
    ):
        with pytest.raises(FileError, match=r"config\.json|architecture") as caught:
            call()
        assert str(caught.value).isprintable() and len(str(caught.value)) <= 1000


class TestCheckpointPath:
    """``timm.create_model(..., checkpoint_path=FILE)`` with other classes."""

    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize("form", ["w.safetensors", "w.pth.tar", "packed"])
    def test_the_head_is_new(
        self,
        form: str,
        packed: bool,
        model: nn.Module,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        if form == "packed":
            ternary = timm.create_model(f"{NAME}_tern", num_classes=10)
            path = str(save_packed(ternary, tmp_path) / "model.safetensors")
        else:
            path = written(form, model, tmp_path)
        torch.manual_seed(0)
        fresh = timm.create_model(f"{NAME}_tern", num_classes=3, packed=packed)
        torch.manual_seed(0)
        tuned = timm.create_model(
            f"{NAME}_tern", num_classes=3, packed=packed, checkpoint_path=path
        )
        assert torch.equal(tuned.fc.weight, fresh.fc.weight)
        assert not torch.equal(tuned.conv1[0].weight, fresh.conv1[0].weight)
        said = [r.getMessage() for r in caplog.records if "the head is new" in r.getMessage()]
        assert len(said) == 1

    def test_load_state_dict_stays_strict(self, model: nn.Module) -> None:
        with pytest.raises((RuntimeError, ValueError), match=r"fc\.weight"):
            timm.create_model(f"{NAME}_tern", num_classes=3).load_state_dict(model.state_dict())

    def test_another_network_is_still_refused(self, tmp_path: Path) -> None:
        torch.save(timm.create_model("resnet10t", num_classes=10).state_dict(), tmp_path / "w.pth")
        with pytest.raises((RuntimeError, ValueError)):
            timm.create_model(
                f"{NAME}_tern", num_classes=3, checkpoint_path=str(tmp_path / "w.pth")
            )
