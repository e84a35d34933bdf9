"""bwn and dorefa against their formulas in numpy."""

import numpy as np
import pytest
import torch

from timm_ternary import TernaryConfig, quantizers
from timm_ternary.quantizers import BWN, DoReFa

both = pytest.mark.parametrize("cls", [BWN, DoReFa])


def reference(w):
    """mean|w| sign(w) with sign(0) = +1, in float64."""
    return np.abs(w.astype(np.float64)).mean() * np.where(w >= 0, 1, -1)


@both
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-7)])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("shape", [(5, 40), (4, 3, 3, 3), (6, 1, 1, 1)])
def test_forward_is_the_formula(cls, shape, granularity, dtype, rtol):
    weight = torch.from_numpy(np.random.default_rng(0).normal(0.01, 0.2, shape)).to(dtype)
    weight.view(-1)[1] = 0
    quantized = cls(weight, granularity=granularity)(weight).numpy()
    groups = weight.numpy() if granularity == "channel" else weight.numpy()[None]
    expected = np.stack([reference(group) for group in groups]).reshape(shape)
    np.testing.assert_allclose(quantized, expected, rtol=rtol)


def test_the_default_is_the_papers_granularity():
    weight = torch.randn(4, 9)
    for method, groups in (("bwn", 4), ("dorefa", 1)):
        assert quantizers.create(TernaryConfig(method), weight).groups == groups
        assert quantizers.create(TernaryConfig(method, "layer"), weight).groups == 1
        assert quantizers.create(TernaryConfig(method, "channel"), weight).groups == 4


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_the_gradient_passes_straight_through(granularity):
    weight = torch.tensor([[-1.5, -1.0, -0.3, 0.0], [0.2, 1.0, 1.001, 7.0]], requires_grad=True)
    upstream = torch.randn(2, 4)
    DoReFa(weight, granularity=granularity)(weight).backward(upstream)
    assert torch.equal(weight.grad, upstream)
    weight.grad = None
    BWN(weight, granularity=granularity)(weight).backward(upstream)
    assert torch.equal(weight.grad, upstream * torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]]))


@both
@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_no_code_is_zero(cls, granularity):
    weight = torch.randn(5, 30) * torch.tensor([0.0, 1, 1, -0.0, 1]).view(-1, 1)
    code = cls(weight, granularity=granularity).encode(weight)
    assert code.zeros == 0
    assert (code.codes[0, 0] == 1).all() and (code.codes[0, 3] == 1).all()
    for value in (0.0, 0.3, -0.1):
        equal = torch.full((3, 7), value)
        assert torch.equal(cls(equal, granularity=granularity)(equal), equal)
