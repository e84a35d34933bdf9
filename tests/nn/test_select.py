"""Which layers are made ternary."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from torch import nn

from timm_ternary import TernaryConfig
from timm_ternary.nn.convert import ternary_layers
from timm_ternary.nn.select import is_depthwise, select_layers


def left_out(model: nn.Module, *exclude: str) -> set[str]:
    """Layers that `exclude` leaves in float."""
    every = select_layers(model, TernaryConfig())
    some = select_layers(model, TernaryConfig(exclude=exclude))
    assert [name for name in every if name in some] == list(some)  # the order stays
    return every.keys() - some.keys()


def test_everything_by_default() -> None:
    for name in ("test_resnet", "test_vit", "test_efficientnet"):
        model = timm.create_model(name)
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
        expected = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
        assert select_layers(model, TernaryConfig()) == expected and expected


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("test_resnet", {"conv1.0"}, {"fc"}),
        ("test_vit", {"patch_embed.proj"}, {"head"}),
        ("test_efficientnet", {"conv_stem"}, {"classifier"}),
        ("test_convnext", {"stem.0"}, {"head.fc"}),
        ("resnet18", {"conv1"}, {"fc"}),
        ("resnet20_cifar", {"conv1"}, {"fc"}),
        ("deit_tiny_distilled_patch16_224", {"patch_embed.proj"}, {"head", "head_dist"}),
        ("inception_v3", {"Conv2d_1a_3x3.conv"}, {"fc"}),
    ],
)
def test_first_and_last_as_timm_states_them(name: str, first: set[str], last: set[str]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert left_out(model, "first") == first
    assert left_out(model, "last") == last
    assert left_out(model, "first", "last") == first | last


def test_without_a_classifier() -> None:
    model = timm.create_model("test_resnet", num_classes=0)
    assert left_out(model, "last") == set()
    assert left_out(model, "first") == {"conv1.0"}


def test_models_that_timm_does_not_know() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2))
    assert left_out(model, "first") == {"1"}
    assert left_out(model, "last") == {"3"}


def test_a_wrapper_around_a_timm_model() -> None:
    wrapper = nn.Module()
    wrapper.timm_model = timm.create_model("test_resnet")
    assert left_out(wrapper, "first", "last") == {"timm_model.conv1.0", "timm_model.fc"}


def test_depthwise() -> None:
    model = timm.create_model("test_efficientnet")
    expected = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
    }
    assert expected and left_out(model, "depthwise") == expected
    assert is_depthwise(nn.Conv1d(4, 8, 3, groups=4))
    assert not is_depthwise(nn.Conv2d(1, 8, 3))  # one channel: any convolution is
    assert not is_depthwise(nn.Conv2d(8, 8, 3, groups=4))
    assert not is_depthwise(nn.Linear(4, 4))


def test_globs() -> None:
    model = timm.create_model("test_resnet")
    every = set(select_layers(model, TernaryConfig()))
    assert left_out(model, "layer2.*") == {n for n in every if n.startswith("layer2.")}
    assert left_out(model, "*.conv1") == {n for n in every if n.endswith(".conv1")}
    assert left_out(model, "fc") == {"fc"}
    assert left_out(model, "layer[34].*", "fc") == {
        n for n in every if n.startswith(("layer3.", "layer4.")) or n == "fc"
    }
    assert left_out(model, "*") == every


def test_features_only_in_either_spelling() -> None:
    model = timm.create_model("test_convnext", features_only=True)
    every = set(select_layers(model, TernaryConfig()))
    expected = {name for name in every if name.startswith("stages_1")}
    assert expected
    assert left_out(model, "stages.1.*") == expected
    assert left_out(model, "stages_1.*") == expected
    assert left_out(model, "first") == {"stem_0"}
    assert left_out(model, "last") == set()  # the classifier is gone


def test_features_only_of_a_model_one_level_below() -> None:
    model = timm.create_model("test_vit", features_only=True)  # timm's FeatureGetterNet
    every = set(select_layers(model, TernaryConfig()))
    expected = {name for name in every if name.startswith("model.blocks.1.")}
    assert expected
    assert left_out(model, "blocks.1.*") == expected
    assert left_out(model, "model.blocks.1.*") == expected
    assert left_out(model, "first") == {"model.patch_embed.proj"}
    assert left_out(model, "last") == set()


def test_a_word_misspelt_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "timm_ternary"):
        assert left_out(timm.create_model("test_resnet"), "firs") == set()
    assert "did you mean 'first'?" in caplog.text


def test_a_glob_that_matches_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = timm.create_model("test_resnet")
    with caplog.at_level(logging.WARNING, "timm_ternary"):
        assert left_out(model, "fcc") == set()
    (record,) = caplog.records
    assert record.getMessage() == "exclude='fcc' matches no layer; did you mean 'fc'?"


def test_excluded_layers_stay_float_in_a_model() -> None:
    exclude = TernaryConfig(exclude=("first", "last", "layer2.*"))
    model = timm.create_model("test_resnet_tern", ternary=exclude)
    names = set(ternary_layers(model))
    assert names and not any(name.startswith("layer2.") for name in names)
    assert not {"conv1.0", "fc"} & names
    assert isinstance(model.fc.weight, nn.Parameter)


def test_layers_without_a_plain_weight_are_left_alone() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    assert not select_layers(layer, TernaryConfig())
