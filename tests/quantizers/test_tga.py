"""tga against formulas that share no code with it: scipy's distribution, numpy, differences."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import norm

from timm_ternary.quantizers import TGA
from timm_ternary.quantizers.gaussian import row_moments, truncated_scale
from timm_ternary.quantizers.tga import inverse_mills, tga

ALPHAS = np.linspace(0.0, 2.9999, 400)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def mills(alpha):
    """phi / (1 - Phi), from scipy's density and survival function."""
    return norm.pdf(alpha) / norm.sf(alpha)


def draw(*shape, dtype=torch.float64, mean=0.02, std=0.3, seed=0):
    values = np.random.default_rng(seed).normal(mean, std, shape)
    return torch.from_numpy(values).to(dtype)


def at(weight, threshold, **options):
    """A quantizer whose threshold is set."""
    quantizer = TGA(weight, **options)
    with torch.no_grad():
        quantizer.threshold.copy_(torch.as_tensor(threshold, dtype=torch.float64))
    return quantizer


def reference(weight, threshold):
    """Equations 9 to 11 for one group, in numpy float64: S, codes, clipped threshold."""
    w = weight.detach().numpy().astype(np.float64)
    mean, std = w.mean(), w.std(ddof=1)
    clipped = min(abs(float(threshold)), 3 * std)
    scale = mean + std * mills(clipped / std)
    codes = np.where(w > mean + clipped, 1, np.where(w < mean - clipped, -1, 0))
    return scale, codes, clipped


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_scale_and_its_slope_over_the_whole_range(dtype):
    # One channel a value of alpha: the same weights, 400 thresholds.
    weight = draw(200, dtype=dtype)
    weight[0] = 2.0  # beyond 3 sigma: a code other than 0 at every alpha
    weight = weight.expand(len(ALPHAS), 200).contiguous()
    w = weight[0].numpy().astype(np.float64)
    mean, std = w.mean(), w.std(ddof=1)
    quantizer = at(weight, torch.from_numpy(ALPHAS * std), granularity="channel")
    alpha = quantizer.threshold.detach().numpy().astype(np.float64) / std
    expected = mean + std * mills(alpha)
    slope = mills(alpha) * (mills(alpha) - alpha)

    got = quantizer.encode(weight).pos[0].numpy()
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE[dtype])

    # With L = sum q t, dL/dS is the number of nonzero codes.
    codes = quantizer.encode(weight).codes[0].to(dtype)
    (quantizer(weight) * codes).sum().backward()
    got = (quantizer.threshold.grad / codes.abs().sum(1)).numpy()
    np.testing.assert_allclose(got, slope, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_inverse_mills_far_into_the_tail(dtype):
    alpha = torch.linspace(-5, 30, 500, dtype=dtype, requires_grad=True)
    a = alpha.detach().numpy().astype(np.float64)
    expected = np.exp(norm.logpdf(a) - norm.logsf(a))
    value = inverse_mills(alpha)
    value.sum().backward()
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=TOLERANCE[dtype])
    if dtype == torch.float64:  # lambda - alpha cancels in the tail
        np.testing.assert_allclose(alpha.grad.numpy(), expected * (expected - a), rtol=1e-8)
        assert torch.autograd.gradcheck(inverse_mills, alpha[::50].detach().requires_grad_())


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("shape", [(6, 40), (6, 5, 3, 3)])
@pytest.mark.parametrize("mean", [0.0, 0.3, -0.05])
def test_forward_is_equations_9_to_11(shape, granularity, mean):
    weight = draw(*shape, mean=mean)
    quantizer = TGA(weight, granularity=granularity, init_factor=0.15)
    groups = weight if granularity == "channel" else weight[None]
    sizes = groups.flatten(1).abs().amax(1)
    np.testing.assert_allclose(quantizer.threshold.detach(), 0.15 * sizes, rtol=1e-15)
    quantized = quantizer(weight).detach().view(groups.shape)
    for w, q, size in zip(groups, quantized, sizes, strict=True):
        scale, codes, _ = reference(w, 0.15 * size)
        np.testing.assert_allclose(q.numpy(), scale * codes, rtol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_gradients_are_equations_14_and_15(granularity, sign):
    weight = draw(5, 60).requires_grad_()
    groups = 5 if granularity == "channel" else 1
    quantizer = at(weight, sign * torch.linspace(0.1, 0.5, groups), granularity=granularity)
    upstream = draw(5, 60, seed=1)
    quantizer(weight).backward(upstream)
    assert torch.equal(weight.grad, upstream)
    rows, grads = weight.view(groups, -1), upstream.view(groups, -1).numpy()
    for group, threshold in enumerate(quantizer.threshold.tolist()):
        _, codes, clipped = reference(rows[group], threshold)
        alpha = clipped / rows[group].std().item()
        slope = mills(alpha) * (mills(alpha) - alpha) * sign
        expected = (grads[group] * codes).sum() * slope
        np.testing.assert_allclose(quantizer.threshold.grad[group], expected, rtol=1e-10)


def test_threshold_gradient_is_the_difference_quotient_of_the_scale():
    weight, upstream = draw(4, 50), draw(4, 50, seed=1)
    quantizer = at(weight, 0.2)
    quantizer(weight).backward(upstream)
    codes = quantizer.encode(weight).codes[0].numpy()
    step = 1e-6
    slope = (reference(weight, 0.2 + step)[0] - reference(weight, 0.2 - step)[0]) / (2 * step)
    expected = (upstream.numpy() * codes).sum() * slope
    np.testing.assert_allclose(quantizer.threshold.grad, [expected], rtol=1e-8)


def test_without_gradient_correctness_the_weight_gradient_is_times_the_scale():
    weight, upstream = draw(5, 60).requires_grad_(), draw(5, 60, seed=1)
    quantizer = at(weight, 0.2, gradient_correctness=False)
    quantizer(weight).backward(upstream)
    scale, _, _ = reference(weight, 0.2)
    np.testing.assert_allclose(weight.grad, scale * upstream, rtol=1e-12)
    correct = at(weight, 0.2)
    correct(weight.detach()).backward(upstream)
    assert torch.equal(quantizer.threshold.grad, correct.threshold.grad)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.7, 5.0])  # the last is clipped at 3 sigma
