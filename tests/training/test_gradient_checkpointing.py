"""Gradient checkpointing: it takes place, in both passes, and changes no result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from trainer_models import (
    CLASSES,
    SmallNet,
    losses,
    trainer,
)
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

import timm_ternary  # noqa: F401  (registers resnet8_cifar)
from timm_ternary.nn.convert import ternarize_
from timm_ternary.training.trainer import TernaryTrainer


class _Refusing(SmallNet):
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:  # as models of timm say it
            raise AssertionError("gradient checkpointing not supported")


def _model(kind: str, method: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "wrapped":
        config = TimmWrapperConfig(architecture="test_resnet", num_labels=CLASSES, do_pooling=True)
        return ternarize_(TimmWrapperForImageClassification(config), method)
    # drop_path: the second computation must draw what the first one did.
    options: dict[str, Any] = {"drop_path_rate": 0.3}
    if kind == "test_vit":
        options |= {"img_size": 8, "patch_size": 4}
    elif kind == "resnet8_cifar":
        options = {}
    return ternarize_(timm.create_model(kind, num_classes=CLASSES, **options), method)


def _run(path: Path, kind: str, method: str, **options: Any) -> tuple[TernaryTrainer, int]:
    """A trained model, and how often its last block ran."""
    run = trainer(path, _model(kind, method), max_steps=3, learning_rate=0.01, **options)
    inner = getattr(run.model, "timm_model", run.model)
    block = inner.blocks[-2] if hasattr(inner, "blocks") else inner.layer3[0]
    calls: list[int] = []
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    run.train()
    return run, len(calls)


@pytest.mark.parametrize(
    "kind, method",
    [
        ("test_vit", "tga"),
        ("test_vit", "ttq"),
        ("test_resnet", "tga"),
        ("resnet8_cifar", "tga"),
        ("wrapped", "tga"),
    ],
)
def test_blocks_run_again_and_the_result_is_the_same(
    tmp_path: Path, kind: str, method: str
) -> None:
    plain, once = _run(tmp_path, kind, method)
    again, twice = _run(tmp_path, kind, method, gradient_checkpointing=True)
    passes = 2 if method == "tga" else 1  # of the thresholds, and of the weights
    assert (once, twice) == (3 * passes, 6 * passes)
    assert losses(again) == losses(plain)
    for (name, one), other in zip(
        plain.model.named_parameters(), again.model.parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_the_model_goes_back_as_it_came(tmp_path: Path) -> None:
    run, _ = _run(tmp_path, "test_vit", "tga", gradient_checkpointing=True, ema_decay=0.9)
    assert run.model.grad_checkpointing is False
    assert not hasattr(run.model, "gradient_checkpointing_enable")
    assert run.args.gradient_checkpointing is True


@pytest.mark.parametrize(
    "model, options, message",
    [
        (SmallNet, {}, "SmallNet has no set_grad_checkpointing"),
        (_Refusing, {}, "_Refusing cannot recompute activations"),
        (SmallNet, {"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "leave them out"),
    ],
)
def test_refused_in_one_line(
    tmp_path: Path, model: type[nn.Module], options: Any, message: str
) -> None:
    run = trainer(tmp_path, ternarize_(model(), "tga"), gradient_checkpointing=True, **options)
    with pytest.raises(ValueError, match=message) as caught:
        run.train()
    assert "\n" not in str(caught.value)
