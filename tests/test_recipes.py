"""Every shipped recipe builds; one of each method and kind of start trains two steps.

From its own kind of start, on generated images; with ``-m slow``, the others train as well.
"""

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

from timm_ternary.checkpoint import load_packed, save_float
from timm_ternary.config import TernaryConfig
from timm_ternary.data.load import load_data
from timm_ternary.nn.convert import config_of, quantizers_of, ternary_layers
from timm_ternary.training.arguments.recipe import load_yaml, parse
from timm_ternary.training.run import ARGUMENTS, fit
from timm_ternary.training.start import build_model
from timm_ternary.training.trainer import TernaryTrainer

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


def _pair(path: Path) -> tuple[str | None, tuple[str, ...]]:
    """The method, and what the run starts from."""
    recipe = load_yaml(path)
    starts = tuple(key for key in ("checkpoint", "pretrained", "teacher") if recipe.get(key))
    ternary = recipe.get("ternary")
    return ternary if ternary is None else TernaryConfig.of(ternary).method, starts


def _name(path: Path) -> str:
    return split_model_name_tag(load_yaml(path)["model"])[0]


# The first of each pair, and those of large images last.
FIRST = {_pair(path): path for path in sorted(ALL, key=lambda p: (_name(p) in PIXELS, p))[::-1]}
OTHERS = [path for path in ALL if path not in FIRST.values()]


def _id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def _parse(path: Path, folder: Path, output: Path) -> tuple[Any, ...]:
    """The recipe's arguments for two steps on the images in `folder`, which write to `output`."""
    recipe = load_yaml(path)
    name = _name(path)
    words: dict[str, Any] = {
        "dataset": folder,
        "image_size": PIXELS.get(name, 32),
        "output_dir": output,
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
        # A published one, or the float run that the recipe starts from.
        own = recipe["teacher"] == recipe.get("checkpoint")
        if not own:
            _published(recipe["teacher"])
        teacher = name.removesuffix("_tern") if own else "resnet20_cifar"
        words["teacher"] = _float(teacher, folder.parent)
    arguments = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    return parse([str(path), *arguments], *ARGUMENTS)


def _check_layers(model: torch.nn.Module, path: Path) -> None:
    """`model` is ternary as the recipe says."""
    ternary = load_yaml(path).get("ternary")
    if ternary is None:
        assert config_of(model) is None
        return
    asked = TernaryConfig.of(ternary)
    assert config_of(model) == asked
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    depthwise = [m for m in layers if 1 < getattr(m, "groups", 1) == m.in_channels]
    left_out = len(depthwise) if "depthwise" in asked.exclude else 0
    left_out += len(set(asked.exclude) - {"depthwise"})
    assert len(ternary_layers(model)) == len(layers) - left_out


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=_id(p), marks=[pytest.mark.slow] * (p in OTHERS)) for p in ALL],
)
def test_every_recipe_trains_two_steps(path: Path, folder: Path, tmp_path: Path) -> None:
    run = fit(*_parse(path, folder, tmp_path / "out"))
    assert run.metrics["train_loss"] > 0 and 0 <= run.metrics["eval_accuracy"] <= 1
    assert run.metrics["epoch"] == 1.0
    if _pair(path)[0] is None:
        _check_layers(run.model, path)
        return
    model = load_packed(tmp_path / "out")
    _check_layers(model, path)
    assert ternary_layers(model).keys() == quantizers_of(run.model).keys()


@pytest.mark.parametrize("path", OTHERS, ids=_id)
def test_every_other_recipe_builds(path: Path, folder: Path, tmp_path: Path) -> None:
    """The model, and the Trainer with its optimizers and schedule."""
    model_args, data_args, args = _parse(path, folder, tmp_path / "out")
    model = build_model(model_args, num_classes=CLASSES, in_chans=3)
    _check_layers(model, path)
    data = load_data(data_args)
    run = TernaryTrainer(model, args, train_dataset=data.train, data_collator=data.data_collator)
    run.create_optimizer_and_scheduler(args.max_steps)
    trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}