def test_stats_grad_adds_the_derivative_of_the_scale_through_the_moments(threshold):
    weight, upstream = draw(3, 8).requires_grad_(), draw(3, 8, seed=1)
    quantizer = at(weight, threshold, stats_grad=True)
    codes = quantizer.encode(weight).codes[0].double()
    scale = quantizer.quantize_bases(quantizer.rows(weight))[0].pos.sum()
    (through_scale,) = torch.autograd.grad(scale, weight)
    quantizer(weight).backward(upstream)
    expected = upstream + (upstream * codes).sum() * through_scale
    np.testing.assert_allclose(weight.grad, expected, rtol=1e-12)

    step, base = 1e-6, weight.detach()
    for index in np.ndindex(3, 8):
        nudge = torch.zeros_like(base)
        nudge[index] = step
        difference = reference(base + nudge, threshold)[0] - reference(base - nudge, threshold)[0]
        np.testing.assert_allclose(through_scale[index], difference / (2 * step), atol=1e-8)


def test_by_default_no_gradient_flows_through_the_moments():
    weight = draw(3, 8).requires_grad_()
    scale = at(weight, 0.2).quantize_bases(weight.view(1, -1))[0].pos
    assert torch.autograd.grad(scale.sum(), weight, allow_unused=True) == (None,)


def test_beyond_3_sigma_the_scale_is_constant_and_its_gradient_zero():
    weight = draw(400, std=0.3)
    weight[:3] = 5.0  # beyond 3 sigma, so that codes other than 0 carry a gradient
    std = weight.std().item()
    inside = at(weight, 2.9 * std).encode(weight).pos.item()
    scales = set()
    for factor in (3.001, 3.5, 10.0, -4.0, 1e6):
        quantizer = at(weight, factor * std)
        code = quantizer.encode(weight)
        assert code.zeros < 1
        scales.add(code.pos.item())
        quantizer(weight).sum().backward()
        assert quantizer.threshold.grad.item() == 0.0
    assert len(scales) == 1
    np.testing.assert_allclose(scales.pop(), reference(weight, 3 * std)[0], rtol=1e-12)
    assert inside < reference(weight, 3 * std)[0]


