"""What quantizing all layers costs, one by one and compiled; run with -m benchmark -rP.

One process takes the two in turn, so that whatever else the machine does falls on both alike.
Times are CPU time of one thread; each is both ways through all weights, once, as in each pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch._inductor import config as inductor

from timm_ternary import TernaryConfig, ternarize_
from timm_ternary.nn.convert import quantizers_of
from timm_ternary.quantizers import names
from timm_ternary.training.threshold_pass.compiled import CompiledQuantizers
from timm_ternary.training.threshold_pass.functional import quantized_once

ROUNDS = 15


def milliseconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


def layers_of(model: str, method: str) -> list[Any]:
    ternary = ternarize_(timm.create_model(model), TernaryConfig(method=method)).train()
    return [ternary.get_submodule(name) for name in quantizers_of(ternary)]


def pass_of(
    layers: list[Any], context: Callable[[], AbstractContextManager[None]]
) -> Callable[[], None]:
    """The weights inside `context`, and their gradients."""
    parameters: list[nn.Parameter] = [p for x in layers for p in x.parametrizations.parameters()]
    ones = [torch.ones_like(layer.weight) for layer in layers]

    def both() -> None:
        with context():
            weights = [layer.weight for layer in layers]
        torch.autograd.grad(weights, parameters, ones, allow_unused=True)

    return both


@pytest.mark.benchmark
@pytest.mark.parametrize("model", ["resnet18", "mobilenetv3_large_100"])
@pytest.mark.parametrize("method", names())
def test_quantizing_all_layers(model: str, method: str) -> None:
    """No limit of its own."""
    layers = layers_of(model, method)
    loop = pass_of(layers, lambda: quantized_once(layers))
    loop()
    times = [milliseconds(loop) for _ in range(ROUNDS)]
    print(f"{model}, {method}: {statistics.median(times):.0f} ms, least {min(times):.0f}")


@pytest.mark.benchmark
@pytest.mark.parametrize("model", ["resnet18", "mobilenetv3_large_100"])
@pytest.mark.parametrize("method", ["tga", "ttq", "twn"])
def test_compiled_beside_the_loop(model: str, method: str) -> None:
    """The compiled quantizers of tga, for which they are there, take at most 0.9 of the time."""
    torch._dynamo.reset()
    layers = layers_of(model, method)
    loop = pass_of(layers, lambda: quantized_once(layers))
    compiled = pass_of(layers, CompiledQuantizers(layers).quantized_once)
    loop()
    with inductor.patch(force_disable_caches=True):  # else a second run would not compile
        first = milliseconds(compiled)
    loops, fused = [], []
    for _ in range(ROUNDS):
        loops.append(milliseconds(loop))
        fused.append(milliseconds(compiled))
    ratio = statistics.median(b / a for a, b in zip(loops, fused, strict=True))
    print(
        f"{model}, {method}: loop {statistics.median(loops):.0f} ms (least {min(loops):.0f}), "
        f"compiled {statistics.median(fused):.0f} ms (least {min(fused):.0f}), {ratio:.2f} x; "
        f"compiling {first / 1e3:.0f} s"
    )
    assert method != "tga" or ratio <= 0.9
