"""The pass of the thresholds by itself: what it finds in a model, its gradient and its step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from trainer_models import Images, arguments, assert_same_state, losses, small_net

from timm_ternary.nn.convert import pack_, quantizers_of
from timm_ternary.training.optim import TwoPhaseOptimizer
from timm_ternary.training.threshold_pass.update import ThresholdPass
from timm_ternary.training.trainer import TernaryTrainer


def _pass(path: Path, model: nn.Module, **options: Any) -> ThresholdPass:
    return ThresholdPass(model, arguments(path, **options), Accelerator(cpu=True))


def _batches(model: nn.Module) -> tuple[list[dict[str, Tensor]], Any]:
    """Two micro-batches of 8, and the share of each in their mean loss."""
    data = Images(16)
    parts = ({"pixel_values": data.pixels[i::2], "labels": data.labels[i::2]} for i in (0, 1))
    return list(
        parts
    ), lambda part, kept: F.cross_entropy(model(part["pixel_values"]), part["labels"]) / 2


@pytest.mark.parametrize(
    ("ternary", "options", "alternate", "count"),
    [
        ("tga", {}, True, 3),
        ("tga", {"update": "joint"}, False, 3),
        ("ttq", {}, False, 6),
        ("twn", {}, False, 0),
        (None, {}, False, 0),
    ],
    ids=str,
)
def test_what_it_finds(
    tmp_path: Path, ternary: Any, options: Any, alternate: bool, count: int
) -> None:
    model = small_net(ternary)
    own = _pass(tmp_path, model, **options)
    assert (own.alternate, len(own.parameters)) == (alternate, count)
    assert list(own.quantizers) == list(quantizers_of(model))
    own.switch(False)
    assert not any(p.requires_grad for p in own.parameters.values())
    own.switch(True)
    assert all(p.requires_grad for p in own.parameters.values())


def test_a_packed_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"type timm_ternary.unpack_\(model\)"):
        _pass(tmp_path, pack_(small_net()))


def test_the_gradient_is_that_of_the_effective_batch(tmp_path: Path) -> None:
    model = small_net(dropout=0.3).train()
    before, state = copy.deepcopy(model), torch.random.get_rng_state()
    own = _pass(tmp_path, model)
    own.switch(False)
    batches, share = _batches(model)
    flat = own.gradient(model, batches, share, lambda index: (0, index))
    assert_same_state(model, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert not any(p.requires_grad for p in own.parameters.values())

    own.switch(True)
    loss = sum(share(batch, 1.0) for batch in batches)  # type: ignore[misc]
    expected = torch.autograd.grad(loss, list(own.parameters.values()))
    torch.testing.assert_close(flat, torch.cat([g.reshape(-1) for g in expected]))


def test_a_step_moves_thresholds_only(tmp_path: Path) -> None:
    model = small_net()
    own = _pass(tmp_path, model)
    thresholds = list(own.parameters.values())
    weights = [p for p in model.parameters() if all(p is not t for t in thresholds)]
    optimizer = TwoPhaseOptimizer(
        torch.optim.SGD(weights, lr=1.0), torch.optim.SGD(thresholds, lr=0.5)
    )
    before = [p.detach().clone() for p in (*thresholds, *weights)]
    own.step(optimizer, torch.tensor([0.2, -0.4, 0.0]))
    expected = [before[0] - 0.1, before[1] + 0.2, *before[2:]]
    for parameter, value in zip((*thresholds, *weights), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value)
        assert parameter.grad is None


class _Scaled(TernaryTrainer):
    """Another loss, as a user writes one."""

    def task_loss(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> tuple[Tensor, Any]:
        loss, outputs = super().task_loss(model, inputs, num_items_in_batch)
        return 2 * loss, outputs


def test_a_loss_of_ones_own_reaches_both_passes(tmp_path: Path) -> None:
    runs = []
    for kind in (TernaryTrainer, _Scaled):
        args = arguments(tmp_path, max_steps=1, learning_rate=0.0)
        run = kind(small_net(), args, train_dataset=Images())
        run.train()
        runs.append(run)
    plain, scaled = runs
    assert losses(scaled) == pytest.approx([2 * loss for loss in losses(plain)])
    norms = [run.state.log_history[0]["threshold_grad_norm"] for run in runs]
    assert norms[1] == pytest.approx(2 * norms[0]) and norms[0] > 0


class _Hooked(TernaryTrainer):
    """As for the stock Trainer, which has one pass."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs)


def test_a_loss_in_the_hook_alone_is_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind, options in ((_Hooked, {"update": "joint"}), (_Scaled, {}), (_Hooked, {})):
        assert not caplog.records
        kind(small_net(), arguments(tmp_path, **options)).create_optimizer()
    assert "_Hooked.compute_loss is for the weights' pass" in caplog.text
    assert "task_loss" in caplog.text
