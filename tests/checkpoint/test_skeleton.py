"""The float model that a config.json describes, and files of other sizes."""

from __future__ import annotations

import torch
from torch import nn

from timm_ternary.checkpoint.skeleton import differences, on_meta


def test_differences() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert differences(shapes, model) == []
    shapes["0.weight"], shapes["ghost"] = (3, 4), (1,)
    del shapes["0.bias"]
    assert differences(shapes, model) == [
        "0.weight has the shape (3, 4), the model needs (3, 2)",
        "0.bias is missing",
        "ghost is too many",
    ]


def test_a_model_that_cannot_be_on_the_meta_device_uses_up_no_random_numbers() -> None:
    def build() -> nn.Module:
        layer = nn.Linear(2, 3)
        layer.bound = layer.weight.abs().max().item()
        return layer

    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    assert on_meta(lambda: nn.Linear(2, 3)).weight.is_meta
    assert not on_meta(build).weight.is_meta
    assert torch.equal(torch.randn(3), expected)
