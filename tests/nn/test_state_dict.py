"""The spelling of keys, against what torch and the layers themselves make of it."""

from __future__ import annotations

import pytest
import timm
from samples import trained
from torch import nn

import timm_ternary
from timm_ternary.nn.convert import float_state, ternary_layers
from timm_ternary.nn.state_dict import (
    is_code_key,
    is_packed_key,
    latent_layer,
    own_prefixes,
    packed_key,
    quantizer_parameter,
    readable_name,
    scale_key,
    weight_key,
)


@pytest.fixture(scope="module")
def trainable() -> nn.Module:
    """With thresholds and scales as parameters."""
    return trained(ternary="ttq")


def test_keys_of_a_packed_model(trainable: nn.Module) -> None:
    layers = ternary_layers(trainable)
    keys = timm_ternary.pack_(trained(ternary="ttq")).state_dict().keys()
    for name in layers:
        assert {packed_key(name), scale_key(name)} < keys and weight_key(name) not in keys
    assert sum(map(is_packed_key, keys)) == len(layers)
    assert sum(map(is_code_key, keys)) == 2 * len(layers)


def test_keys_of_a_trainable_model_name_all_that_is_there(trainable: nn.Module) -> None:
    layers = ternary_layers(trainable)
    keys = trainable.state_dict().keys()
    assert {latent_layer(key) for key in keys} == {None, *layers}
    found: dict[str, set[str]] = {name: set() for name in layers}
    for key in keys:
        if parameter := quantizer_parameter(key):
            found[parameter[0]].add(parameter[1])
    for name, layer in layers.items():
        assert found[name] == layer.parametrizations["weight"][0].state_dict().keys()
    own = own_prefixes(layers)
    assert not any(key.startswith(own) for key in float_state(trainable))
    assert sum(key.startswith(own) for key in keys) == len(keys) - len(float_state(trainable))


def test_readable_names_are_those_of_the_float_model_and_of_parameters(
    trainable: nn.Module,
) -> None:
    names = {readable_name(name) for name, _ in trainable.named_parameters()}
    assert {name for name, _ in timm.create_model("test_resnet").named_parameters()} <= names
    assert "conv1.0.scale_pos" in names and not any("parametrizations" in name for name in names)
    assert readable_name("bn1.bias") == "bn1.bias"


def test_other_keys_are_none_of_them() -> None:
    for key in ("conv1.weight", "conv1.weight_packed_2", "weight", "conv1.original"):
        assert latent_layer(key) is None and quantizer_parameter(key) is None
        assert not is_packed_key(key) and not is_code_key(key)
