"""Kernels as tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from timm_ternary import pack_, ternarize_
from timm_ternary.nn.forms import layer_code
from timm_ternary.report import kernels

CELL = kernels._CELL


def _tile(picture: np.ma.MaskedArray, row: int, column: int, size: int = 3) -> list[list[float]]:
    """The codes of one tile, and that every code fills its cell."""
    step = CELL * size + 1
    part = picture[row * step : (row + 1) * step - 1, column * step : (column + 1) * step - 1]
    codes = part[::CELL, ::CELL]
    assert (part == codes.repeat(CELL, 0).repeat(CELL, 1)).all()
    return codes.tolist()


def _codes(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(-1, 2, shape, dtype=torch.int8)


def test_output_channels_downwards_input_channels_to_the_right() -> None:
    codes = _codes(12, 11, 3, 3)
    picture = kernels.tiles(codes)
    assert picture.shape == (10 * (3 * CELL + 1) - 1,) * 2
    for out in range(10):
        for channel in range(10):
            assert _tile(picture, out, channel) == codes[out, channel].tolist()
    lines = np.arange(1, 10) * (3 * CELL + 1) - 1
    assert picture.mask[lines].all() and picture.mask[:, lines].all()
    assert picture.mask.sum() == picture.size - 10 * 10 * (3 * CELL) ** 2


def test_depthwise_kernels_fill_rows() -> None:
    codes = _codes(14, 1, 3, 3)
    picture = kernels.tiles(codes)
    assert picture.shape == (2 * (3 * CELL + 1) - 1, 10 * (3 * CELL + 1) - 1)
    for k in range(14):
        assert _tile(picture, k // 10, k % 10) == codes[k, 0].tolist()
    assert picture.mask[-1, -1]
    assert kernels.tiles(_codes(4, 1, 3, 3)).shape == (3 * CELL, 4 * (3 * CELL + 1) - 1)


@pytest.mark.parametrize("packed", [False, True])
def test_convolutions_larger_than_1x1(packed: bool) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv1d(4, 4, 3), nn.Linear(4, 2))
    model = ternarize_(nn.Sequential(*layers, nn.Conv2d(4, 2, (1, 5))), "abcnet")
    expected = {name: layer_code(model.get_submodule(name)).codes[0] for name in ("0", "4")}
    if packed:
        pack_(model)
    found = kernels.convolutions(model)
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name])


def test_black_grey_and_white() -> None:
    (image,) = (
        kernels.figure({"conv": torch.tensor([[[[-1, 0, 1]]]], dtype=torch.int8)}).axes[0].images
    )
    colours = image.to_rgba(image.get_array())[0, ::CELL, :3]
    assert colours.tolist() == [[0, 0, 0], [0.5, 0.5, 0.5], [1, 1, 1]]


def test_nothing_undefined_lies_under_the_mask() -> None:
    codes = torch.ones(3, 1, 3, 3, dtype=torch.int8)
    for _ in range(3):
        np.full(4096, np.nan)  # what fresh memory may hold
        assert set(np.unique(kernels.tiles(codes).data)) <= {0.0, 1.0}