def test_only_the_magnitude_of_the_threshold_counts():
    weight = draw(4, 50)
    plus, minus = at(weight, 0.25), at(weight, -0.25)
    assert torch.equal(plus(weight), minus(weight))
    plus(weight).abs().sum().backward()
    minus(weight).abs().sum().backward()
    assert plus.threshold.grad.item() > 0
    assert torch.equal(minus.threshold.grad, -plus.threshold.grad)


def test_a_threshold_of_zero_has_the_gradient_of_plus():
    weight = draw(4, 50)
    quantizer = at(weight, 0.0)
    quantizer(weight).abs().sum().backward()
    # dS/dd = l(0)^2 = 2 / pi, and every code is nonzero.
    np.testing.assert_allclose(quantizer.threshold.grad, [200 * 2 / np.pi], rtol=1e-12)


ZERO_CHANNEL = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
ZERO_CHANNEL[1] = 0
DEGENERATE = {
    "zeros": torch.zeros(4, 3, 3, 3),
    "constant": torch.full((4, 7), 0.3),
    "negative": torch.full((4, 7), -1e-3),
    "tiny": torch.full((4, 7), 1e-30),
    "one": torch.tensor([[0.7]]),
    "one_zero": torch.zeros(1, 1, 1, 1),
    "depthwise_1x1": torch.tensor([0.5, -0.25, 0.0]).view(3, 1, 1, 1),
    "zero_channel": ZERO_CHANNEL,
    "no_channels": torch.zeros(0, 3),
    "empty_channels": torch.zeros(3, 0),
}


@pytest.mark.parametrize("stats_grad", [False, True])
@pytest.mark.parametrize("gradient_correctness", [False, True])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_layers_give_finite_values_and_gradients(
    case, granularity, gradient_correctness, stats_grad
):
    weight = DEGENERATE[case].clone().requires_grad_()
    quantizer = TGA(
        weight,
        granularity=granularity,
        gradient_correctness=gradient_correctness,
        stats_grad=stats_grad,
    )
    quantized = quantizer(weight)
    assert quantized.shape == weight.shape
    assert torch.equal(quantized, quantizer.encode(weight).decode())
    assert torch.isfinite(quantized).all()
    quantized.sum().backward()
    assert torch.isfinite(weight.grad).all()
    if weight.numel():
        assert torch.isfinite(quantizer.threshold.grad).all()


@pytest.mark.parametrize("value", [0.3, -1e-3, 1e-30, 7.0, 0.1])
@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_equal_weights_are_represented_exactly(value, count):
    weight = torch.full((2, count), value)
    for granularity in ("layer", "channel"):
        quantizer = TGA(weight, granularity=granularity)
        assert torch.equal(quantizer(weight), weight)
        quantizer(weight).sum().backward()
        assert torch.count_nonzero(quantizer.threshold.grad) == 0


def test_a_channel_of_zeros_leaves_its_neighbours_alone():
    others = [0, 2, 3]
    quantized = TGA(ZERO_CHANNEL, granularity="channel")(ZERO_CHANNEL)
    assert torch.count_nonzero(quantized[1]) == 0
    alone = ZERO_CHANNEL[others]
    assert torch.equal(quantized[others], TGA(alone, granularity="channel")(alone))


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_have_float32_statistics(dtype, granularity):
    weight = draw(8, 64, dtype=dtype)
    half, single = (TGA(w, granularity=granularity) for w in (weight, weight.float()))
    assert half.threshold.dtype == torch.float32
    assert torch.equal(half.threshold, single.threshold)
    assert half(weight).dtype == dtype
    assert torch.equal(half(weight), single(weight.float()).to(dtype))
    assert torch.equal(half.encode(weight).pos, single.encode(weight.float()).pos)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_several_bases_are_a_sum_of_tgas(granularity):
    weight, upstream = draw(5, 60).requires_grad_(), draw(5, 60, seed=1)
    factors = [0.4, 0.05, 0.15]
    together = TGA(weight, granularity=granularity, init_factor=factors)
    quantized = together(weight)
    quantized.backward(upstream)
    expected, gradients = torch.zeros_like(weight), []
    for factor in factors:
        alone = TGA(weight, granularity=granularity, init_factor=factor)
        term = alone(weight.detach())
        term.backward(upstream)
        expected, gradients = expected + term, [*gradients, alone.threshold.grad]
    assert together.bases == together.encode(weight).bases == 3
    assert torch.equal(quantized, expected)
    assert torch.equal(together.threshold.grad, torch.cat(gradients))
    assert torch.equal(weight.grad, upstream + upstream + upstream)


