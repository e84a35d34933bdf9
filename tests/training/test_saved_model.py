"""What the Trainer saves of a plain timm model is a directory that loads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from samples import outputs
from torch import nn
from trainer_models import CLASSES, Images, arguments, small_net

from timm_ternary.checkpoint import save_float, save_packed
from timm_ternary.checkpoint.run_files import newest_checkpoint
from timm_ternary.models.names import load_model
from timm_ternary.nn.convert import config_of, is_packed, pack_, ternarize_
from timm_ternary.nn.trainable import latent_weight
from timm_ternary.training.trainer import TernaryTrainer


def trainer(model: nn.Module, output: Path, **options: Any) -> TernaryTrainer:
    options = {"num_train_epochs": 1, "per_device_train_batch_size": 20, **options}
    return TernaryTrainer(model, args=arguments(output, **options), train_dataset=Images())


@pytest.mark.parametrize("ternary", [None, "tga", {"method": "ttq", "exclude": ["last"]}])
def test_it_loads(ternary: Any, tmp_path: Path) -> None:
    """The last and every checkpoint, by stock timm and by us, in the form it was trained in."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=1000)
    model.fc = nn.Linear(model.num_features, CLASSES)  # as fine-tuning scripts do
    model.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    if ternary is not None:
        ternarize_(model, ternary)
    run = trainer(model, tmp_path / "run", save_strategy="epoch")
    run.train()
    run.save_model(str(tmp_path / "saved"))
    expected = outputs(run.model)
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    for directory in (tmp_path / "saved", checkpoint):
        for loaded in (
            timm.create_model(f"local-dir:{directory}", pretrained=True),
            load_model(str(directory)),
        ):
            assert torch.equal(outputs(loaded), expected)
            assert tuple(loaded.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
            assert config_of(loaded) == config_of(model) and not is_packed(loaded)
    # And goes on from there: packed, or resumed.
    if ternary is not None:
        again = save_packed(load_model(str(tmp_path / "saved")), tmp_path / "packed")
    else:
        again = save_float(load_model(str(tmp_path / "saved")), tmp_path / "float")
    assert torch.equal(outputs(load_model(str(again))), expected)
    resumed = trainer(model, tmp_path / "run", save_strategy="epoch", num_train_epochs=2)
    resumed.train(resume_from_checkpoint=str(checkpoint))


def test_a_packed_model(tmp_path: Path) -> None:
    model = pack_(timm.create_model("test_resnet_tern", num_classes=CLASSES))
    trainer(model, tmp_path).save_model(str(tmp_path / "saved"))
    loaded = load_model(str(tmp_path / "saved"))
    assert is_packed(loaded) and torch.equal(outputs(loaded), outputs(model))


def test_what_timm_would_build_otherwise_is_saved_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training is not stopped for it."""
    model = timm.create_model("test_resnet_tern", num_classes=CLASSES)
    model.fc = nn.Sequential(nn.Linear(model.num_features, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    with caplog.at_level(logging.WARNING):
        trainer(model, tmp_path).save_model(str(tmp_path / "saved"))
    assert "timm will not load it, without config.json" in caplog.text
    assert "reset_classifier" in caplog.text
    assert not (tmp_path / "saved" / "config.json").exists()


def test_a_model_that_is_none_of_timm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(small_net(), tmp_path).save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "config.json").exists() and "timm" not in caplog.text


def test_tied_weights(tmp_path: Path) -> None:
    """A checkpoint of one holds them, and resumes."""
    for ternary in (None, "ttq"):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=CLASSES)
        model.layer1[0].conv2.weight = model.layer1[0].conv1.weight
        if ternary is not None:
            ternarize_(model, ternary)
            layer = model.layer1[0]
            assert latent_weight(layer.conv1) is latent_weight(layer.conv2)
        output = tmp_path / str(ternary)
        run = trainer(model, output, save_strategy="epoch")
        run.train()
        assert torch.equal(outputs(load_model(str(newest_checkpoint(output)))), outputs(run.model))
        again = trainer(model, output, save_strategy="epoch", num_train_epochs=2)
        again.train(resume_from_checkpoint=True)
