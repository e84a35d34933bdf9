"""ttq against its formulas in numpy, and its scales' gradients against differences."""

import math

import numpy as np
import pytest
import torch

from timm_ternary.quantizers import TTQ

RULES = [{}, {"t": 0.3}, {"t": 0}, {"sparsity": 0.5}, {"sparsity": 0.0}, {"sparsity": 0.9}]


def draw(*shape, dtype=torch.float64, mean=0.02, std=0.3, seed=0):
    values = np.random.default_rng(seed).normal(mean, std, shape)
    return torch.from_numpy(values).to(dtype)


def with_scales(weight, pos, neg, **options):
    quantizer = TTQ(weight, **options)
    with torch.no_grad():
        quantizer.scale_pos.copy_(torch.as_tensor(pos, dtype=torch.float64))
        quantizer.scale_neg.copy_(torch.as_tensor(neg, dtype=torch.float64))
    return quantizer


def reference_threshold(w, t=0.05, sparsity=None):
    """Either rule of the paper, for one group: t max|w|, or the r-th quantile by sorting."""
    size = np.abs(w).ravel()
    if sparsity is None:
        return t * size.max()
    zeros = round(sparsity * size.size)
    return np.sort(size)[zeros - 1] if zeros else 0.0


def reference(w, pos, neg, **rule):
    """q, codes and unit of one group in numpy."""
    threshold = reference_threshold(w, **rule)
    codes = np.where(w > threshold, 1, np.where(w < -threshold, -1, 0))
    unit = np.abs(w)[codes != 0].mean()
    return np.where(codes > 0, pos * unit, np.where(codes < 0, -neg * unit, 0)), codes, unit


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("shape", [(5, 40), (4, 3, 3, 3)])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_forward_is_the_formula(shape, granularity, rule):
    weight = draw(*shape)
    groups = weight.numpy() if granularity == "channel" else weight.numpy()[None]
    pos, neg = np.linspace(0.8, 1.3, len(groups)), np.linspace(1.2, 0.7, len(groups))
    quantizer = with_scales(weight, pos, neg, granularity=granularity, **rule)
    quantized = quantizer(weight).detach().numpy().reshape(groups.shape)
    code = quantizer.encode(weight)
    for i, group in enumerate(groups):
        expected, _, unit = reference(group, pos[i], neg[i], **rule)
        np.testing.assert_allclose(quantized[i], expected, rtol=1e-12)
        np.testing.assert_allclose(quantizer.unit[i], unit, rtol=1e-12)
        np.testing.assert_allclose(code.pos[0, i], pos[i] * unit, rtol=1e-12)
        np.testing.assert_allclose(code.neg[0, i], neg[i] * unit, rtol=1e-12)


def test_scales_start_at_one_and_the_default_threshold_is_the_papers():
    weight = draw(5, 40)
    quantizer = TTQ(weight)
    assert (quantizer.scale_pos.tolist(), quantizer.scale_neg.tolist()) == ([1.0], [1.0])
    expected, _, _ = reference(weight.numpy(), 1, 1, t=0.05)
    np.testing.assert_allclose(quantizer(weight).detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("rule", [{"t": 0.2}, {"sparsity": 0.4}], ids=str)
def test_all_three_gradients_are_the_formulas(granularity, rule):
    weight, upstream = draw(5, 40).requires_grad_(), draw(5, 40, seed=1)
    groups = 5 if granularity == "channel" else 1
    quantizer = with_scales(weight, 1.3, 0.6, granularity=granularity, **rule)
    quantizer(weight).backward(upstream)
    w, g = (x.detach().view(groups, -1).numpy() for x in (weight, upstream))
    for i in range(groups):
        _, codes, unit = reference(w[i], 1.3, 0.6, **rule)
        slope = np.choose(codes + 1, [0.6, 1.0, 1.3])
        np.testing.assert_allclose(weight.grad.view(groups, -1)[i], slope * g[i], rtol=1e-12)
        pos, neg = unit * g[i][codes > 0].sum(), -unit * g[i][codes < 0].sum()
        np.testing.assert_allclose(quantizer.scale_pos.grad[i], pos, rtol=1e-10)
        np.testing.assert_allclose(quantizer.scale_neg.grad[i], neg, rtol=1e-10)


@pytest.mark.parametrize("name", ["scale_pos", "scale_neg"])
@pytest.mark.parametrize("start", [0.7, -0.7])
def test_scale_gradients_are_difference_quotients(name, start):
    weight, upstream = draw(4, 30), draw(4, 30, seed=1)
    quantizer = with_scales(weight, start, start)
    scale = getattr(quantizer, name)

    def loss():
        return (torch.tanh(quantizer(weight)) * upstream).sum()

    loss().backward()
    step, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            scale.fill_(start + sign * step)
            values.append(loss().item())
    difference = (values[0] - values[1]) / (2 * step)
    assert abs(difference) > 1e-3
    np.testing.assert_allclose(scale.grad.item(), difference, rtol=1e-7)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.777, 0.99])
