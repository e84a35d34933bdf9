"""The figure of latent weights: thresholds and values of every method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from timm_ternary import quantizers, report, ternarize_
from timm_ternary.layers import latent_weight, layer_code


@pytest.mark.parametrize("method", quantizers.names())
def test_a_figure_of_any_method(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ternarize_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 4)), method)
    path = report.weight_histograms(model, tmp_path / "weights.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_values_and_thresholds_of_two_bases() -> None:
    layer = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -0.08, 0.01, 0.06, -0.9, 0.0]]))
    model = ternarize_(nn.Sequential(layer), "rel")
    code, latent = layer_code(model[0]), latent_weight(model[0]).detach().flatten()
    codes = code.codes.flatten(1)
    assert report._values(codes, code) == pytest.approx(sorted(set(code.decode()[0].tolist())))
    found = {round(t, 6) for base in codes for t in report._thresholds(latent, base)}
    assert found == {0.035, -0.04, 0.53, -0.49}
