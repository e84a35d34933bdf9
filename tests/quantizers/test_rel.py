"""rel against its formula in numpy."""

import numpy as np
import pytest
import torch

from timm_ternary.quantizers import REL


def reference(w, expansions):
    """sum_k S_k sign(w) [|w| > f_k max|w|], S_k the mean of |w| there, in float64."""
    w = w.astype(np.float64)
    size, total = np.abs(w), np.zeros_like(w)
    for factor in (0.05, 0.1, 0.15, 0.2)[:expansions]:
        beyond = size > factor * size.max()
        total += (size[beyond].mean() if beyond.any() else 0) * np.sign(w) * beyond
    return total


@pytest.mark.parametrize("expansions", [1, 2, 3, 4])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("shape", [(5, 40), (4, 3, 3, 3), (6, 1, 1, 1)])
def test_forward_is_the_formula(shape, granularity, dtype, rtol, expansions):
    weight = torch.from_numpy(np.random.default_rng(0).normal(0.01, 0.2, shape)).to(dtype)
    quantizer = REL(weight, granularity=granularity, expansions=expansions)
    groups = weight.numpy() if granularity == "channel" else weight.numpy()[None]
    expected = np.stack([reference(group, expansions) for group in groups]).reshape(shape)
    np.testing.assert_allclose(quantizer(weight).numpy(), expected, rtol=rtol)
    assert quantizer.encode(weight).bases == quantizer.bases == expansions


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_the_gradient_passes_straight_through_each_term(granularity):
    weight = torch.randn(4, 3, 3, 3).requires_grad_()
    upstream = torch.randn(4, 3, 3, 3)
    quantizer = REL(weight, granularity=granularity, expansions=4)
    quantizer(weight).backward(upstream)
    assert torch.equal(weight.grad, 4 * upstream)
    assert list(quantizer.parameters()) == []


@pytest.mark.parametrize("expansions", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(64, 27), (128, 64, 3, 3), (1000, 512)])
def test_usual_layers_are_restored_to_the_last_bit(shape, expansions):
    weight = 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(expansions)) + 0.002
    for granularity in ("layer", "channel"):
        quantizer = REL(weight, granularity=granularity, expansions=expansions)
        code = quantizer.encode(weight)
        again = quantizer.encode(quantizer.restore(code))
        assert torch.equal(again.codes, code.codes)
        assert torch.equal(again.pos, code.pos)


def test_a_level_of_one_weight_in_a_million_is_restored():
    # Its magnitude is lost in the rounding of the two scales around it.
    weight = torch.ones(1_000_000)
    weight[0], weight[1], weight[2] = 0.12, 0.07, -0.17
    weight = weight.view(1, -1)
    quantizer = REL(weight, expansions=4)
    code = quantizer.encode(weight)
    again = quantizer.encode(quantizer.restore(code))
    assert torch.equal(again.codes, code.codes)
    torch.testing.assert_close(again.pos, code.pos, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [0, 5, 2.0, True, "2"])
def test_expansions_out_of_range(value):
    with pytest.raises(ValueError, match="expansions must be 1, 2, 3 or 4, got"):
        REL(torch.ones(2, 2), expansions=value)
