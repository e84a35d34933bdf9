"""Every method under torch.func: grad, vmap over samples, and vmap over stacked models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from timm_ternary import TernaryConfig, quantizers, ternarize_

CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in quantizers.names()}
CASES |= {
    "tga of two bases": ("tga", {"init_factor": [0.05, 0.2]}),
    "tga, ablation": ("tga", {"gradient_correctness": False}),
    "tga, stats_grad": ("tga", {"stats_grad": True}),
    "ttq, sparsity": ("ttq", {"sparsity": 0.5}),
    "rel of three": ("rel", {"expansions": 3}),
}
SOFT = "tga, softened"
every_case = pytest.mark.parametrize("case", [*CASES, SOFT])
every_granularity = pytest.mark.parametrize("granularity", ["layer", "channel"])
IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3, 0])
State = dict[str, Tensor]


def build(case: str, granularity: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(96, 4)
    )
    method, options = CASES.get(case, ("tga", {}))
    ternarize_(model, TernaryConfig(method, granularity, options=options))
    for layer in model.modules():
        if isinstance(layer, quantizers.Quantizer) and case == SOFT:
            layer.soften(5.0)
    # admm quantizes in evaluation mode only.
    return model.eval() if case != SOFT else model


def loss_of(model: nn.Module) -> Callable[..., Tensor]:
    def loss(parameters: State, buffers: State, images: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(model, (parameters, buffers), (images,))
        return nn.functional.cross_entropy(logits, labels)

    return loss


def state(model: nn.Module) -> tuple[State, State]:
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return parameters, dict(model.named_buffers())


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> State:
    """autograd's own."""
    found = torch.autograd.grad(
        nn.functional.cross_entropy(model(images), labels), list(model.parameters())
    )
    return dict(zip(dict(model.named_parameters()), found, strict=True))


def assert_close(got: State, expected: State) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert any(torch.count_nonzero(value) for value in expected.values())


@every_granularity
@every_case
def test_grad_is_autograds(case: str, granularity: str) -> None:
    model = build(case, granularity)
    got = grad(loss_of(model))(*state(model), IMAGES, LABELS)
    expected = gradients(model, IMAGES, LABELS)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@every_granularity
@every_case
def test_vmap_gives_the_gradient_of_each_sample(case: str, granularity: str) -> None:
    model = build(case, granularity)
    loss = loss_of(model)

    def one(parameters: State, buffers: State, image: Tensor, label: Tensor) -> Tensor:
        return loss(parameters, buffers, image[None], label[None])

    got = vmap(grad(one), in_dims=(None, None, 0, 0))(*state(model), IMAGES, LABELS)
    for k in range(len(IMAGES)):
        expected = gradients(model, IMAGES[k : k + 1], LABELS[k : k + 1])
        assert_close({name: value[k] for name, value in got.items()}, expected)


@every_granularity
@every_case
def test_vmap_over_stacked_models(case: str, granularity: str) -> None:
    """An ensemble: the weights themselves are quantized under vmap."""
    models = [build(case, granularity, seed) for seed in range(3)]
    parameters, buffers = stack_module_state(models)
    parameters = {name: value.detach() for name, value in parameters.items()}
    model = copy.deepcopy(models[0])
    got = vmap(grad(loss_of(model)), in_dims=(0, 0, None, None))(
        parameters, buffers, IMAGES, LABELS
    )
    for k, single in enumerate(models):
        expected = gradients(single, IMAGES, LABELS)
        assert_close({name: value[k] for name, value in got.items()}, expected)


@pytest.mark.parametrize("case", CASES)
def test_vmap_over_the_weights_gives_the_same_values(case: str) -> None:
    weights = torch.randn(4, 6, 20, generator=torch.Generator().manual_seed(2))
    method, options = CASES[case]
    quantizer = quantizers.create(TernaryConfig(method, "channel", options=options), weights[0])
    quantizer.eval()
    got = vmap(quantizer)(weights)
    torch.testing.assert_close(got, torch.stack([quantizer(weight) for weight in weights]))
