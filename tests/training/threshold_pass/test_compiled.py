"""Compiled quantizers beside their twin, the loop over the layers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch.nn.utils import parametrize
from trainer_models import (
    arguments,
    assert_same_state,
    losses,
    small_net,
    trainer,
)

from timm_ternary import pack_, ternarize_
from timm_ternary.config import TernaryConfig
from timm_ternary.nn.convert import quantizers_of
from timm_ternary.nn.forms import layer_code
from timm_ternary.nn.trainable import latent_weight
from timm_ternary.quantizers import names
from timm_ternary.training.threshold_pass import update
from timm_ternary.training.threshold_pass.compiled import CompiledQuantizers
from timm_ternary.training.threshold_pass.functional import quantized_once

CASES = [
    "tga",
    {"method": "tga", "granularity": "channel"},
    {"method": "tga", "options": {"init_factor": [0.05, 0.1]}},
    "ttq",
    "twn",
]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """Graphs compiled since the test began."""
    return int(counters["stats"]["unique_graphs"])


def layers_of(model: nn.Module) -> list[Any]:
    return [model.get_submodule(name) for name in quantizers_of(model)]


def weights_and_gradients(
    layers: list[Any], context: AbstractContextManager[None], step: int
) -> tuple[list[Tensor], list[Tensor]]:
    parameters = [p for layer in layers for p in layer.parametrizations.parameters()]
    with context:
        weights = [layer.weight for layer in layers]
        assert all(layer.weight is weight for layer, weight in zip(layers, weights, strict=True))
    generator = torch.Generator().manual_seed(step)
    outer = [torch.randn(weight.shape, generator=generator) for weight in weights]
    return weights, list(torch.autograd.grad(weights, parameters, outer, materialize_grads=True))


def compare_steps(ternary: Any, backend: str, relative: float, steps: int = 5) -> None:
    """Some steps of descent; the two are compared at each."""
    model = small_net(ternary).train()
    layers = layers_of(model)
    compiled = CompiledQuantizers(layers, backend)
    parameters = [p for layer in layers for p in layer.parametrizations.parameters()]
    for step in range(steps):
        plain = weights_and_gradients(layers, quantized_once(layers), step)
        fused = weights_and_gradients(layers, compiled.quantized_once(), step)
        for one, other in zip(plain[0], fused[0], strict=True):
            assert torch.equal(one.sign(), other.sign())
            torch.testing.assert_close(other, one, rtol=relative, atol=0)
        for one, other in zip(plain[1], fused[1], strict=True):
            # Sums of many terms of both signs: relative to a term, not to what remains.
            torch.testing.assert_close(other, one, rtol=relative, atol=20 * relative)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, plain[1], strict=True):
                parameter -= 0.01 * gradient
    assert graphs() <= 1 and not counters["graph_break"]


@pytest.mark.parametrize(
    "ternary", [*CASES, *sorted(set(names()) - {"tga", "ttq", "twn"})], ids=str
)
def test_traced_quantizers_equal_the_loop(ternary: Any) -> None:
    compare_steps(ternary, "aot_eager", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("ternary", CASES, ids=str)
def test_compiled_quantizers_equal_the_loop(ternary: Any) -> None:
    compare_steps(ternary, "inductor", 1e-6)


def test_the_models_weights_are_used() -> None:
    """Its values, not copies of when it was compiled; other parametrizations stay on top."""
    model = small_net().train()

    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(model.second, "weight", Twice())
    layers = layers_of(model)
    compiled = CompiledQuantizers(layers, "aot_eager")
    for _ in range(2):
        expected = [layer.weight.detach().clone() for layer in layers]
        with compiled.quantized_once():
            for layer, weight in zip(layers, expected, strict=True):
                assert torch.equal(layer.weight, weight) and weight.count_nonzero()
        with torch.no_grad():
            for layer in layers:
                latent_weight(layer).mul_(-3)
                assert not layer.weight.equal(expected[0])
    assert graphs() == 1


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer's quantizers are traced, but run as they are: compiling takes long."""
    monkeypatch.setattr(
        update, "CompiledQuantizers", lambda layers: CompiledQuantizers(layers, "eager")
    )


@pytest.mark.parametrize(
    ("ternary", "options", "expected"),
    [
        ("tga", {}, 2),  # thresholds' pass, weights' pass
        ("tga", {"threshold_every": 2, "gradient_accumulation_steps": 2}, 2),
        ("tga", {"soft_epochs": 1.0}, 4),
        ("tga", {"update": "joint"}, 1),
        ("ttq", {}, 1),
    ],
    ids=str,
)
def test_training_is_the_same(
    tmp_path: Path, ternary: str, options: dict[str, Any], expected: int, traced: None
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5, **options}
    plain = trainer(tmp_path / "a", small_net(ternary), **saving)
    plain.train()
    assert graphs() == 0
    run = trainer(tmp_path / "b", small_net(ternary), compile_quantizers=True, **saving)
    run.train()
    assert (graphs(), dict(counters["graph_break"])) == (expected, {})
    assert losses(run) == losses(plain)
    assert_same_state(run.model, plain.model)
    one, other = (load_file(tmp_path / x / "checkpoint-5" / "model.safetensors") for x in "ab")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert run.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    assert graphs() == expected  # evaluation and codes are never compiled


def test_the_model_knows_nothing_of_it(tmp_path: Path, traced: None) -> None:
    run = trainer(tmp_path, compile_quantizers=True, max_steps=2)
    run.train()
    assert_same_state(copy.deepcopy(run.model), run.model)
    state = pickle.loads(pickle.dumps(run.model.state_dict()))
    assert state.keys() == small_net().state_dict().keys()
    assert all("forward" not in vars(m) for m in run.model.modules())
    before = graphs()
    codes = [layer_code(layer) for layer in layers_of(run.model)]
    found = list(quantizers_of(run.model))
    packed = pack_(run.model)
    for code, name in zip(codes, found, strict=True):
        assert torch.equal(layer_code(packed.get_submodule(name)).codes, code.codes)
    assert graphs() == before


def test_resumes_to_the_same(tmp_path: Path, traced: None) -> None:
    options = {"compile_quantizers": True, "save_strategy": "steps", "save_steps": 5}
    whole = trainer(tmp_path / "a", **options)
    whole.train()
    resumed = trainer(tmp_path / "b", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    assert_same_state(resumed.model, whole.model)


def test_refuses_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ({"torch_compile": True}, {"torch_compile_backend": "eager"}):
        with pytest.raises(ValueError, match="torch_compile compiles the quantizers with the"):
            arguments(tmp_path, compile_quantizers=True, **option)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="for one process, and these are 2: leave it out"):
        arguments(tmp_path, compile_quantizers=True)


def test_no_compiler_is_one_line(tmp_path: Path) -> None:
    model = ternarize_(nn.Linear(5, 3), TernaryConfig())
    compiled = CompiledQuantizers(layers_of(model))
    changes = {"cpp.cxx": (None, str(tmp_path / "none")), "force_disable_caches": True}
    line = r"No working C\+\+ compiler.*set CXX, or leave"
    with inductor.patch(changes), pytest.raises(ValueError, match=line) as found:
        with compiled.quantized_once():
            pass
    assert "\n" not in str(found.value)
