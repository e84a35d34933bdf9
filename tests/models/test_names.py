"""MODEL as users type it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from samples import outputs, trained

from timm_ternary.checkpoint.directory import save_packed
from timm_ternary.checkpoint.weights_file import WEIGHTS_NAME
from timm_ternary.models.names import load_model


def test_a_packed_file_as_checkpoint_is_checked_in_full(tmp_path: Path) -> None:
    model = trained()
    path = save_packed(model, tmp_path) / WEIGHTS_NAME
    given = {"num_classes": 5, "packed": True, "checkpoint_path": str(path)}
    assert torch.equal(outputs(load_model("test_resnet_tern", **given)), outputs(model))
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata()
    tensors["fc.weight_scale"] *= -1
    save_file(tensors, str(path), metadata)
    with pytest.raises(ValueError, match=r"tensor fc\.weight_scale is damaged"):
        load_model("test_resnet_tern", **given)


@pytest.mark.parametrize("name", ["test_resnet_tern", "test_resnet"])
def test_the_configuration_says_how_many_channels_there_are(name: str) -> None:
    cfg = load_model(name, in_chans=1).pretrained_cfg
    assert cfg["input_size"][0] == 1 and len(cfg["mean"]) == len(cfg["std"]) == 1
    three = load_model(name).pretrained_cfg
    assert three["input_size"][0] == 3 and len(three["mean"]) == 3
    assert cfg["mean"][0] == pytest.approx(sum(three["mean"]) / 3)
