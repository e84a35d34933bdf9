"""TwoPhaseOptimizer is an Optimizer to whatever takes one, and every schedule gives its rates."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer, lr_scheduler, swa_utils
from trainer_models import losses, small_net, trainer
from transformers.trainer_utils import SchedulerType

from timm_ternary.nn.convert import quantizers_of
from timm_ternary.training.optim import TwoPhaseOptimizer, rate_of

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "lookahead": lambda p: timm.optim.create_optimizer_v2(p, "lookahead_sgd", lr=0.1),
}
THRESHOLDS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "adam": lambda p: torch.optim.Adam(p, lr=0.5),
}
SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "multi step": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "constant": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=4),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=8),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, total_iters=3), lr_scheduler.StepLR(o, 2)], [2]
    ),
    "swa": lambda o: swa_utils.SWALR(o, 0.02, anneal_epochs=3),
}


def _pair(weights: str, thresholds: str) -> tuple[nn.Parameter, nn.Parameter, TwoPhaseOptimizer]:
    weight, threshold = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1))
    both = TwoPhaseOptimizer(OPTIMIZERS[weights]([weight]), THRESHOLDS[thresholds]([threshold]))
    return weight, threshold, both


def _step(optimizer: Optimizer, *parameters: nn.Parameter, grad: float = 1.0) -> None:
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, grad)
    if isinstance(optimizer, TwoPhaseOptimizer):
        optimizer.step_thresholds()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("thresholds", THRESHOLDS)
@pytest.mark.parametrize("weights", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_of_torch_move_the_weights_as_they_move_a_float_models(
    schedule: str, weights: str, thresholds: str
) -> None:
    weight, threshold, both = _pair(weights, thresholds)
    alone = nn.Parameter(torch.ones(3))
    stock = OPTIMIZERS[weights]([alone])
    schedules = SCHEDULES[schedule](both), SCHEDULES[schedule](stock)
    for _ in range(6):
        _step(both, weight, threshold)
        _step(stock, alone)
        for each in schedules:
            each.step(1.0) if schedule == "plateau" else each.step()
        for key in ("lr", "momentum", "betas", "initial_lr"):
            assert both.param_groups[0].get(key) == stock.param_groups[0].get(key), key
        assert torch.equal(weight, alone)
    assert len({group["lr"] for group in stock.param_groups}) == 1


@pytest.mark.parametrize("schedule", ["cyclic", "one cycle"])
def test_a_schedule_that_cycles_the_momentum_gives_thresholds_none(schedule: str) -> None:
    weight, threshold, both = _pair("sgd", "sgd")
    cycle = SCHEDULES[schedule](both)
    for _ in range(3):
        before, rate = threshold.item(), both.threshold_groups[0]["lr"]
        _step(both, weight, threshold)
        assert threshold.item() == pytest.approx(before - rate)
        cycle.step()


@pytest.mark.parametrize("weights", OPTIMIZERS)
def test_it_is_loaded_moved_and_scheduled_by_accelerate(weights: str) -> None:
    """`prepare` loads the state anew: the rates must go on to reach both optimizers."""
    weight, threshold, both = _pair(weights, "sgd")
    wrapped = Accelerator(cpu=True).prepare(both)
    schedule = lr_scheduler.StepLR(wrapped, 1, gamma=0.0)
    _step(wrapped, weight)
    assert (weight < 1).all()
    schedule.step()
    kept, old = weight.detach().clone(), threshold.item()
    for parameter in (weight, threshold):
        parameter.grad = torch.ones_like(parameter)
    both.step_thresholds()
    wrapped.step()
    assert torch.equal(weight, kept) and threshold.item() == old
    assert wrapped.defaults["lr"] == 0.1


@pytest.mark.parametrize("weights", OPTIMIZERS)
@pytest.mark.parametrize("thresholds", THRESHOLDS)
def test_its_state_is_all_there_is_to_save(weights: str, thresholds: str) -> None:
    one, other = _pair(weights, thresholds), _pair(weights, thresholds)
    for _ in range(7):  # Lookahead looks back at every sixth step
        _step(one[2], *one[:2])
    file = io.BytesIO()
    torch.save(one[2].state_dict(), file)
    file.seek(0)
    other[2].load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for mine, theirs in zip(one[:2], other[:2], strict=True):
            theirs.copy_(mine)
    for _ in range(6):
        for weight, threshold, both in (one, other):
            _step(both, weight, threshold, grad=2.0)
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("weights", ["sgd", "adamw"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_on_by_itself(weights: str, copied: Callable[[Any], Any]) -> None:
    weight, threshold, both = _pair(weights, "adam")
    lr_scheduler.StepLR(both, 1)  # it hangs itself into `step`
    _step(both, weight, threshold)
    twin = copied(both)
    own = [parameter for group in twin.param_groups for parameter in group["params"]]
    assert [parameter.tolist() for parameter in own] == [weight.tolist(), threshold.tolist()]
    _step(twin, *own, grad=3.0)
    assert weight.tolist() != own[0].tolist() and threshold.tolist() != own[1].tolist()
    _step(both, weight, threshold, grad=3.0)
    assert [parameter.tolist() for parameter in own] == [weight.tolist(), threshold.tolist()]


def test_a_group_that_is_added_later_is_one_of_the_weights() -> None:
    _, threshold, both = _pair("adamw", "sgd")
    late = nn.Parameter(torch.ones(2))
    both.add_param_group({"params": [late], "lr": 0.25})
    assert both.param_groups[2]["betas"] == (0.9, 0.999) and len(both.threshold_groups) == 1
    late.grad, threshold.grad = torch.ones(2), torch.ones(1)
    both.step_thresholds()
    assert torch.equal(late, torch.ones(2)) and threshold.item() == 0.5
    both.step()
    assert late[0].item() == pytest.approx(0.75, abs=0.01) and threshold.item() == 0.5
    # The last group is no longer that of the thresholds.
    assert (rate_of(both, [threshold]), rate_of(both, [late])) == (0.5, 0.25)
    both.load_state_dict(both.state_dict())
    both.step()
    assert late[0].item() < 0.6


def test_hooks_closures_and_the_scaler_of_float16() -> None:
    weight, threshold, both = _pair("adamw", "sgd")
    seen: list[str] = []
    both.register_step_pre_hook(lambda *_: seen.append("before"))
    both.register_step_post_hook(lambda *_: seen.append("after"))
    both.register_state_dict_post_hook(lambda _, state: {**state, "mine": 1})
    both.register_load_state_dict_pre_hook(lambda _, state: seen.append(f"{state['mine']}"))

    def closure() -> torch.Tensor:
        loss = (weight * 2).sum()
        loss.backward()
        return loss

    assert both.step(closure) == 6.0 and (weight < 1).all()
    assert seen == ["before", "after"] and threshold.item() == 1.0
    both.load_state_dict(both.state_dict())
    assert seen[2:] == ["1"]
    both.zero_grad(set_to_none=False)
    assert torch.equal(weight.grad, torch.zeros(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for grad, moves in ((8.0, True), (math.inf, False)):
        kept = weight.detach().clone()
        weight.grad = torch.full_like(weight, grad)
        scaler.scale(torch.ones(()))  # makes the scale
        scaler.step(both)
        scaler.update()
        assert torch.equal(weight, kept) != moves
    assert "Parameter Group 1" in repr(both)


def _log(output: Path, ternary: str | None, kind: str, **options: Any) -> list[float]:
    steps: list[float] = []

    def metrics(_: Any) -> dict[str, float]:
        # A plateau, the same for both networks.
        steps.append(0.0)
        return {"same": 0.5}

    run = trainer(
        output,
        small_net(ternary),
        max_steps=8,
        lr_scheduler_type=kind,
        warmup_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="same",
        **options,
    )
    run.compute_metrics = metrics
    run.train()
    assert len(losses(run)) == 8 and len(steps) == 8
    if ternary == "tga":
        thresholds = quantizers_of(run.model).values()
        assert all(quantizer.threshold.requires_grad for quantizer in thresholds)
    return [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]


KINDS: dict[str, dict[str, Any]] = {
    "polynomial": {"lr_end": 0.001, "power": 2.0},
    "cosine_with_min_lr": {"min_lr": 0.01},
    "cosine_warmup_with_min_lr": {"min_lr": 0.01, "warmup_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 3},
    "reduce_lr_on_plateau": {"patience": 0},
    "greedy": {"patience": 0, "min_lr": 0.001},
}


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "lookahead_sgd"}, {"update": "joint"}])
@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType])
def test_schedules_of_transformers_give_the_rates_of_a_float_run(
    tmp_path: Path, kind: str, optimizer: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"lr_scheduler_kwargs": KINDS.get(kind), **optimizer}
    ternary = _log(tmp_path / "a", "tga", kind, **options)
    options.pop("update", None)
    assert ternary == _log(tmp_path / "b", None, kind, **options)
    assert kind == "constant" or len(set(ternary)) > 1


def test_the_schedule_of_lookahead_reaches_its_steps(tmp_path: Path) -> None:
    """Rates that no step follows would be logged all the same."""
    run = trainer(
        tmp_path,
        optimizer="lookahead_sgd",
        max_steps=4,
        lr_milestones=[0.2],
        lr_gamma=[0.0],
        threshold_learning_rate=0.0,
        weight_decay=0.0,
    )
    weights: list[torch.Tensor] = []
    step = run.training_step

    def spy(*args: Any) -> torch.Tensor:
        weights.append(run.model.head.bias.detach().clone())
        return step(*args)

    run.training_step = spy  # type: ignore[method-assign]
    run.train()
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])
