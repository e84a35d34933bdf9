"""TernaryTrainer: the kinds of models, losses, updates and logs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from trainer_models import (
    CLASSES,
    Images,
    StockTrainer,
    arguments,
    assert_same_state,
    losses,
    small_net,
    trainer,
)
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from timm_ternary.config import TernaryConfig
from timm_ternary.nn.convert import pack_, quantizers_of, ternarize_
from timm_ternary.training.metrics import ternary_statistics
from timm_ternary.training.threshold_pass.functional import resolve_update
from timm_ternary.training.trainer import TernaryTrainer


def _wrapped() -> TimmWrapperForImageClassification:
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture="test_resnet", num_labels=CLASSES, do_pooling=True)
    return ternarize_(TimmWrapperForImageClassification(config), "tga")


def _training_logs(run: TernaryTrainer) -> list[dict[str, Any]]:
    return [entry for entry in run.state.log_history if "loss" in entry]


def test_float_model_trains_as_with_the_stock_trainer(tmp_path: Path) -> None:
    options = {"optimizer": None, "momentum": None, "gradient_accumulation_steps": 2}
    ours = trainer(tmp_path, small_net(None), **options)
    ours.train()
    stock = StockTrainer(small_net(None), arguments(tmp_path, **options), train_dataset=Images())
    stock.train()
    assert losses(ours) == losses(stock)
    assert_same_state(ours.model, stock.model)
    assert not any(k.startswith(("zeros", "threshold")) for k in _training_logs(ours)[-1])


def test_plain_timm_model_and_its_wrapper_train_alike(tmp_path: Path) -> None:
    wrapper = _wrapped()
    plain = ternarize_(timm.create_model("test_resnet", num_classes=CLASSES), "tga")
    plain.load_state_dict(wrapper.timm_model.state_dict())
    options = {"num_train_epochs": 1, "gradient_accumulation_steps": 2, "learning_rate": 0.01}
    one, other = (trainer(tmp_path, model, **options) for model in (plain, wrapper))
    one.train()
    other.train()
    assert losses(one) == losses(other)
    assert_same_state(one.model, other.model.timm_model)
    plain_logs, wrapped_logs = _training_logs(one), _training_logs(other)
    for key in ("accuracy", "threshold_grad_norm", "zeros"):
        assert [e[key] for e in plain_logs] == [e[key] for e in wrapped_logs]
    metrics = one.evaluate(), other.evaluate()
    assert metrics[0]["eval_accuracy"] == metrics[1]["eval_accuracy"]
    assert metrics[0]["eval_loss"] == pytest.approx(metrics[1]["eval_loss"])


def test_wrapper_resumes_with_the_same_bits(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 7, "max_steps": 9, "learning_rate": 0.01}
    whole = trainer(tmp_path / "a", _wrapped(), **options)
    whole.train()
    resumed = trainer(tmp_path / "b", _wrapped(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-7"))
    assert losses(resumed) == losses(whole)
    assert_same_state(resumed.model, whole.model)


@pytest.mark.parametrize("wrapped", [False, True])
def test_label_smoothing(tmp_path: Path, wrapped: bool) -> None:
    model = _wrapped() if wrapped else small_net(dropout=0.0)
    run = trainer(tmp_path, model, label_smoothing_factor=0.2, max_steps=1)
    data = Images(10, seed=2)
    with torch.no_grad():
        output = model.eval()(data.pixels)
    expected = F.cross_entropy(
        output.logits if wrapped else output, data.labels, label_smoothing=0.2
    )
    assert run.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    run.train()
    assert _training_logs(run)[0]["threshold_grad_norm"] > 0


def test_compute_loss_func_gets_logits_and_scales_the_loss_itself(tmp_path: Path) -> None:
    def summed(logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any) -> Any:
        return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch

    # 40 images in groups of two batches of 4: sums over a group are means over its batches.
    runs = []
    for options in ({}, {"compute_loss_func": summed}):
        args = arguments(tmp_path, gradient_accumulation_steps=2, num_train_epochs=1)
        runs.append(TernaryTrainer(small_net(), args, train_dataset=Images(), **options))
        runs[-1].train()
    norms = [[e["threshold_grad_norm"] for e in _training_logs(run)] for run in runs]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    for one, other in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_joint_update_trains_scales_in_their_own_group(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        small_net("ttq", dropout=0.0),
        max_steps=1,
        momentum=0.0,
        max_grad_norm=0.0,
        threshold_learning_rate=0.02,
        lr_scheduler_type="constant",
        train_dataset=Images(4),
    )
    reference, data = small_net("ttq", dropout=0.0), Images(4)
    loss = F.cross_entropy(reference.train()(data.pixels), data.labels)
    loss.backward()
    run.train()
    last = run.optimizer.param_groups[-1]
    assert last["lr"] == 0.02 and last["weight_decay"] == 0.0 and len(last["params"]) == 6
    log = _training_logs(run)[0]
    assert log["threshold_learning_rate"] == 0.02 and "threshold_grad_norm" not in log
    for name, quantizer in quantizers_of(reference).items():
        moved = quantizers_of(run.model)[name]
        for scale in ("scale_pos", "scale_neg"):
            before = getattr(quantizer, scale)
            expected = before - 0.02 * before.grad
            torch.testing.assert_close(getattr(moved, scale), expected.detach())
            assert log[f"{scale}/{name}"] == getattr(moved, scale).item() != 1.0


def test_update_can_be_chosen_against_the_method(tmp_path: Path) -> None:
    run = trainer(tmp_path, small_net("ttq"), update="alternate", max_steps=2)
    run.train()
    assert _training_logs(run)[0]["threshold_grad_norm"] > 0
    run = trainer(tmp_path, small_net("tga"), update="joint", max_steps=2)
    run.train()
    assert "threshold_grad_norm" not in _training_logs(run)[0]
    assert len(run.optimizer.param_groups[-1]["params"]) == 3


def test_default_update_is_the_methods() -> None:
    tga, ttq, twn = (quantizers_of(small_net(m)).values() for m in ("tga", "ttq", "twn"))
    assert resolve_update(None, tga) == "alternate"
    assert resolve_update(None, ttq) == resolve_update(None, twn) == "joint"
    assert resolve_update(None, [*tga, *twn]) == "alternate"
    assert resolve_update(None, [*tga, *ttq]) == resolve_update(None, []) == "joint"
    assert resolve_update("alternate", ttq) == "alternate"


def test_method_without_parameters_trains(tmp_path: Path) -> None:
    run = trainer(tmp_path, small_net("twn"), update="alternate", max_steps=2)
    run.train()
    log = _training_logs(run)[-1]
    assert 0 < log["zeros"] < 1 and "threshold_learning_rate" not in log


def test_logs_hold_the_state_after_the_step(tmp_path: Path) -> None:
    config = TernaryConfig("tga", granularity="channel", exclude=("first",))
    data = Images(40)
    run = trainer(tmp_path, small_net(config, dropout=0.0), logging_steps=5, train_dataset=data)
    hits = []
    run.model.head.register_forward_hook(
        lambda _, inputs, output: hits.append(output.argmax(1).detach())
    )
    seen = []
    step = run.training_step

    def spy(model: nn.Module, inputs: Any, count: Any = None) -> torch.Tensor:
        hits.clear()
        loss = step(model, inputs, count)
        # The threshold pass comes first, and does not count.
        seen.append((hits[-1] == inputs["labels"]).sum().item())
        return loss

    run.training_step = spy  # type: ignore[method-assign]
    run.train()
    logs = _training_logs(run)
    assert len(logs) == 4
    for index, entry in enumerate(logs):
        assert entry["accuracy"] == sum(seen[5 * index : 5 * index + 5]) / 20
        assert entry["threshold_learning_rate"] == entry["learning_rate"] > 0
    codes = {n: (q(getattr(run.model, n).parametrizations.weight.original) == 0).double()
             for n, q in quantizers_of(run.model).items()}  # fmt: skip
    assert sorted(codes) == ["head", "second"]
    last = logs[-1]
    for name, zero in codes.items():
        assert last[f"zeros/{name}"] == pytest.approx(zero.mean().item())
        threshold = quantizers_of(run.model)[name].threshold
        assert threshold.numel() > 1
        assert last[f"threshold/{name}"] == pytest.approx(threshold.mean().item())
    assert last["zeros"] == pytest.approx(torch.cat([z.flatten() for z in codes.values()]).mean())
    assert ternary_statistics(small_net(None), {}) == {}


def test_console_is_spared_the_layers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trainer(tmp_path, max_steps=1).train()
    printed = capsys.readouterr().err
    assert "zeros " in printed and "train " in printed and "zeros/" not in printed


def test_own_metrics_get_logits(tmp_path: Path) -> None:
    shapes = []

    def metrics(prediction: Any) -> dict[str, float]:
        shapes.append(prediction.predictions.shape)
        return {"mine": 0.5}

    run = TernaryTrainer(
        small_net(), arguments(tmp_path), eval_dataset=Images(10), compute_metrics=metrics
    )
    assert run.evaluate()["eval_mine"] == 0.5 and shapes == [(10, CLASSES)]


@pytest.mark.parametrize("wrapped", [False, True])
def test_images_without_labels_are_predicted(tmp_path: Path, wrapped: bool) -> None:
    run = trainer(tmp_path, _wrapped() if wrapped else None)
    images = [{"pixel_values": pixels} for pixels in Images(5).pixels]
    result = run.predict(images)
    assert result.predictions.shape == (5, CLASSES) and result.label_ids is None


def test_bf16_autocast(tmp_path: Path) -> None:
    run = trainer(tmp_path, bf16=True)
    dtypes = set()
    run.model.first.register_forward_hook(lambda *a: dtypes.add(a[2].dtype))
    run.train()
    logs = _training_logs(run)
    assert dtypes == {torch.bfloat16}
    assert logs[-1]["threshold_grad_norm"] > 0 and logs[-1]["loss"] < logs[0]["loss"]
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


def test_probabilities_as_labels(tmp_path: Path) -> None:
    data = [
        {"pixel_values": item["pixel_values"], "labels": F.one_hot(item["labels"], CLASSES).float()}
        for item in (Images()[index] for index in range(40))
    ]
    soft = trainer(tmp_path, small_net(dropout=0.0), train_dataset=data)
    hard = trainer(tmp_path, small_net(dropout=0.0))
    soft.train()
    hard.train()
    assert losses(soft) == pytest.approx(losses(hard), rel=1e-4)
    accuracies = [[e["accuracy"] for e in _training_logs(run)] for run in (soft, hard)]
    assert accuracies[0] == accuracies[1]


def test_channels_last_is_saved(tmp_path: Path) -> None:
    model = small_net().to(memory_format=torch.channels_last)
    run = trainer(tmp_path, model, max_steps=1, save_strategy="steps", save_steps=1)
    run.train()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()


def test_packed_model_is_evaluated_but_not_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(tmp_path)
    before = run.evaluate()
    with caplog.at_level(logging.ERROR):
        packed = trainer(tmp_path, pack_(run.model))
    assert packed.evaluate()["eval_loss"] == pytest.approx(before["eval_loss"])
    with pytest.raises(ValueError, match="unpack_"):
        packed.train()
