"""admm against its formulas in numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from timm_ternary import pack_, ternarize_
from timm_ternary.nn.convert import quantizers_of
from timm_ternary.quantizers import ADMM


def project(v):
    """The alternating minimization of |v - a t|^2, in float64, until it stands still."""
    size = np.abs(v.astype(np.float64))
    scale, last = size.mean(), None
    while scale != last:
        beyond = size > scale / 2
        scale, last = (size[beyond].mean() if beyond.any() else 0.0), scale
    return scale * np.sign(v) * beyond


def draw(*shape, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(0).normal(0.01, 0.2, shape)).to(dtype)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("shape", [(5, 40), (4, 3, 3, 3), (6, 1, 1, 1)])
def test_the_projection_is_the_formula(shape, granularity, dtype, rtol):
    weight = draw(*shape, dtype=dtype)
    quantized = ADMM(weight, granularity=granularity).eval()(weight).numpy()
    groups = weight.numpy() if granularity == "channel" else weight.numpy()[None]
    expected = np.stack([project(group) for group in groups]).reshape(shape)
    np.testing.assert_allclose(quantized, expected, rtol=rtol)


def test_the_projection_is_a_minimum_of_its_alternation():
    weight = draw(1, 1000)
    code = ADMM(weight).encode(weight)
    scale = code.pos.item()
    error = (weight - code.decode()).square().sum()
    for factor in (0.97, 1.03):
        assert (weight - factor * code.decode()).square().sum() > error
    best = torch.stack([(weight - scale * t).square() for t in (-1, 0, 1)]).amin(0).sum()
    torch.testing.assert_close(error, best)


def test_training_runs_on_the_latent_weight_and_evaluation_on_the_projection():
    weight = draw(4, 9).requires_grad_()
    quantizer = ADMM(weight)
    assert torch.equal(quantizer(weight), weight)
    quantizer.eval()
    upstream = draw(4, 9)
    quantizer(weight).backward(upstream)
    assert torch.equal(weight.grad, upstream)
    assert len(quantizer(weight).unique()) == 3


def test_penalty_and_refresh_are_the_formulas():
    start = draw(4, 9)
    quantizer = ADMM(start, rho=0.3)
    target, dual = project(start.numpy()), np.zeros((4, 9))
    weight = start.clone().requires_grad_()
    for _ in range(4):
        penalty = quantizer.penalty(weight)
        w = weight.detach().numpy()
        np.testing.assert_allclose(penalty.item(), 0.15 * ((w - target + dual) ** 2).sum())
        (gradient,) = torch.autograd.grad(penalty, weight)
        np.testing.assert_allclose(gradient.numpy(), 0.3 * (w - target + dual), atol=1e-14)
        quantizer.eval()
        np.testing.assert_allclose(quantizer(weight).detach().numpy(), project(w + dual))
        with torch.no_grad():
            weight -= 0.5 * gradient
        quantizer.refresh(weight)
        w = weight.detach().numpy()
        target = project(w + dual)
        dual = dual + w - target
        np.testing.assert_allclose(quantizer.target.numpy(), target)
        np.testing.assert_allclose(quantizer.dual.numpy(), dual, atol=1e-14)


def test_the_penalty_alone_makes_the_weights_ternary():
    weight = draw(4, 50).requires_grad_()
    quantizer = ADMM(weight, rho=1.0)
    for _ in range(60):
        for _ in range(3):
            (gradient,) = torch.autograd.grad(quantizer.penalty(weight), weight)
            with torch.no_grad():
                weight -= 0.3 * gradient
        quantizer.refresh(weight)
    torch.testing.assert_close(weight, quantizer.encode(weight).decode(), atol=0.01, rtol=0)


def test_a_model_in_evaluation_mode_stays_there():
    torch.manual_seed(0)
    model = ternarize_(nn.Sequential(nn.Linear(20, 6)).eval(), "admm")
    x = torch.randn(3, 20)
    expected = model(x)
    assert len(model[0].weight.unique()) == 3
    assert torch.equal(model.train()[0].weight, model[0].parametrizations.weight.original)
    quantizers_of(model)["0"].refresh(model[0].parametrizations.weight.original)
    refreshed = model.eval()(x)
    assert not torch.equal(refreshed, expected)  # u moved
    assert torch.equal(pack_(model)(x), refreshed)


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), "1", True, None])
def test_rho_out_of_range(value):
    with pytest.raises(ValueError, match="rho must be a finite number >= 0"):
        ADMM(torch.ones(2, 2), rho=value)
