"""The table of a ternary model against its tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from samples import MATRIX, config, trained
from torch import nn

import timm_ternary
from timm_ternary.checkpoint.directory import save_packed
from timm_ternary.checkpoint.weights_file import WEIGHTS_NAME
from timm_ternary.nn.convert import ternary_layers
from timm_ternary.nn.forms import layer_code


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("method", "granularity"), MATRIX)
def test_layers(method: str, granularity: str, packed: bool) -> None:
    model = trained(ternary=config(method, granularity))
    base = timm.create_model("test_resnet", num_classes=5)
    if packed:
        timm_ternary.pack_(model)
    summary = timm_ternary.summarize(model)
    assert (summary.method, summary.packed) == (method, packed)
    layers = ternary_layers(model)
    assert [row.name for row in summary.layers] == list(layers)
    for row in summary.layers:
        code, host = layer_code(layers[row.name]), base.get_submodule(row.name)
        assert row.kind == type(host).__name__
        assert row.shape == tuple(host.weight.shape) and row.weights == host.weight.numel()
        assert row.float_bytes == 4 * row.weights
        assert row.zeros == pytest.approx((code.codes == 0).double().mean().item())
        assert row.plus == pytest.approx((code.codes == 1).double().mean().item())
        assert row.minus == pytest.approx((code.codes == -1).double().mean().item())
        assert row.pos == pytest.approx(code.pos.mean().item())
        assert row.neg == pytest.approx(code.neg.mean().item())
        groups = row.shape[0] if granularity == "channel" else 1
        bases = 2 if method == "rel" else 1
        assert row.scales == bases * groups * (2 if method == "ttq" else 1)
        assert row.packed_bytes == bases * -(-row.weights // 4) + 4 * row.scales
    weights = sum(row.weights for row in summary.layers)
    zeros = sum((layer_code(layer).codes == 0).sum().item() for layer in layers.values())
    assert summary.ternary_weights == weights
    assert summary.zeros == pytest.approx(zeros / weights / bases)
    state = base.state_dict()
    total = sum(t.numel() * t.element_size() for t in state.values())
    assert summary.float_bytes == total
    assert summary.float_values == sum(t.numel() for t in state.values()) - weights


@pytest.mark.parametrize("fresh", [True, False])  # ttq's two scales of a layer begin equal
def test_packed_bytes_are_those_of_the_tensors_in_a_file(fresh: bool, tmp_path: Path) -> None:
    model = (
        timm.create_model("test_resnet_tern", ternary="ttq") if fresh else trained(ternary="ttq")
    )
    save_packed(model, tmp_path)
    data = (tmp_path / WEIGHTS_NAME).read_bytes()
    tensors = len(data) - 8 - int.from_bytes(data[:8], "little")
    assert timm_ternary.summarize(model).packed_bytes == tensors


def test_table_and_dict() -> None:
    summary = timm_ternary.summarize(trained())
    lines = str(summary).splitlines()
    assert len(lines) == len(summary.layers) + 2
    assert lines[1].split()[0] == "conv1.0" and lines[-1].startswith("tga: ")
    assert f"{summary.packed_bytes:,} bytes packed" in lines[-1]
    values = json.loads(json.dumps(summary.to_dict()))
    assert values["zeros"] == summary.zeros
    assert values["layers"][0]["name"] == "conv1.0"


def test_leaves_the_model_as_it_is() -> None:
    model = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    timm_ternary.summarize(model)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_not_ternary() -> None:
    with pytest.raises(ValueError, match=r"the model is not ternary; type: .*ternarize_"):
        timm_ternary.summarize(nn.Linear(2, 2))
