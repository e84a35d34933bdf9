"""torch_compile: the step is really compiled, once, and gives what eager training gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.backends import registry
from trainer_models import losses, small_net, trainer


class _Counting:
    """A backend of torch.compile that runs a graph as it is, and counts."""

    def __init__(self) -> None:
        self.graphs = 0
        self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any, **options: Any) -> Callable[..., Any]:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Counting]:
    """In the place of "eager", since accelerate knows the names that it accepts."""
    counting = _Counting()
    registry.lookup_backend("eager")  # loads it, so that it stays replaced
    monkeypatch.setitem(registry._COMPILER_FNS, "eager", counting)
    torch._dynamo.reset()
    yield counting
    torch._dynamo.reset()


@pytest.mark.parametrize("method", ["tga", "ttq"])
def test_compiled_training_equals_eager(tmp_path: Path, method: str, backend: _Counting) -> None:
    options = {"save_strategy": "steps", "save_steps": 10, "gradient_accumulation_steps": 2}
    run = trainer(
        tmp_path / "a", small_net(method), torch_compile=True, torch_compile_backend="eager",
        **options,
    )  # fmt: skip
    run.train()
    # 10 micro-batches in each of two epochs. The rates change from step to step, the graph not.
    assert (backend.graphs, backend.calls) == (1, 20)
    eager = trainer(tmp_path / "b", small_net(method), **options)
    eager.train()
    assert (backend.graphs, backend.calls) == (1, 20)
    assert losses(run) == pytest.approx(losses(eager), rel=1e-5)
    saved = [load_file(tmp_path / x / "checkpoint-10" / "model.safetensors") for x in "ab"]
    assert saved[0].keys() == saved[1].keys() and not any("_orig_mod" in n for n in saved[0])
    for name, value in saved[0].items():
        torch.testing.assert_close(value, saved[1][name], rtol=1e-4, atol=1e-5)
    assert run.model.state_dict().keys() == eager.model.state_dict().keys()
    mine, other = run.evaluate(), eager.evaluate()
    assert mine["eval_loss"] == pytest.approx(other["eval_loss"], rel=1e-5)
    assert mine["eval_accuracy"] == other["eval_accuracy"]


def test_evaluation_alone_is_compiled_and_sees_new_weights(
    tmp_path: Path, backend: _Counting
) -> None:
    run = trainer(
        tmp_path,
        torch_compile=True,
        torch_compile_backend="eager",
        per_device_eval_batch_size=10,  # all in one: other shapes are other graphs
    )
    first = run.evaluate()["eval_loss"]
    assert backend.graphs == 1 and backend.calls >= 1
    with torch.no_grad():
        run.model.head.parametrizations.weight.original.neg_()
    second = run.evaluate()["eval_loss"]
    assert backend.graphs == 1  # the same graph, which must not hold an old weight
    plain = trainer(tmp_path, run.accelerator.unwrap_model(run.model, keep_torch_compile=False))
    assert second == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-5)
    assert second != pytest.approx(first, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tga", "ttq"])
def test_inductor_equals_eager(tmp_path: Path, method: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = trainer(tmp_path, small_net(method, dropout=0.0), torch_compile=True)
    run.train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    eager = trainer(tmp_path, small_net(method, dropout=0.0))
    eager.train()
    assert losses(run) == pytest.approx(losses(eager), rel=1e-3)
