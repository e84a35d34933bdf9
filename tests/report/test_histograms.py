"""Distributions of the weights: counts, Gaussian, normality, thresholds and values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torch import nn

from timm_ternary import pack_, quantizers, ternarize_
from timm_ternary.nn.forms import layer_code
from timm_ternary.nn.trainable import latent_weight
from timm_ternary.report import histograms, weight_histograms


def _layer(weights: torch.Tensor, method: str = "twn") -> nn.Module:
    layer = nn.Linear(weights.shape[1], weights.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weights)
    return ternarize_(nn.Sequential(layer), method)[0]


@pytest.mark.parametrize("method", quantizers.names())
def test_a_figure_of_any_method_in_either_form(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ternarize_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 4)), method)
    for name in ("trainable", "packed"):
        path = weight_histograms(model, tmp_path / f"{name}.png")
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 800
        pack_(model)


def test_values_and_thresholds_of_two_bases() -> None:
    layer = _layer(torch.tensor([[1.0, -0.08, 0.01, 0.06, -0.9, 0.0]]), "rel")
    code, latent = layer_code(layer), latent_weight(layer).detach().flatten()
    codes = code.codes.flatten(1)
    values, counts = histograms._values(codes, code)
    expected = dict(zip(*np.unique(code.decode().numpy(), return_counts=True), strict=True))
    assert values == pytest.approx(sorted(expected))
    assert counts == list(expected.values())
    found = {round(t, 6) for base in codes for t in histograms._thresholds(latent, base, 1)}
    assert found == {0.035, -0.04, 0.53, -0.49}


def test_distribution_of_a_gaussian_layer() -> None:
    torch.manual_seed(0)
    weights = 0.3 + 0.02 * torch.randn(64, 100)
    found = histograms.distribution("fc", _layer(weights, "tga"))
    inside = (weights.abs() <= found.edges[-1]).sum()
    assert found.counts.sum() == inside and inside > 0.99 * weights.numel()
    assert found.mean == pytest.approx(float(weights.mean()), rel=1e-5)
    assert found.std == pytest.approx(float(weights.std(correction=0)), rel=1e-5)
    centres = (found.edges[1:] + found.edges[:-1]) / 2
    points = np.linspace(found.edges[0], found.edges[-1], 20_001)
    width = found.edges[1] - found.edges[0]
    area = found.gaussian(points).mean() * (points[-1] - points[0]) / width
    assert area == pytest.approx(int(inside), rel=1e-4)
    assert centres[found.counts.argmax()] == pytest.approx(0.3, abs=float(width))
    assert found.zeros == layer_code(_layer(weights, "tga")).zeros


def test_normality_is_scipys_and_samples_large_layers() -> None:
    rng = np.random.default_rng(1)
    small = rng.normal(size=(20, 30)).astype(np.float32)
    assert histograms.normality(small) == float(
        scipy.stats.shapiro(small.ravel().astype(float)).statistic
    )
    large = rng.normal(size=40_000)
    first = histograms.normality(large)
    assert first is not None and first > 0.998
    assert first == histograms.normality(large)
    skewed = histograms.normality(rng.exponential(size=40_000))
    assert skewed is not None and skewed < 0.9


@pytest.mark.filterwarnings("error")
def test_normality_does_not_warn_of_large_layers() -> None:
    assert histograms.normality(np.random.default_rng(0).normal(size=9000)) is not None


@pytest.mark.parametrize("weights", [np.ones(10), np.array([1.0, 2.0]), np.array([])])
def test_normality_is_not_defined(weights: np.ndarray) -> None:
    assert histograms.normality(weights) is None


def test_levels_of_a_packed_layer() -> None:
    layer = _layer(torch.tensor([[1.0, -1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))
    pack_(nn.Sequential(layer))
    found = histograms.levels("0", layer)
    assert found.values == (-1.0, 0.0, 1.0)
    assert found.shares == (1 / 8, 4 / 8, 3 / 8)
    assert found.zeros == 0.5


def test_refuses_a_float_model_and_weights_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="not ternary"):
        histograms.figure(nn.Linear(3, 3))
    model = ternarize_(nn.Sequential(nn.Linear(3, 3)))
    with torch.no_grad():
        latent_weight(model[0])[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer '0' holds weights or scales that are not finite"):
        histograms.figure(model)


@pytest.mark.parametrize("method", ["tga", "twn"])
def test_thresholds_of_channels_are_their_mean(method: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4000, 6, bias=False)
    with torch.no_grad():
        layer.weight.mul_(torch.arange(1.0, 7).view(-1, 1))
    config = {"method": method, "granularity": "channel"}
    layer = ternarize_(nn.Sequential(layer), config)[0]
    quantizer: quantizers.Quantizer = layer.parametrizations["weight"][0]
    high, low = quantizer.quantize_bases(latent_weight(layer).detach())[0].thresholds
    found = histograms.distribution("0", layer).thresholds
    assert found == pytest.approx(
        [float(low.detach().mean()), float(high.detach().mean())], rel=0.01
    )
