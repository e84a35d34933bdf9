"""A directory is opened once: one read of its weights file, one decoding of each layer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import timm
import torch
from hub_server import OWNER, Hub
from samples import image, outputs, trained
from torch import nn

from timm_ternary import packing
from timm_ternary.checkpoint import weights_file
from timm_ternary.checkpoint.directory import (
    load_packed,
    open_directory,
    save_float,
    save_packed,
)
from timm_ternary.checkpoint.weights_file import WEIGHTS_NAME
from timm_ternary.files import sha256
from timm_ternary.hub.card import card_text
from timm_ternary.hub.push import push_directory, push_to_hub
from timm_ternary.nn.convert import is_packed, ternary_layers
from timm_ternary.training.arguments.model import ModelArguments
from timm_ternary.training.start import build_model

REPO = f"{OWNER}/net"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A trained model; tests do not change it."""
    return trained()


@pytest.fixture(scope="module")
def once(model: nn.Module) -> Counter[str]:
    """One opening, and one decoding of each layer."""
    return Counter(opened=1, decoded=len(ternary_layers(model)))


@pytest.fixture
def packed(model: nn.Module, tmp_path: Path) -> Path:
    """A directory of a test's own."""
    return save_packed(model, tmp_path / "packed")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """``opened``: weights files, by this project or by timm; ``decoded``: layers."""
    counts: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    opening = counted("opened", safetensors.safe_open)
    monkeypatch.setattr(weights_file, "safe_open", opening)
    # safetensors.torch.load_file, which timm calls, opens by it.
    monkeypatch.setattr(safetensors.torch, "safe_open", opening)
    monkeypatch.setattr(packing, "decode", counted("decoded", packing.decode))
    return counts


@pytest.mark.parametrize("form", [True, False])
def test_load_packed(
    packed: Path, form: bool, model: nn.Module, reads: Counter[str], once: Counter[str]
) -> None:
    loaded = load_packed(packed, form)
    assert reads == once
    assert is_packed(loaded) is form and torch.equal(outputs(loaded), outputs(model))


def test_stock_timm(packed: Path, reads: Counter[str], once: Counter[str]) -> None:
    timm.create_model(f"local-dir:{packed}", pretrained=True)
    assert reads == once


def test_a_file_without_metadata(packed: Path, model: nn.Module, reads: Counter[str]) -> None:
    path = packed / WEIGHTS_NAME
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"format": "pt"})
    reads.clear()
    loaded = load_packed(packed)
    assert reads == {"opened": 1, "decoded": len(ternary_layers(model))}
    assert torch.equal(outputs(loaded), outputs(model))


def test_what_is_open_is_handed_on(
    packed: Path, model: nn.Module, reads: Counter[str], once: Counter[str]
) -> None:
    opened = open_directory(packed)
    assert open_directory(opened) is opened
    assert opened.sha256 == sha256(packed / WEIGHTS_NAME)
    forms = [load_packed(opened, form) for form in (True, False, True)]
    assert "resnet" in card_text(opened)
    assert reads == once
    (packed / WEIGHTS_NAME).unlink()
    forms.append(load_packed(opened))
    assert all(torch.equal(outputs(found), outputs(model)) for found in forms)
    # Models of one opened directory are independent of it, and of one another.
    with torch.no_grad():
        for tensor in forms[0].state_dict().values():
            tensor.zero_()
    assert torch.equal(outputs(load_packed(opened)), outputs(model))
    assert all(torch.equal(outputs(found), outputs(model)) for found in forms[1:])


def test_it_leaves_no_trace_in_the_model(packed: Path, tmp_path: Path) -> None:
    loaded = load_packed(packed)
    assert loaded.pretrained_cfg["file"] == str(packed)
    assert loaded.pretrained_cfg["source"] == "local-dir"
    assert "state_dict" not in loaded.pretrained_cfg
    again = save_packed(loaded, tmp_path / "again")
    assert (again / WEIGHTS_NAME).read_bytes() == (packed / WEIGHTS_NAME).read_bytes()
    assert (again / "config.json").read_bytes() == (packed / "config.json").read_bytes()


@pytest.mark.hub
def test_a_push_of_a_directory(
    hub: Hub, packed: Path, reads: Counter[str], once: Counter[str]
) -> None:
    run = {"weights_sha256": sha256(packed / WEIGHTS_NAME)}
    (packed / "training.json").write_text(json.dumps(run))
    push_directory(packed, REPO)
    assert reads == once
    assert WEIGHTS_NAME in hub.repositories[REPO].files()


@pytest.mark.hub
def test_a_push_of_a_model(
    hub: Hub, model: nn.Module, reads: Counter[str], once: Counter[str]
) -> None:
    push_to_hub(model, REPO)
    assert reads == once
    assert WEIGHTS_NAME in hub.repositories[REPO].files()


@pytest.mark.hub
def test_a_push_of_a_float_directory(hub: Hub, reads: Counter[str], tmp_path: Path) -> None:
    push_directory(save_float(trained("test_resnet"), tmp_path), REPO)
    assert reads == {"opened": 1}


@pytest.mark.parametrize("packed_form", [True, False])
def test_the_start_of_a_run(
    packed: Path, packed_form: bool, model: nn.Module, reads: Counter[str], tmp_path: Path
) -> None:
    path = packed
    if not packed_form:
        timm.models.save_for_hf(model, str(tmp_path / "latent"), safe_serialization=True)
        path = tmp_path / "latent"
    reads.clear()
    args = ModelArguments(model="test_resnet_tern", checkpoint=str(path))
    started = build_model(args, num_classes=5, in_chans=3)
    assert reads["opened"] == 1
    assert reads["decoded"] == (len(ternary_layers(model)) if packed_form else 0)
    assert torch.equal(outputs(started, image()), outputs(model, image()))
