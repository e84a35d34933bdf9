"""The soft staircase: its values, its gradients, its limit, and where it does not apply."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from timm_ternary import TernaryConfig, quantizers
from timm_ternary.quantizers.functional import soft_staircase

METHODS = quantizers.names()
SOFT = [name for name in METHODS if quantizers.get(name).has_thresholds]
CASES = [*((name, {}) for name in SOFT), ("tga", {"init_factor": [0.1, 0.4]})]
every_case = pytest.mark.parametrize("method, options", CASES, ids=[str(case) for case in CASES])


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64) + 0.01


def make(method: str, weight: Tensor, granularity: str = "channel", **options: object):
    config = TernaryConfig(method, granularity, options=options)
    return quantizers.create(config, weight).train()


def staircase(w: np.ndarray, base: object, temperature: float) -> np.ndarray:
    """The formula once more, in numpy: a sum of two sigmoids."""
    high, low = (t.detach().numpy() for t in base.thresholds)
    pos = base.pos.detach().numpy()
    neg = pos if base.neg is None else base.neg.detach().numpy()
    slope = temperature / w.std(1, keepdims=True)
    plus = 1 / (1 + np.exp(-slope * (w - high)))
    return pos * plus - neg / (1 + np.exp(-slope * (low - w)))


def test_who_has_thresholds() -> None:
    assert SOFT == ["bitnet", "rel", "tga", "ttq", "twn"]


@every_case
def test_values_are_the_sum_of_two_sigmoids(method: str, options: dict) -> None:
    weight = draw(4, 30)
    quantizer = make(method, weight, **options)
    bases = quantizer.quantize_bases(weight)
    for temperature in (0.5, 7.0):
        quantizer.soften(temperature)
        expected = sum(staircase(weight.numpy(), base, temperature) for base in bases)
        np.testing.assert_allclose(quantizer(weight).detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@every_case
def test_the_limit_is_the_hard_staircase(method: str, options: dict, granularity: str) -> None:
    weight = draw(6, 40)
    quantizer = make(method, weight, granularity, **options)
    hard = quantizer(weight)
    quantizer.soften(1e8)
    torch.testing.assert_close(quantizer(weight), hard, rtol=1e-9, atol=1e-9)
    quantizer.soften(2.0)
    assert (quantizer(weight) - hard).abs().max() > 0.01


@every_case
def test_evaluation_and_encode_know_only_the_hard_one(method: str, options: dict) -> None:
    weight = draw(6, 40)
    quantizer = make(method, weight, **options)
    code, hard = quantizer.encode(weight), quantizer(weight)
    quantizer.soften(3.0)
    assert not torch.equal(quantizer(weight), hard)
    assert torch.equal(quantizer.encode(weight).decode(), code.decode())
    assert torch.equal(quantizer.eval()(weight), hard)
    quantizer.train().soften(None)
    assert torch.equal(quantizer(weight), hard)


def test_gradients_of_the_formula() -> None:
    rows, slope = draw(3, 12), 4.0 / draw(3, 1, seed=5).abs().clamp(min=0.1)
    scales = [draw(3, 1, seed=i).abs() + 0.1 for i in (1, 2)]
    steps = [sign * draw(3, 1, seed=3).abs() for sign in (1, -1)]

    def run(w: Tensor, high: Tensor, low: Tensor, pos: Tensor, neg: Tensor, b: Tensor) -> Tensor:
        return soft_staircase(w, (high, low), pos, neg, b)

    inputs = [t.requires_grad_() for t in (rows, *steps, *scales, slope)]
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("options", [{}, {"init_factor": [0.1, 0.4]}], ids=str)
@pytest.mark.parametrize("method", ["tga", "ttq"])
def test_gradients_of_trained_thresholds_and_scales(method: str, options: dict) -> None:
    weight = draw(3, 20)
    quantizer = make(method, weight, **(options if method == "tga" else {}))
    quantizer.soften(4.0)
    parameters = dict(quantizer.named_parameters())

    def run(*values: Tensor) -> Tensor:
        given = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(quantizer, given, (weight,))

    assert parameters and torch.autograd.gradcheck(run, tuple(parameters.values()))


def test_a_threshold_feels_the_weights_near_it() -> None:
    """Beside S, which alone moves the hard staircase, the steps themselves move."""
    weight = draw(1, 200)
    quantizer = make("tga", weight, init_factor=0.2)
    quantizer.soften(5.0)
    base = quantizer.quantize_bases(weight)[0]
    (through_scale,) = torch.autograd.grad(base.pos.sum(), quantizer.threshold)
    quantizer(weight).abs().sum().backward()
    # Wider thresholds silence weights: less than through the scale of the 200 weights alone.
    assert quantizer.threshold.grad.item() < 200 * through_scale.item()
    assert quantizer.threshold.grad.item() < 0 < through_scale.item()


@every_case
def test_the_weights_learn_where_the_stairs_are_steep(method: str, options: dict) -> None:
    weight = draw(4, 50).requires_grad_()
    quantizer = make(method, weight, **options)
    quantizer.soften(8.0)
    quantizer(weight).sum().backward()
    w = weight.detach().numpy()
    slope = 8.0 / w.std(1, keepdims=True)
    expected = np.zeros_like(w)
    for base in quantizer.quantize_bases(weight):
        for threshold, scale in zip(base.thresholds, (base.pos, base.neg), strict=True):
            scale = base.pos if scale is None else scale
            s = 1 / (1 + np.exp(-slope * (w - threshold.detach().numpy())))
            expected += scale.detach().numpy() * slope * s * (1 - s)
    np.testing.assert_allclose(weight.grad, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("value", [0.3, -1e-3, 1e-30, 0.0])
@pytest.mark.parametrize("count", [1, 7])
@every_case
def test_equal_weights_give_finite_values_and_gradients(
    method: str, options: dict, count: int, value: float
) -> None:
    weight = torch.full((2, count), value).requires_grad_()
    quantizer = make(method, weight, **options)
    for temperature in (1.0, 1e6):
        quantizer.soften(temperature)
        quantized = quantizer(weight)
        quantized.sum().backward()
        assert torch.isfinite(quantized).all() and torch.isfinite(weight.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in quantizer.parameters())


@every_case
def test_the_temperature_is_no_state_but_survives_copies(method: str, options: dict) -> None:
    weight = draw(4, 30)
    quantizer = make(method, weight, **options)
    before = list(quantizer.state_dict())
    quantizer.soften(3.0)
    assert list(quantizer.state_dict()) == before
    soft = quantizer(weight)
    for twin in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(twin(weight), soft)
        twin.soften(None)
        assert not torch.equal(twin(weight), soft)
    assert torch.equal(quantizer(weight), soft)


def test_half_weights_are_softened_in_float32() -> None:
    weight = draw(4, 30).bfloat16()
    half, single = make("tga", weight), make("tga", weight.float())
    for quantizer in (half, single):
        quantizer.soften(3.0)
    assert torch.equal(half(weight), single(weight.float()).bfloat16())


def test_a_compiled_model_takes_new_temperatures() -> None:
    torch._dynamo.reset()
    weight = draw(4, 30)
    quantizer = make("tga", weight)
    counter = CompileCounter()
    run = torch.compile(quantizer, fullgraph=True, backend=counter)
    for temperature in (2.0, 3.0, 5.0, 8.0):
        quantizer.soften(temperature)
        torch.testing.assert_close(run(weight), quantizer(weight))
    assert counter.frame_count == 1
    quantizer.soften(None)
    assert torch.equal(run(weight), quantizer(weight))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in SOFT])
def test_methods_without_thresholds_refuse(method: str) -> None:
    quantizer = make(method, draw(4, 30))
    with pytest.raises(ValueError, match=f"'{method}' has no thresholds.* bitnet, rel, tga, ttq"):
        quantizer.soften(3.0)
    quantizer.soften(None)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_temperature_is_named(value: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be .*got {value!r}"):
        make("tga", draw(4, 30)).soften(value)
