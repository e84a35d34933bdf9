"""FSDP2 in two real processes on the CPU: weights in shards, thresholds whole, the same result."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor
from trainer_models import CLASSES, Images, arguments, losses, trainer
from two_processes import TwoProcesses

from timm_ternary import quantizers
from timm_ternary.config import TernaryConfig
from timm_ternary.nn.convert import quantizers_of, ternarize_
from timm_ternary.training.fsdp import check_sharded, load_whole, whole
from timm_ternary.training.trainer import TernaryTrainer

METHODS = ("tga", "ttq", "twn")
"""Alternate and joint updates; no parameters of its own, but statistics of the whole weight."""


class Block(nn.Module):
    """What is put together and taken apart on its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(1, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x)))


def _model(method: str) -> nn.Module:
    torch.manual_seed(0)
    # Odd numbers of rows: the shards of two processes are not equal.
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ternarize_(nn.Sequential(Block(3, 5), Block(5, 7), pool, nn.Linear(7, CLASSES)), method)


def _run(output: Path, method: str, processes: int, start: Path | None = None) -> dict[str, Any]:
    """Train by steps of four micro-batches; of two processes in shards, of one as usual."""
    sharded = {
        "fsdp": True,
        "fsdp_config": {"transformer_layer_cls_to_wrap": ["Block"]},
        "ddp_backend": "gloo",
    }
    args = arguments(
        output,
        gradient_accumulation_steps=4 // processes,
        save_strategy="steps",
        save_steps=3,
        max_grad_norm=0.5,
        **(sharded if processes == 2 else {}),
    )
    if processes == 2:
        assert args.world_size == 2
        # accelerate has FSDP for GPUs only: tell it that these are some.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    model = _model(method)
    run = TernaryTrainer(model, args, train_dataset=Images(), eval_dataset=Images(16, seed=2))
    run.train(resume_from_checkpoint=None if start is None else str(start))
    quantizer_names = {
        f"{layer}.parametrizations.weight.0.{name}"
        for layer, quantizer in quantizers_of(run.model).items()
        for name, _ in quantizer.named_parameters()
    }
    if processes == 2:
        assert torch.distributed.get_world_size() == run.accelerator.num_processes == 2
        for name, parameter in run.model.named_parameters():
            assert isinstance(parameter, DTensor) == (name not in quantizer_names), name
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            assert (local.numel() < parameter.numel()) == (name not in quantizer_names), name
    metrics = run.evaluate()
    log = [entry for entry in run.state.log_history if "loss" in entry][-1]
    return {
        "state": load_whole(run.model, _model(method)).state_dict(),
        "losses": losses(run),
        "log": {k: v for k, v in log.items() if isinstance(v, float)},
        "metrics": {k: v for k, v in metrics.items() if k in ("eval_loss", "eval_accuracy")},
    }


@pytest.mark.multi_process
@pytest.mark.parametrize("method", METHODS)
def test_shards_train_as_one_process(
    tmp_path: Path, two_processes: TwoProcesses, method: str
) -> None:
    one = _run(tmp_path, method, processes=1)
    output, ranks = two_processes
    for rank in ranks:
        found = rank[method]
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert found["log"].keys() == one["log"].keys()
        assert found["log"] == pytest.approx(one["log"], rel=1e-4, abs=1e-6)
        assert found["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
        for kind in ("state", "resumed"):
            assert found[kind].keys() == one["state"].keys()
            for name, value in found[kind].items():
                torch.testing.assert_close(value, one["state"][name], rtol=1e-4, atol=1e-6)
    file = load_file(output / method / "checkpoint-6" / "model.safetensors")
    for name, value in file.items():  # of the last step
        assert torch.equal(value, ranks[1][method]["state"][name]), name
    assert any(
        not torch.equal(value, _model(method).state_dict()[name])
        for name, value in one["state"].items()
        if ".weight.0." in name
    ) == (method != "twn")


def test_fsdp_that_accelerate_leaves_out_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    trainer(tmp_path)  # one process has no shards
    monkeypatch.setattr(
        "timm_ternary.training.arguments.trainer.TernaryTrainingArguments.world_size", 2
    )
    with pytest.raises(ValueError, match="accelerate trains without it on the CPU"):
        trainer(tmp_path)


@pytest.mark.parametrize(
    "method, update, plugins, message",
    [
        ("ttq", "joint", {"fsdp_plugin": 1}, "FSDP2 only, got FSDP1"),
        ("tga", "alternate", {"deepspeed_plugin": 1}, "FSDP2 only, got DeepSpeed"),
        ("admm", "joint", {"fsdp_plugin": 2}, "accelerate launch --multi_gpu"),
    ],
)
def test_refused_in_one_line(method: str, update: str, plugins: Any, message: str) -> None:
    made = {name: SimpleNamespace(fsdp_version=version) for name, version in plugins.items()}
    accelerator = SimpleNamespace(state=SimpleNamespace(**made))
    own = [quantizers.create(TernaryConfig.of(method), torch.randn(4, 4))]
    with pytest.raises(ValueError, match=message) as caught:
        check_sharded(accelerator, own, update)
    assert "\n" not in str(caught.value)


def test_what_is_not_in_shards_stays() -> None:
    accelerator = SimpleNamespace(state=SimpleNamespace())
    assert check_sharded(accelerator, [], "alternate") is False
    value = torch.ones(2)
    assert whole(value) is value


def child(output: Path) -> dict[str, Any]:
    """What each of two processes finds, by method."""
    results = {}
    with mock.patch.dict(os.environ):  # where transformers leaves notes for accelerate
        for method in METHODS:
            results[method] = _run(output / method, method, processes=2)
            start = output / method / "checkpoint-3"
            resumed = _run(output / f"{method}-resumed", method, processes=2, start=start)
            results[method]["resumed"] = resumed["state"]
    return results
