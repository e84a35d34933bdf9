"""What is frozen stays frozen, and stays so through every form."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import timm
import torch
from samples import MATRIX, config
from timm.utils import freeze, unfreeze
from torch import nn
from trainer_models import small_net, trainer

from timm_ternary.nn.convert import pack_, quantizers_of, ternarize_, unpack_
from timm_ternary.nn.state_dict import quantizer_parameter


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(("method", "granularity"), MATRIX)
def test_a_layer_frozen_before_stays_frozen(method: str, granularity: str) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    freeze(model, ["conv1", "layer1"])
    ternarize_(model, config(method, granularity))
    names = {name for name, _ in model.named_parameters() if name.startswith(("conv1", "layer1"))}
    assert names and _frozen(model) == names
    for _ in range(2):
        unpack_(pack_(model))
        assert _frozen(model) == names
    pack_(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert _frozen(unpack_(twin)) == names
    unpack_(model)
    unfreeze(model, ["conv1", "layer1"])
    assert not _frozen(model)


def test_freezing_afterwards_takes_the_quantizers_along() -> None:
    model = timm.create_model("test_resnet_tern", num_classes=3)
    freeze(model, ["layer2"])
    found = {name for name in _frozen(model) if quantizer_parameter(name)}
    layers = [name for name in quantizers_of(model) if name.startswith("layer2")]
    assert found == {f"{name}.parametrizations.weight.0.threshold" for name in layers}


@pytest.mark.parametrize("method", ["tga", "ttq", "admm", "twn"])
def test_training_moves_nothing_of_it(tmp_path: Path, method: str) -> None:
    model = small_net(None)
    model.first.weight.requires_grad_(False)
    ternarize_(model, method)
    before = {name: value.clone() for name, value in model.first.state_dict().items()}
    weight = model.eval().first.weight.clone()
    run = trainer(tmp_path, model, num_train_epochs=2)
    run.train()
    after = model.first.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"bias"}
    assert torch.equal(model.eval().first.weight, weight)
    assert not any(p.requires_grad for p in quantizers_of(model)["first"].parameters())
    if method == "tga":
        assert all("first" not in name for name in run.threshold_pass.parameters)


def test_a_network_all_frozen_but_its_head_trains(tmp_path: Path) -> None:
    model = small_net(None).requires_grad_(False)
    model.head.requires_grad_(True)
    ternarize_(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer(tmp_path, model, num_train_epochs=1, weight_decay=0.1).train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("head.")}
