"""bitnet against its formula in numpy."""

import numpy as np
import pytest
import torch

from timm_ternary.quantizers import BitNet


def reference(w):
    """S = mean|w|; q = S clip(round(w / S), -1, 1), in float64."""
    w = w.astype(np.float64)
    scale = np.abs(w).mean()
    return scale * np.clip(np.round(w / scale), -1, 1)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-7)])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("shape", [(5, 40), (4, 3, 3, 3), (6, 1, 1, 1)])
def test_forward_is_the_formula(shape, granularity, dtype, rtol):
    weight = torch.from_numpy(np.random.default_rng(0).normal(0.01, 0.2, shape)).to(dtype)
    quantized = BitNet(weight, granularity=granularity)(weight).numpy()
    groups = weight.numpy() if granularity == "channel" else weight.numpy()[None]
    expected = np.stack([reference(group) for group in groups]).reshape(shape)
    np.testing.assert_allclose(quantized, expected, rtol=rtol)


def test_halves_are_rounded_to_zero():
    weight = torch.tensor([[0.5, -0.5, 1.5, -1.5]])  # mean|w| = 1
    assert BitNet(weight)(weight).tolist() == [[0, 0, 1, -1]]


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_the_gradient_passes_straight_through(granularity):
    weight = torch.randn(4, 3, 3, 3).requires_grad_()
    upstream = torch.randn(4, 3, 3, 3)
    quantizer = BitNet(weight, granularity=granularity)
    quantizer(weight).backward(upstream)
    assert torch.equal(weight.grad, upstream)
    assert list(quantizer.parameters()) == []


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_zeros_stay_zeros_and_equal_weights_exact(granularity):
    for value in (0.0, 0.3, -0.1):
        weight = torch.full((3, 7), value)
        assert torch.equal(BitNet(weight, granularity=granularity)(weight), weight)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("nonzero", [1, 2, 3, 100, 49_999, 50_000])
def test_restore_gives_back_any_scale_to_the_last_bit(nonzero, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(1, 50_000)
    weight[0, :nonzero] = 0.7 + 0.2 * torch.rand(nonzero, generator=generator)
    weight[0, ::2] *= -1
    quantizer = BitNet(weight)
    code = quantizer.encode(weight)
    assert torch.count_nonzero(code.codes) == nonzero
    again = quantizer.encode(quantizer.restore(code))
    assert torch.equal(again.codes, code.codes) and torch.equal(again.pos, code.pos)
