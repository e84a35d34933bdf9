"""The main job, with its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from PIL import Image

from timm_ternary.cli.quickstart import quickstart
from timm_ternary.nn.convert import ternary_layers


def test_quickstart(tmp_path: Path) -> None:
    lines: list[str] = []
    metrics = quickstart(tmp_path, say=lines.append)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        key: getattr(metrics, key) for key in metrics.__dataclass_fields__
    }
    assert metrics.float_accuracy >= 0.975
    assert metrics.ternary_accuracy >= metrics.float_accuracy - 0.01
    assert metrics.reloaded_accuracy == metrics.ternary_accuracy
    assert metrics.ternary_layers == metrics.layers == 8
    assert 0 < metrics.zeros < 1
    assert metrics.float_bytes > 10 * metrics.packed_bytes
    assert metrics.packed_bytes == (tmp_path / "ternary" / "model.safetensors").stat().st_size
    assert len(lines) == 3

    model = timm.create_model(f"local-dir:{tmp_path / 'ternary'}", pretrained=True).eval()
    assert all(len(layer.weight.unique()) <= 3 for layer in ternary_layers(model).values())
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert model.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]
    with Image.open(tmp_path / "weights.png") as figure:
        assert figure.width > 800 and figure.height > 300
