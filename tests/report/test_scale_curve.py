"""S(threshold), its derivative and the present thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from timm_ternary import quantizers, ternarize_
from timm_ternary.nn.convert import quantizers_of
from timm_ternary.nn.forms import layer_code
from timm_ternary.nn.trainable import latent_weight
from timm_ternary.report import scale_curve


def _model(method: object = "tga") -> nn.Module:
    torch.manual_seed(0)
    return ternarize_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 4)), method)


def test_the_curve_is_equation_10_and_its_derivative() -> None:
    model = _model()
    curve = scale_curve.curves(model)["0"]
    weights = latent_weight(model[0]).detach().double().numpy()
    mean, std = weights.mean(), weights.std(ddof=1)
    assert (curve.mean, curve.std) == pytest.approx((mean, std), rel=1e-6)
    points = curve.threshold.numpy()
    assert points[[0, -1]] == pytest.approx([-4 * std, 4 * std])
    a = np.clip(np.abs(points), 0, 3 * std) / std
    ratio = scipy.stats.norm.pdf(a) / scipy.stats.norm.sf(a)
    assert curve.scale.numpy() == pytest.approx(mean + std * ratio)
    inside = np.abs(points) < 3 * std
    slope = np.where(inside, ratio * (ratio - a) * np.sign(points), 0)
    smooth = (points != 0) & (np.abs(np.abs(points) - 3 * std) > 1e-6 * std)
    assert curve.slope.numpy()[smooth] == pytest.approx(slope[smooth])


@pytest.mark.parametrize("options", [{}, {"init_factor": [0.05, 0.3]}])
def test_the_dots_are_the_thresholds_and_scales_of_now(options: dict[str, object]) -> None:
    model = _model({"method": "tga", "options": options})
    for name, curve in scale_curve.curves(model).items():
        layer = model.get_submodule(name)
        assert curve.present.tolist() == pytest.approx(
            quantizers_of(model)[name].threshold.tolist()
        )
        assert curve.present_scale.tolist() == pytest.approx(layer_code(layer).pos[:, 0].tolist())


def test_one_channel_of_many() -> None:
    model = _model({"method": "tga", "granularity": "channel"})
    quantizer, weight = quantizers_of(model)["0"], latent_weight(model[0])
    curve = quantizer.scale_curve(weight, group=5)
    assert curve is not None
    assert curve.std == pytest.approx(weight[5].std().item(), rel=1e-5)
    assert curve.present.item() == pytest.approx(quantizer.threshold[5].item())


def test_a_flat_layer_has_no_curve() -> None:
    layer = nn.Linear(4, 2)
    nn.init.constant_(layer.weight, 0.1)
    assert scale_curve.curves(ternarize_(nn.Sequential(layer))) == {}


@pytest.mark.parametrize("method", quantizers.names())
def test_only_methods_that_train_thresholds_have_a_curve(method: str) -> None:
    model = _model(method)
    trains = any("threshold" in name for name, _ in model.named_parameters())
    found = scale_curve.curves(model)
    assert set(found) == ({"0", "1"} if trains else set())


def test_the_figure_shows_a_few_layers() -> None:
    torch.manual_seed(0)
    model = ternarize_(nn.Sequential(*(nn.Linear(8, 8) for _ in range(9))))
    titles = [axis.get_title() for axis in scale_curve.figure(scale_curve.curves(model)).axes]
    names = [title.split("\n")[0] for title in titles if title]
    assert names == ["0", "3", "5", "8"]
