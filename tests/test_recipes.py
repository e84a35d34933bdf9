"""Every shipped recipe trains: two steps on generated images, from its own kind of start."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models._registry import split_model_name_tag
from timm_ternary.training.arguments.model.recipe import load_yaml

from timm_ternary import train
from timm_ternary.checkpoint.directory import load_packed, save_float
from timm_ternary.config import TernaryConfig
from timm_ternary.nn.convert import config_of, quantizers_of, ternary_layers

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = sorted(p for p in RECIPES.rglob("*.yaml") if p.parent.name != "accelerate")
CLASSES = 2
PIXELS = {"alexnet_bn_tern": 224}
"""Where 32 do not do."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and four test images."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for label in range(CLASSES):
            directory = root / split / f"class{label}"
            directory.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(directory / f"{index}.png")
    return root


@functools.cache
def _float(name: str, directory: Path) -> Path:
    """A directory of float weights, such as a run of the float recipe leaves."""
    torch.manual_seed(0)
    cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    model = timm.create_model(name, num_classes=CLASSES, pretrained_cfg_overlay=cfg)
    save_float(model, directory / name)
    return directory / name


def _published(name: str) -> None:
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None and cfg.has_weights, f"no weights are published for {name}"


@pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_recipe_trains_two_steps(path: Path, folder: Path, tmp_path: Path) -> None:
    recipe = load_yaml(path)
    name = split_model_name_tag(recipe["model"])[0]
    words: dict[str, Any] = {
        "dataset": folder,
        "image_size": PIXELS.get(name, 32),
        "output_dir": tmp_path / "out",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "dataloader_num_workers": 0,
        "max_steps": 2,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": "true",
        "disable_tqdm": "true",
    }
    # What a recipe starts from is made here, or, where it is published, at least known.
    if "checkpoint" in recipe:
        words["checkpoint"] = _float(name.removesuffix("_tern"), folder.parent)
    if recipe.get("pretrained"):
        _published(recipe["model"])
        words["pretrained"] = "false"
    if "teacher" in recipe:
        _published(recipe["teacher"])
        words["teacher"] = _float("resnet20_cifar", folder.parent)
    arguments = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    run = train.fit(*train.parse([str(path), *arguments], *train.ARGUMENTS))

    assert run.metrics["train_loss"] > 0 and 0 <= run.metrics["eval_accuracy"] <= 1
    assert run.metrics["epoch"] == 1.0
    if "ternary" not in recipe:
        assert config_of(run.model) is None
        return
    asked = TernaryConfig.of(recipe["ternary"])
    model = load_packed(tmp_path / "out")
    assert config_of(model) == asked
    assert ternary_layers(model).keys() == quantizers_of(run.model).keys()
    layers = sum(isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)) for m in model.modules())
    assert len(ternary_layers(model)) == layers - len(asked.exclude)
