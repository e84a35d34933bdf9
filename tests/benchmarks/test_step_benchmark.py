"""What a ternary training step costs beside a float one; run with -m benchmark -rP.

One process takes the kinds of steps in turn, so that whatever else the machine does falls on all
of them alike. Times are CPU seconds of the process: those of one thread, where nobody else's work
counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import Trainer

from timm_ternary.training import TernaryTrainer, TernaryTrainingArguments

BATCH, PIXELS, ROUNDS = 32, 224, 3
JOINT, ALTERNATE = 1.10, 2.15
"""The limits that the project holds: steps of ResNet-18 beside the float step."""

KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "joint": (1, {"update": "joint"}),
    "alternate": (1, {"update": "alternate"}),
    "alternate, threshold_every=4": (4, {"update": "alternate", "threshold_every": 4}),
    "alternate, threshold_fraction=0.25": (1, {"update": "alternate", "threshold_fraction": 0.25}),
}
"""Steps of a cycle, and the arguments."""


class Noise(Dataset[dict[str, Tensor]]):
    """One image, as often as asked for."""

    def __len__(self) -> int:
        return BATCH * 1000

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": torch.zeros(3, PIXELS, PIXELS), "labels": torch.tensor(0)}


class Stock(Trainer):
    """transformers' Trainer, told how a model of timm gives a loss."""

    def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
        return F.cross_entropy(model(inputs["pixel_values"]), inputs["labels"])


def stepper(
    cls: type[Trainer], model: nn.Module, output: Path, **options: Any
) -> Callable[[], None]:
    """One optimizer step by the Trainer's own methods, in the order of its loop."""
    shared = {"use_cpu": True, "report_to": [], "learning_rate": 1e-3, "max_grad_norm": 0.0}
    args = TernaryTrainingArguments(str(output), **{**shared, "optim": "sgd", **options})
    run = cls(model, args, train_dataset=Noise())
    optimizer = run.create_optimizer()
    run.current_gradient_accumulation_steps = 1
    generator = torch.Generator().manual_seed(0)
    batch = {
        "pixel_values": torch.randn(BATCH, 3, PIXELS, PIXELS, generator=generator),
        "labels": torch.randint(0, 1000, (BATCH,), generator=generator),
    }
    forever = iter(lambda: dict(batch), None)

    def step() -> None:
        batches, count = run.get_batch_samples(forever, 1, args.device)
        for inputs in batches:
            run.training_step(model, inputs, count)
        optimizer.step()
        model.zero_grad()
        run.state.global_step += 1

    return step


def seconds(step: Callable[[], None], times: int = 1) -> float:
    """CPU seconds of a step, the mean of `times`."""
    start = time.process_time()
    for _ in range(times):
        step()
    return (time.process_time() - start) / times


@pytest.mark.benchmark
def test_steps_of_resnet18(tmp_path: Path) -> None:
    """No step costs more than the limits above."""
    steps = {"float": (1, stepper(Stock, timm.create_model("resnet18"), tmp_path))}
    for kind, (cycle, options) in KINDS.items():
        model = timm.create_model("resnet18_tern")
        steps[kind] = cycle, stepper(TernaryTrainer, model, tmp_path, **options)
    for cycle, step in steps.values():  # a whole cycle, so that each begins anew
        seconds(step, cycle)
    found: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(ROUNDS):
        for kind, (cycle, step) in steps.items():
            found[kind].append(seconds(step, cycle))
    ratios = {
        kind: statistics.median(a / b for a, b in zip(times, found["float"], strict=True))
        for kind, times in found.items()
    }
    for kind, times in found.items():
        print(f"{kind}: {1e3 * statistics.median(times):.0f} ms, {ratios[kind]:.2f} x float")
    assert ratios["joint"] <= JOINT
    assert ratios["alternate"] <= ALTERNATE


def compiled_step(name: str, device: str, batch: int, pixels: int) -> Callable[[], None]:
    """A joint step of a compiled model in bfloat16 autocast, waited for."""
    model = timm.create_model(name).to(device).train()
    compiled = torch.compile(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images = torch.randn(batch, 3, pixels, pixels, device=device)
    labels = torch.randint(0, 1000, (batch,), device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(compiled(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def wall_ratio(device: str, batch: int, pixels: int, rounds: int) -> float:
    """Median over interleaved rounds of a ternary step relative to a float one."""
    steps = [compiled_step(name, device, batch, pixels) for name in ("resnet18_tern", "resnet18")]
    ratios = []
    for number in range(rounds + 3):
        times = []
        for step in steps:
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        if number >= 3:  # the first ones compile
            ratios.append(times[0] / times[1])
    return statistics.median(ratios)


@pytest.mark.gpu
@pytest.mark.benchmark
def test_compiled_joint_step_on_a_gpu() -> None:
    """ResNet-18, 224 pixels, batch 256, bfloat16."""
    ratio = wall_ratio("cuda", batch=256, pixels=PIXELS, rounds=30)
    print(f"{torch.cuda.get_device_name()}: joint, compiled {ratio:.3f} x float")
    assert ratio <= 1.05
