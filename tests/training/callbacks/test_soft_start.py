"""The soft start: its schedule, and in TernaryTrainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset
from trainer_models import (
    Images,
    arguments,
    assert_same_state,
    losses,
    small_net,
    trainer,
)

from timm_ternary.nn.convert import quantizers_of
from timm_ternary.nn.trainable import latent_weight
from timm_ternary.training.callbacks.soft_start import soft_temperature_at

SOFT = {"soft_epochs": 1.0, "soft_temperature": [2.0, 32.0]}
TWO_BASES = {"method": "tga", "options": {"init_factor": [0.05, 0.2]}}


def test_the_schedule_is_geometric_then_hard() -> None:
    found = [soft_temperature_at(step, 5, 2.0, 32.0) for step in range(7)]
    assert found == [pytest.approx(t) for t in (2, 4, 8, 16, 32)] + [None, None]
    assert [soft_temperature_at(step, 1, 2.0, 32.0) for step in (0, 1)] == [2.0, None]
    assert soft_temperature_at(0, 0, 2.0, 32.0) is None


@pytest.mark.parametrize("update", ["alternate", "joint"])
@pytest.mark.parametrize("ternary", ["tga", "ttq", "rel", TWO_BASES], ids=str)
def test_trains_soft_then_exactly_hard(tmp_path: Path, ternary: object, update: str) -> None:
    run = trainer(tmp_path, small_net(ternary), update=update, max_steps=14, **SOFT)
    seen: list[bool] = []
    step = run.training_step

    def spy(*args: object) -> torch.Tensor:
        hard = []
        for name, quantizer in quantizers_of(run.model).items():
            latent = latent_weight(run.model.get_submodule(name))
            quantized = quantizer(latent)
            assert quantizer.training
            hard.append(torch.equal(quantized, quantizer.encode(latent).decode()))
        seen.append(all(hard))
        return step(*args)

    run.training_step = spy  # type: ignore[method-assign]
    run.train()
    # The first 10 steps are the first epoch.
    assert seen == [False] * 10 + [True] * 4
    logged = [entry.get("soft_temperature") for entry in run.state.log_history if "loss" in entry]
    expected = [2.0 * 16 ** (index / 9) for index in range(10)]
    assert logged == [pytest.approx(t) for t in expected] + [None] * 4


def test_both_passes_see_the_temperature_of_the_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, num_train_epochs=1, gradient_accumulation_steps=2, **SOFT)
    seen: list[float] = []
    quantizer = quantizers_of(run.model)["second"]
    quantizer.register_forward_hook(lambda *_: seen.append(float(quantizer._temperature)))
    run.train()
    # 5 optimizer steps of 2 micro-batches in 2 passes.
    expected = [2.0 * 2**index for index in range(5) for _ in range(4)]
    assert seen == pytest.approx(expected)


def test_it_changes_the_training_and_evaluation_stays_hard(tmp_path: Path) -> None:
    hard = trainer(tmp_path, num_train_epochs=1)
    hard.train()
    soft = trainer(tmp_path, num_train_epochs=1, eval_strategy="steps", eval_steps=5, **SOFT)
    evaluated: list[bool] = []
    net = soft.model

    def look(*_: object) -> None:
        if not net.training:
            weight = net.second.weight
            evaluated.append(len(weight.unique()) <= 3)

    net.register_forward_pre_hook(look)
    soft.train()
    assert losses(hard)[0] != losses(soft)[0] and losses(hard)[-1] != losses(soft)[-1]
    assert evaluated and all(evaluated)
    for quantizer in quantizers_of(net).values():
        assert quantizer._temperature is None


def test_a_model_is_hard_again_after_an_error(tmp_path: Path) -> None:
    data = Images()
    data.pixels[24:] = float("nan")
    run = trainer(tmp_path, train_dataset=data, **SOFT)
    with pytest.raises(ValueError, match="not finite"):
        run.train()
    net = run.model.train()
    for name, quantizer in quantizers_of(net).items():
        latent = latent_weight(net.get_submodule(name))
        assert torch.equal(quantizer(latent), quantizer.encode(latent).decode())


@pytest.mark.parametrize("at", [3, 5, 8])  # within the soft start, at its end, after it
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, at: int) -> None:
    options = {"gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "save_steps": at}
    options |= {"save_strategy": "steps", **SOFT}
    whole = trainer(tmp_path / "a", **options)
    whole.train()
    resumed = trainer(tmp_path / "b", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{at}"))
    assert whole.state.global_step == 10
    assert losses(resumed) == losses(whole)
    assert_same_state(resumed.model, whole.model)


def test_the_moving_average_is_evaluated_hard(tmp_path: Path) -> None:
    run = trainer(tmp_path, num_train_epochs=1, ema_decay=0.9, **SOFT)
    run.train()
    for layer in (run.model.first, run.model.second, run.model.head):
        assert len(layer.weight.unique()) <= 3


def test_parts_of_an_epoch(tmp_path: Path) -> None:
    run = trainer(tmp_path, num_train_epochs=1, soft_epochs=0.4)
    run.train()
    logged = [e["soft_temperature"] for e in run.state.log_history if "soft_temperature" in e]
    assert len(logged) == 4 and logged == sorted(logged)


@pytest.mark.parametrize("method", ["bwn", "admm", "abcnet", "dorefa"])
def test_methods_without_thresholds_are_refused(tmp_path: Path, method: str) -> None:
    run = trainer(tmp_path, small_net(method), **SOFT)
    with pytest.raises(ValueError, match=f"'{method}' has no thresholds.* bitnet, rel, tga, ttq"):
        run.train()
    assert run.state.global_step == 0


def test_float_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="soft_epochs is for ternary models"):
        trainer(tmp_path, small_net(None), **SOFT).train()


class _Stream(IterableDataset):
    def __iter__(self):
        yield from (Images()[index] for index in range(40))


def test_data_without_a_length_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, train_dataset=_Stream(), max_steps=4, **SOFT)
    with pytest.raises(ValueError, match=r"soft_epochs count epochs.*no length"):
        run.train()


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "2", None])
def test_bad_soft_epochs_are_named(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match=rf"soft_epochs must be .*got {value!r}"):
        arguments(tmp_path, soft_epochs=value)


def test_more_soft_epochs_than_epochs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most num_train_epochs=2, got 3"):
        arguments(tmp_path, soft_epochs=3)
    arguments(tmp_path, soft_epochs=2)


@pytest.mark.parametrize(
    "value",
    [[], [1.0], [1, 2, 3], [0, 5], [-1, 5], [5, 2], [1, float("inf")], [float("nan"), 2], ["1", 2]],
)
def test_bad_temperatures_are_named(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match=r"soft_temperature must be two finite.*got \["):
        arguments(tmp_path, soft_epochs=1, soft_temperature=value)
    arguments(tmp_path, soft_epochs=1, soft_temperature=[4, 4])


def test_a_temperature_without_soft_epochs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="type --soft_epochs N"):
        arguments(tmp_path, soft_temperature=[5.0, 50.0])


def test_a_run_that_ends_while_it_is_soft_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=4, soft_epochs=1)
    with pytest.raises(ValueError, match="are 10 optimizer steps, but the run has 4"):
        run.train()


def test_the_shortest_soft_start_is_one_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=3, soft_epochs=0.001)
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert ["soft_temperature" in entry for entry in logs] == [True, False, False]