def test_the_fraction_of_zeros_is_held_exactly(sparsity, granularity):
    # Distinct magnitudes of both signs; a step of training moves them, the fraction stays.
    weight = torch.randperm(12 * 25, generator=torch.Generator().manual_seed(0)).view(12, 25) + 1.0
    weight[:, ::2] *= -1
    quantizer = TTQ(weight, granularity=granularity, sparsity=sparsity)
    for scaled in (weight, weight**3):
        zeros = (quantizer.encode(scaled).codes[0] == 0).flatten(1).sum(1)
        if granularity == "channel":
            assert zeros.tolist() == [round(sparsity * 25)] * 12
        assert granularity == "channel" or zeros.sum() == round(sparsity * 300)


def test_values_stay_positive_whatever_the_parameters_sign():
    weight = draw(4, 50)
    quantizer = with_scales(weight, -0.5, -2.0)
    same = with_scales(weight, 0.5, 2.0)
    code = quantizer.encode(weight)
    assert code.pos.item() > 0 and code.neg.item() > 0
    assert torch.equal(quantizer(weight), same(weight))
    quantizer(weight).abs().sum().backward()
    same(weight).abs().sum().backward()
    assert torch.equal(quantizer.scale_pos.grad, -same.scale_pos.grad)
    assert torch.equal(quantizer.scale_neg.grad, -same.scale_neg.grad)


def test_a_scale_of_zero_has_the_gradient_of_plus():
    weight = draw(4, 50)
    quantizer = with_scales(weight, 0.0, 0.0)
    upstream = weight.sign()
    quantizer(weight).backward(upstream)
    _, codes, unit = reference(weight.numpy(), 1, 1)
    np.testing.assert_allclose(quantizer.scale_pos.grad, [unit * (codes > 0).sum()], rtol=1e-12)
    np.testing.assert_allclose(quantizer.scale_neg.grad, [unit * (codes < 0).sum()], rtol=1e-12)


def test_the_unit_is_a_constant_of_training():
    weight = draw(4, 50)
    quantizer = TTQ(weight)
    unit = quantizer.unit.clone()
    assert "unit" in quantizer.state_dict()
    assert {name for name, _ in quantizer.named_parameters()} == {"scale_pos", "scale_neg"}
    quantizer(weight * 3)
    assert torch.equal(quantizer.unit, unit)
    quantizer.reset(weight * 3)
    np.testing.assert_allclose(quantizer.unit, 3 * unit, rtol=1e-12)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (1, 1), (3, 1, 1, 1), (0, 3), (3, 0)])
def test_weights_of_zero_or_nothing_stay_finite(shape, rule, granularity):
    weight = torch.zeros(shape, requires_grad=True)
    quantizer = TTQ(weight, granularity=granularity, **rule)
    if weight.numel():
        assert torch.allclose(quantizer.unit, torch.tensor(1 / math.sqrt(weight[0].numel())))
    quantized = quantizer(weight)
    quantized.sum().backward()
    assert quantized.shape == shape
    assert torch.count_nonzero(quantized) == 0
    # Zeros pass the gradient on unchanged (slope 1): they can leave 0.
    assert torch.equal(weight.grad, torch.ones(shape))


@pytest.mark.parametrize("key", ["t", "sparsity"])
@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan"), "half"])
def test_fractions_out_of_range_are_named(key, value):
    with pytest.raises(ValueError, match=rf"{key} must be a number from 0 .*got {value!r}"):
        TTQ(torch.ones(2, 2), **{key: value})
