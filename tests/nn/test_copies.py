"""Copies and pickles of a layer in training form are layers of their own."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from samples import MATRIX, config, image, outputs, trained
from torch import nn
from torch.nn.utils import parametrize

from timm_ternary.nn.convert import (
    config_of,
    float_state,
    pack_,
    quantizers_of,
    ternarize_,
    unpack_,
)
from timm_ternary.nn.trainable import latent_weight


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": _saved,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(("method", "granularity"), MATRIX)
def test_a_copy_is_the_model_again(method: str, granularity: str, how: str) -> None:
    model = trained(ternary=config(method, granularity))
    twin = COPIES[how](model)
    assert str(twin) == str(model) and config_of(twin) == config_of(model)
    one, other = model.state_dict(), twin.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in model.named_parameters()]
    expected = outputs(model)
    assert torch.equal(outputs(twin), expected)
    twin.train()(image()).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(latent_weight(layer).grad is not None for layer in _layers(twin))
    twin.eval().load_state_dict(float_state(model), strict=False)  # the hook is its own
    twin = COPIES[how](unpack_(pack_(COPIES[how](twin))))
    assert quantizers_of(twin).keys() == quantizers_of(model).keys()


def _layers(model: nn.Module) -> list[nn.Module]:
    return [model.get_submodule(name) for name in quantizers_of(model)]


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_reads_its_own_weight_where_weights_are_cached(how: str) -> None:
    """A teacher that is a copy of the student, in a loss of one's own."""
    model = trained()
    twin = COPIES[how](model)
    with torch.no_grad():
        for layer in _layers(twin):
            latent_weight(layer).mul_(2)
    expected = outputs(model), outputs(twin)
    with parametrize.cached():
        found = outputs(model), outputs(twin)
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(*found)


def test_a_copy_does_not_keep_the_original_in_memory() -> None:
    layer = ternarize_(nn.Linear(3, 3))
    twin, seen = copy.deepcopy(layer), weakref.ref(layer)
    del layer
    gc.collect()
    assert seen() is None and twin(torch.ones(1, 3)).shape == (1, 3)


@pytest.mark.parametrize("how", COPIES)
def test_what_is_shared_stays_shared_and_other_parametrizations_stay(how: str) -> None:
    layer = ternarize_(nn.Linear(3, 3))
    parametrize.register_parametrization(layer, "bias", nn.Softplus())
    parametrize.register_parametrization(layer, "weight", nn.Softplus())
    both = nn.ModuleList([layer, layer])
    twin = COPIES[how](both)
    assert twin[0] is twin[1] and twin[0] is not layer
    assert torch.equal(twin[0].bias, layer.bias) and torch.equal(twin[0].weight, layer.weight)
    assert len(twin[0].parametrizations.weight) == 2


def test_a_shallow_copy_shares_its_parameters() -> None:
    layer = ternarize_(nn.Linear(3, 3))
    twin = copy.copy(layer)
    assert latent_weight(twin) is latent_weight(layer)
    assert torch.equal(twin.weight, layer.weight)


@pytest.mark.parametrize("name", ["test_vit_tern", "test_efficientnet_tern", "test_nfnet_tern"])
def test_other_hosts(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(outputs(twin, image(size=160)), outputs(model, image(size=160)))