def test_equal_weights_are_represented_exactly_by_several_bases():
    weight = torch.tensor([[0.3, 0.3, 0.3], [-0.1, -0.1, -0.1], [0.0, 0.0, 0.0]])
    quantizer = TGA(weight, granularity="channel", init_factor=[0.1, 0.2, 0.3])
    assert torch.equal(quantizer(weight), weight)
    code = quantizer.encode(weight)
    assert torch.equal(quantizer.encode(quantizer.restore(code)).decode(), weight)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("factors", [[0.05, 0.1], [0.4, 0.1]])
def test_two_bases_of_bell_shaped_weights_are_restored(factors, granularity):
    weight = draw(16, 2000, dtype=torch.float32, mean=0.001)
    code = TGA(weight, granularity=granularity, init_factor=factors).encode(weight)
    fresh = TGA(torch.zeros(16, 2000), granularity=granularity, init_factor=factors)
    again = fresh.encode(fresh.restore(code))
    assert torch.equal(again.codes, code.codes)
    torch.testing.assert_close(again.pos, code.pos, rtol=1e-6, atol=0)


def test_more_bases_of_bell_shaped_weights_are_restored_with_their_codes():
    weight = draw(16, 2000, dtype=torch.float32, mean=0.001)
    factors = [0.05, 0.1, 0.15, 0.2]
    code = TGA(weight, init_factor=factors).encode(weight)
    fresh = TGA(torch.zeros(16, 2000), init_factor=factors)
    again = fresh.encode(fresh.restore(code))
    assert torch.equal(again.codes, code.codes)
    torch.testing.assert_close(again.pos, code.pos, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    "value", [-0.1, float("inf"), float("nan"), "0.1", None, True, [], [0.1, -1]]
)
def test_a_bad_init_factor_is_named(value):
    with pytest.raises(ValueError, match=rf"init_factor must be .*got {re.escape(repr(value))}"):
        TGA(torch.ones(2, 2), init_factor=value)


@pytest.mark.parametrize("key", ["gradient_correctness", "stats_grad"])
@pytest.mark.parametrize("value", ["false", 0, None])
def test_a_flag_is_a_bool(key, value):
    with pytest.raises(ValueError, match=f"{key} must be true or false, got {value!r}"):
        TGA(torch.ones(2, 2), **{key: value})


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("mean", [0.0, 0.05, -1.0, -3e-6])
@pytest.mark.parametrize("count", [2, 3, 16, 61])
def test_restore_gives_back_every_scale_to_the_last_bit(count, mean, factor):
    # Few nonzero codes, none at all, and scales below zero: where the threshold's steps are coarse.
    rng = np.random.default_rng(count)
    values = rng.normal(size=(500, count)) * abs(mean or 1.0) * rng.choice([0.1, 1, 10], (500, 1))
    weight = torch.from_numpy(values + mean).float()
    code = TGA(weight, granularity="channel", init_factor=factor).encode(weight)
    fresh = TGA(torch.zeros(500, count), granularity="channel")
    again = fresh.encode(fresh.restore(code))
    assert torch.equal(again.codes, code.codes)
    assert torch.equal(again.pos, code.pos)


@pytest.mark.parametrize("scale", [1.0, 1e-38])
def test_codes_are_those_of_the_comparisons(scale: float) -> None:
    # Weights next to the thresholds; at 1e-38 their differences are subnormal.
    rows = scale * torch.randn(1, 999, generator=torch.Generator().manual_seed(0))
    threshold = TGA(rows).threshold.view(-1, 1)
    moments = row_moments(rows)
    clipped = truncated_scale(threshold, moments.mean, moments.std)[1]
    high, low = (moments.mean + clipped).float(), (moments.mean - clipped).float()
    for bound in (high, low):
        for end in (-math.inf, math.inf):
            rows = torch.cat([rows, bound, bound.nextafter(torch.full_like(bound, end))], 1)
    expected = (rows > high).float() - (rows < low).float()
    moments = moments._replace(flat=moments.mean > moments.mean)
    assert torch.equal(tga(rows, threshold, moments).codes, expected)
