"""Canaries: each fails by the name of what it is about when timm moves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import timm.optim
import torch

from timm_ternary.compat.timm import (
    base_optimizer,
    built_with,
    directory_config,
    first_convolutions,
    in_load_checkpoint,
    is_feature_getter,
    save_config,
    split_hub_id,
    take_indices,
)

pytestmark = pytest.mark.canary


def test_split_hub_id() -> None:
    assert split_hub_id("user/name@v1") == ("user/name", "v1")
    assert split_hub_id("user/name") == ("user/name", None)


def test_save_config_and_directory_config(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=7)
    extra = {"label_names": list("abcdefg")}
    save_config(model, tmp_path / "config.json", extra=extra, model_args={"packed": "2bit"})
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["architecture"] == "test_resnet" and stored["label_names"] == list("abcdefg")
    cfg, architecture, model_args = directory_config(str(tmp_path))
    assert (architecture, cfg["num_classes"]) == ("test_resnet", 7)
    assert model_args["packed"] == "2bit"


def test_is_feature_getter() -> None:
    getter = timm.create_model("test_vit", features_only=True)
    assert is_feature_getter(getter)
    assert any(name.startswith("model.") for name, _ in getter.named_parameters())
    assert not is_feature_getter(timm.create_model("test_vit"))


def test_take_indices() -> None:
    assert take_indices(4, 2) == ([2, 3], 3)
    assert take_indices(4, [0, -2]) == ([0, 2], 2)
    assert take_indices(3, None) == ([0, 1, 2], 2)


def test_in_load_checkpoint(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet")
    seen: list[bool] = []
    model.register_load_state_dict_pre_hook(lambda *_: seen.append(in_load_checkpoint()))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    timm.models.load_checkpoint(model, str(tmp_path / "w.pth"))
    model.load_state_dict(model.state_dict())
    assert seen == [True, False]


def test_base_optimizer() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    found = timm.optim.create_optimizer_v2([parameter], "lookahead_sgd", lr=0.1)
    inner = base_optimizer(found)
    assert type(inner) is not type(found) and inner.param_groups is found.param_groups
    assert base_optimizer(inner) is inner


def test_first_convolutions_and_built_with() -> None:
    model = timm.create_model("test_resnet", in_chans=1, act_layer="gelu")
    assert first_convolutions(model) == ("conv1.0",)
    assert built_with(model) == {"in_chans": 1, "act_layer": "gelu"}
    assert built_with(timm.models.ResNet(timm.models.resnet.BasicBlock, [1, 1, 1, 1])) == {}
