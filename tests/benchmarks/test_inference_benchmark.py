"""What a forward pass costs in each form of a model; run with -m benchmark -rP.

One process takes the forms in turn, so that whatever else the machine does falls on all alike.
Times are CPU time of one thread, each beside that of the float model in the same round. Memory is
what a forward pass allocates at its peak beyond what the model holds.
"""

from __future__ import annotations

import statistics
import time

import pytest
import timm
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import timm_ternary

ROUNDS = 7


def _forms(name: str) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    trainable = timm.create_model(f"{name}_tern").eval()
    packed = timm_ternary.pack_(timm.create_model(f"{name}_tern")).eval()
    return {"float": timm.create_model(name).eval(), "packed": packed, "trainable": trainable}


def _seconds(model: nn.Module, images: torch.Tensor) -> float:
    start = time.process_time()
    with torch.inference_mode():
        model(images)
    return time.process_time() - start


def _peak(model: nn.Module, images: torch.Tensor) -> int:
    """Bytes: the highest sum of what was allocated and not yet freed."""
    with (
        torch.inference_mode(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p,
    ):
        model(images)
    held = peak = 0
    events = [e for e in p.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.benchmark
@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_large_100", "vit_small_patch16_224"])
def test_a_forward_pass_of_each_form(name: str, batch: int) -> None:
    """No limit of its own: packed and trainable forms compute more than the float one."""
    torch.set_num_threads(1)
    forms, images = _forms(name), torch.randn(batch, 3, 224, 224)
    for model in forms.values():
        _seconds(model, images)
    times = {form: [] for form in forms}
    for _ in range(ROUNDS):
        for form, model in forms.items():
            times[form].append(_seconds(model, images))
    for form, model in forms.items():
        ratios = (a / b for a, b in zip(times[form], times["float"], strict=True))
        print(
            f"{name}, batch {batch}, {form}: {1e3 * statistics.median(times[form]):.0f} ms, "
            f"{statistics.median(ratios):.2f} x float; peak {_peak(model, images) / 1e6:.1f} MB"
        )
