"""abcnet against its formula in numpy."""

import numpy as np
import pytest
import torch

from timm_ternary.quantizers import ABCNet


def reference(w, bases):
    """Binary tensors and least squares by numpy's lstsq (least norm), in float64."""
    shape, w = w.shape, w.astype(np.float64).ravel()
    shifts = [-1 + 2 * i / (bases - 1) for i in range(bases)] if bases > 1 else [0.0]
    std = w.std(ddof=1) if w.size > 1 else 0.0
    signs = np.stack([np.where(w - w.mean() + u * std >= 0, 1.0, -1.0) for u in shifts], 1)
    scales = np.linalg.lstsq(signs, w, rcond=1e-10)[0]
    return (signs @ scales).reshape(shape), signs, scales


@pytest.mark.parametrize("bases", [1, 2, 3, 5])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("shape", [(5, 40), (4, 3, 3, 3)])
def test_forward_is_the_formula(shape, granularity, dtype, rtol, bases):
    weight = torch.from_numpy(np.random.default_rng(0).normal(0.01, 0.2, shape)).to(dtype)
    quantizer = ABCNet(weight, granularity=granularity, bases=bases)
    code = quantizer.encode(weight)
    groups = weight.numpy() if granularity == "channel" else weight.numpy()[None]
    for i, group in enumerate(groups):
        value, signs, scales = reference(group, bases)
        got = quantizer(weight).view(len(groups), *group.shape)[i]
        np.testing.assert_allclose(got.numpy(), value, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(code.pos[:, i].numpy(), scales, rtol=rtol, atol=rtol)
        codes = code.codes.view(bases, len(groups), -1)[:, i]
        np.testing.assert_array_equal(codes.numpy().T, signs)


def test_more_bases_fit_better():
    weight = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    errors = [(ABCNet(weight, bases=m)(weight) - weight).square().mean().item() for m in (1, 3, 5)]
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.4 * errors[0]


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_the_gradient_passes_through_each_base_by_its_scale(granularity):
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    quantizer = ABCNet(weight, granularity=granularity)
    quantizer(weight).backward(upstream)
    slope = quantizer.encode(weight).pos.sum(0).view(-1, 1, 1, 1)
    torch.testing.assert_close(weight.grad, slope * upstream)


@pytest.mark.parametrize("bases", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_bases_that_coincide_share_the_scale(granularity, bases):
    for value in (0.0, 0.3, -0.1):
        weight = torch.full((3, 7), value)
        quantizer = ABCNet(weight, granularity=granularity, bases=bases)
        torch.testing.assert_close(quantizer(weight), weight)
        scales = quantizer.encode(weight).pos
        torch.testing.assert_close(scales, torch.full_like(scales, value / bases))
    weight = torch.tensor([[1.0, -1.0]])  # every base is sign(w): std < max|w| fails, but 5 levels
    assert torch.isfinite(ABCNet(weight, bases=bases)(weight)).all()


def test_one_nearly_coinciding_base_in_a_large_layer():
    weight = torch.ones(1, 100_000)
    weight[0, ::2] = -1
    weight[0, 0] = 0.3
    value, _, _ = reference(weight.numpy(), 3)
    np.testing.assert_allclose(ABCNet(weight)(weight).numpy(), value, atol=1e-6)


@pytest.mark.parametrize("bases", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("mean", [0.0, 0.01, -0.05, 0.3])
@pytest.mark.parametrize("shape", [(16, 64), (64, 32, 3, 3)])
def test_usual_layers_are_restored_to_rounding(shape, mean, bases):
    weight = 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(bases)) + mean
    quantizer = ABCNet(weight, bases=bases)
    code = quantizer.encode(weight)
    again = quantizer.encode(quantizer.restore(code))
    assert torch.equal(again.codes, code.codes)
    atol = 1e-6 * weight.abs().max().item()
    torch.testing.assert_close(again.decode(), code.decode(), rtol=1e-6, atol=atol)


@pytest.mark.parametrize("value", [0, 9, 2.0, True, "2"])
def test_bases_out_of_range(value):
    with pytest.raises(ValueError, match="bases must be an integer from 1 to 8, got"):
        ABCNet(torch.ones(2, 2), bases=value)
