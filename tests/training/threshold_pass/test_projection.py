"""The projected gradient of a layer's one scale equals that through the gradient of its weight."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainer_models import small_net, trainer

from timm_ternary import TernaryConfig, ternarize_
from timm_ternary.nn.convert import quantizers_of
from timm_ternary.nn.trainable import quantizer_of
from timm_ternary.training.threshold_pass import projection
from timm_ternary.training.threshold_pass.functional import (
    quantized_once,
    quantizer_parameters,
)
from timm_ternary.training.threshold_pass.projection import has_one_scale, projected


def gradients(model: nn.Module, images: Tensor, project: bool) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradients with respect to thresholds and scales."""
    quantizers = quantizers_of(model)
    layers = [model.get_submodule(name) for name in quantizers]
    parameters = list(quantizer_parameters(quantizers).values())
    labels = torch.arange(len(images)) % 3
    with quantized_once(layers), projected(layers) if project else nullcontext():
        loss = F.cross_entropy(model(images)[:, :3], labels)
        return loss, list(torch.autograd.grad(loss, parameters, materialize_grads=True))


@pytest.mark.parametrize(
    ("name", "size", "ternary"),
    [
        ("test_resnet", 32, "tga"),
        ("test_vit", 160, "tga"),  # linear layers with biases
        ("test_convnext", 32, "tga"),  # depthwise
        ("test_mambaout", 32, "tga"),
        ("test_resnet", 32, {"method": "tga", "granularity": "channel"}),
        ("test_resnet", 32, {"method": "tga", "options": {"gradient_correctness": False}}),
        ("test_resnet", 32, "ttq"),
    ],
)
def test_same_gradients(name: str, size: int, ternary: Any) -> None:
    torch.manual_seed(0)
    model = ternarize_(timm.create_model(name, num_classes=5), TernaryConfig.of(ternary)).double()
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    loss, expected = gradients(model.train(), images, project=False)
    same, found = gradients(model, images, project=True)
    assert torch.equal(loss, same)
    largest = max(value.abs().max() for value in expected)
    assert largest > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-11 * float(largest))


@pytest.mark.parametrize("unit", [2.0**-80, 1.0, 2.0**80])
def test_weights_whose_squares_are_no_float32(unit: float) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False))
    with torch.no_grad():
        layers[1].weight.mul_(unit)
    model = ternarize_(layers, TernaryConfig())
    images = torch.randn(4, 6)
    layers_of = [model[0], model[1]]
    threshold = quantizer_of(model[1]).threshold
    found = []
    for context in (nullcontext(), projected(layers_of)):
        with quantized_once(layers_of), context:
            loss = (model(images) / unit).square().mean()
            found.append(torch.autograd.grad(loss, threshold)[0] * unit)
    assert found[0].abs() > 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=0)


class Reads(nn.Module):
    """Calls a layer twice, reads its weight, and works in place on what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.shared = nn.Linear(6, 6)
        self.strange = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(self.first(x)), inplace=True)
        x = self.shared(x).add_(1) + F.linear(x, self.shared.weight)
        return self.strange(x.view(-1, 1, 2, 3)).flatten(1)


def test_layers_that_are_shared_and_read() -> None:
    torch.manual_seed(0)
    model = ternarize_(Reads(), TernaryConfig()).double()
    images = torch.randn(5, 6, dtype=torch.float64)
    (_, expected), (_, found) = (gradients(model, images, project) for project in (False, True))
    assert all(value.abs() > 1e-6 for value in expected)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


class Keyword(nn.Module):
    """Calls a layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(input=self.first(input=x))


def test_layers_that_are_called_by_keyword() -> None:
    model = ternarize_(Keyword(), TernaryConfig()).double()
    images = torch.randn(5, 4, dtype=torch.float64)
    (_, expected), (_, found) = (gradients(model, images, project) for project in (False, True))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_halves_neither_overflow_nor_vanish() -> None:
    x = torch.full((4, 8), 100.0, dtype=torch.float16, requires_grad=True)
    weight = torch.full((2, 3), 1e-4, dtype=torch.float16, requires_grad=True)
    out = projection._Projected.apply(x, weight)
    (found,) = torch.autograd.grad(out, weight, torch.full_like(out, 2000.0))
    # <grad, x> q / <q, q> is beyond what half precision holds: infinite, neither NaN nor 0.
    assert bool((found == torch.inf).all())
    weight = torch.full((2, 3), 2e-4, requires_grad=True)
    (found,) = torch.autograd.grad(
        projection._Projected.apply(x, weight), weight, torch.full_like(x, 2000.0)
    )
    torch.testing.assert_close(
        found, torch.full((2, 3), 4 * 8 * 2e5 / (6 * 2e-4)), rtol=1e-3, atol=0
    )


def test_weights_of_zeros_have_gradient_zero() -> None:
    model = ternarize_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), TernaryConfig())
    with torch.no_grad():
        model[1].parametrizations.weight.original.zero_()
    _, found = gradients(model, torch.randn(3, 4), project=True)
    assert [float(value) for value in found] == [0.0, 0.0]


def test_layers_are_left_as_they_came() -> None:
    model = small_net()
    layers = [model.get_submodule(name) for name in quantizers_of(model)]
    with pytest.raises(RuntimeError), projected(layers):
        assert all("forward" in vars(layer) for layer in layers)
        raise RuntimeError
    assert not any("forward" in vars(layer) for layer in layers)


def test_only_what_moves_through_one_scale_is_projected() -> None:
    def first(ternary: Any) -> nn.Module:
        return small_net(ternary).first

    assert has_one_scale(first("tga"))
    assert not has_one_scale(first({"method": "tga", "granularity": "channel"}))
    assert not has_one_scale(first("ttq"))  # two scales
    assert not has_one_scale(first("admm"))  # trains on something else
    assert not has_one_scale(first(None))
    soft = first("tga")
    quantizer_of(soft).soften(10.0)
    assert not has_one_scale(soft)  # moves with its thresholds on a slope
    quantizer_of(soft).soften(None)
    assert has_one_scale(soft)

    class Own(nn.Linear):
        """May do anything with its weight."""

    assert not has_one_scale(ternarize_(nn.Sequential(Own(2, 2)), TernaryConfig())[0])


def test_the_trainer_spares_the_gradients_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    backward = projection._Projected.backward

    def spy(ctx: Any, grad: Tensor) -> Any:
        nonlocal calls
        calls += 1
        return backward(ctx, grad)

    monkeypatch.setattr(projection._Projected, "backward", staticmethod(spy))
    run = trainer(tmp_path, num_train_epochs=1)
    run.train()
    assert calls == 10 * 2  # all layers but the first, in the pass of the thresholds only
