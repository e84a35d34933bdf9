"""twn against its formula in numpy."""

import numpy as np
import pytest
import torch

from timm_ternary.quantizers import TWN


def reference(w):
    """D = 0.7 mean|w|; S = mean of |w| beyond D; q = S sign(w) [|w| > D], in float64."""
    size = np.abs(w.astype(np.float64))
    beyond = size > 0.7 * size.mean()
    return (size[beyond].mean() if beyond.any() else 0.0) * np.sign(w) * beyond


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-7)])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("shape", [(5, 40), (4, 3, 3, 3), (6, 1, 1, 1)])
def test_forward_is_the_formula(shape, granularity, dtype, rtol):
    weight = torch.from_numpy(np.random.default_rng(0).normal(0.01, 0.2, shape)).to(dtype)
    quantized = TWN(weight, granularity=granularity)(weight).numpy()
    groups = weight.numpy() if granularity == "channel" else weight.numpy()[None]
    expected = np.stack([reference(group) for group in groups]).reshape(shape)
    np.testing.assert_allclose(quantized, expected, rtol=rtol)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_the_gradient_passes_straight_through(granularity):
    weight = torch.randn(4, 3, 3, 3).requires_grad_()
    upstream = torch.randn(4, 3, 3, 3)
    quantizer = TWN(weight, granularity=granularity)
    quantizer(weight).backward(upstream)
    assert torch.equal(weight.grad, upstream)
    assert list(quantizer.parameters()) == []


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_zeros_stay_zeros_and_equal_weights_exact(granularity):
    for value in (0.0, 0.3, -0.1):
        weight = torch.full((3, 7), value)
        assert torch.equal(TWN(weight, granularity=granularity)(weight), weight)
