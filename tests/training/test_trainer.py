"""TernaryTrainer: Algorithm 1 inside the Trainer's loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from trainer_models import (
    Images,
    StockTrainer,
    arguments,
    assert_same_state,
    losses,
    small_net,
    trainer,
)
from transformers import TrainingArguments

from timm_ternary.nn.convert import quantizers_of
from timm_ternary.training.trainer import TernaryTrainer

pytestmark = pytest.mark.canary


@pytest.mark.parametrize("accumulation", [1, 3])
def test_rate_zero_equals_the_stock_trainer(tmp_path: Path, accumulation: int) -> None:
    # 40 images in batches of 4, in groups of 3: the last group of an epoch is short.
    shared = {"optimizer": None, "momentum": None, "gradient_accumulation_steps": accumulation}
    ours = trainer(tmp_path, threshold_learning_rate=0.0, **shared)
    ours.train()
    model = small_net()
    for quantizer in quantizers_of(model).values():
        quantizer.requires_grad_(False)
    stock = StockTrainer(model, arguments(tmp_path, **shared), train_dataset=Images())
    stock.train()
    assert len(losses(stock)) == ours.state.global_step > 0
    assert losses(ours) == losses(stock)
    assert_same_state(ours.model, stock.model)


def test_thresholds_move_first_by_their_own_gradient(tmp_path: Path) -> None:
    model = small_net(dropout=0.0).double()
    data = Images(8)
    data.pixels = data.pixels.double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    reference = small_net(dropout=0.0).double().train()
    seen: list[tuple[torch.Tensor, dict[str, float]]] = []
    model.register_forward_pre_hook(
        lambda _, inputs: seen.append(
            (inputs[0].clone(), {n: q.threshold.item() for n, q in quantizers_of(model).items()})
        )
    )
    rate = 0.03
    run = trainer(
        tmp_path,
        model,
        train_dataset=data,
        max_steps=1,
        gradient_accumulation_steps=2,
        threshold_learning_rate=rate,
        learning_rate=0.5,
        momentum=0.0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
    )
    run.train()

    first, second, third, fourth = (images for images, _ in seen)
    assert torch.equal(first, third) and torch.equal(second, fourth)
    batches = [(x, torch.stack([_label(data, image) for image in x])) for x in (first, second)]

    def loss() -> torch.Tensor:
        return sum(F.cross_entropy(reference(x), y) for x, y in batches) / 2  # type: ignore

    thresholds = {n: q.threshold for n, q in quantizers_of(reference).items()}
    gradients = torch.autograd.grad(loss(), list(thresholds.values()))
    for (name, threshold), gradient in zip(thresholds.items(), gradients, strict=True):
        assert gradient.abs() > 0
        moved = threshold.detach() - rate * gradient
        assert [values[name] for _, values in seen[:2]] == [threshold.item()] * 2
        assert [values[name] for _, values in seen[2:]] == [pytest.approx(moved.item(), 1e-12)] * 2
        with torch.no_grad():
            threshold.copy_(moved)
    norm = torch.cat(list(gradients)).norm().item()
    assert run.state.log_history[0]["threshold_grad_norm"] == pytest.approx(norm, 1e-9)

    weights = {n: p for n, p in reference.named_parameters() if not n.endswith("threshold")}
    gradients = torch.autograd.grad(loss(), list(weights.values()))
    after = dict(model.named_parameters())
    for (name, _), gradient in zip(weights.items(), gradients, strict=True):
        expected = before[name] - 0.5 * gradient
        torch.testing.assert_close(after[name].detach(), expected, rtol=1e-9, atol=1e-12)


def _label(data: Images, image: torch.Tensor) -> torch.Tensor:
    return data.labels[[torch.equal(image, p) for p in data.pixels].index(True)]


def test_batch_norm_counts_a_batch_once(tmp_path: Path) -> None:
    run = trainer(tmp_path, num_train_epochs=1)
    batches: list[torch.Tensor] = []
    model = run.model
    model.first_norm.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0]))
    run.train()
    assert len(batches) == 20
    assert int(model.first_norm.num_batches_tracked) == 10
    mean = torch.zeros(4)
    for batch in batches[1::2]:
        mean = 0.9 * mean + 0.1 * batch.detach().mean((0, 2, 3))
    torch.testing.assert_close(model.first_norm.running_mean, mean)


def test_both_passes_drop_the_same(tmp_path: Path) -> None:
    run = trainer(tmp_path, gradient_accumulation_steps=2, num_train_epochs=1)
    masks: list[torch.Tensor] = []
    run.model.dropout.register_forward_hook(
        lambda _, i, output: masks.append((output == 0) & (i[0] != 0))
    )
    run.train()
    assert len(masks) == 20
    for step in range(5):
        first, second, third, fourth = masks[4 * step : 4 * step + 4]
        # Where the thresholds moved, a few activations may be zero in one pass only.
        assert (first == third).double().mean() > 0.8 and (second == fourth).double().mean() > 0.8
    assert any(not torch.equal(a, b) for a, b in zip(masks[0::4], masks[1::4], strict=True))


class _Streaming(nn.Module):
    """Statistics without batch norm's switch, as in EvoNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.count.add_(1)
        return x


def test_other_statistics_count_a_batch_once(tmp_path: Path) -> None:
    model = small_net()
    model.dropout = _Streaming()
    trainer(tmp_path, model, num_train_epochs=1).train()
    assert float(model.dropout.count) == 10


@pytest.mark.parametrize("method", ["tga", "ttq"])
def test_resume_in_mid_epoch_gives_the_same_bits(tmp_path: Path, method: str) -> None:
    options = {"gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "save_steps": 3}
    options |= {"save_strategy": "steps", "threshold_every": 2 if method == "tga" else 1}
    whole = trainer(tmp_path / "a", small_net(method), **options)
    whole.train()
    resumed = trainer(tmp_path / "b", small_net(method), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert whole.state.global_step == 10
    assert losses(resumed) == losses(whole)
    assert_same_state(resumed.model, whole.model)
    one, other = (run.optimizer.state_dict() for run in (whole, resumed))
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys() and one["state"]
    for key, entry in one["state"].items():
        assert all(torch.equal(v, other["state"][key][k]) for k, v in entry.items())


def test_adam_state_of_thresholds_survives_resume(tmp_path: Path) -> None:
    options = {"threshold_optimizer": "adam", "save_strategy": "steps", "save_steps": 7}
    whole = trainer(tmp_path / "a", **options)
    whole.train()
    resumed = trainer(tmp_path / "b", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-7"))
    assert_same_state(resumed.model, whole.model)


def test_thresholds_are_left_as_they_came(tmp_path: Path) -> None:
    run = trainer(tmp_path, num_train_epochs=1)
    run.train()
    run.train()
    for quantizer in quantizers_of(run.model).values():
        assert quantizer.threshold.requires_grad and quantizer.threshold.grad is None


@pytest.mark.parametrize("every, expected", [(1, 10), (3, 4), (100, 1)])
def test_threshold_every(tmp_path: Path, every: int, expected: int) -> None:
    run = trainer(tmp_path, num_train_epochs=1, threshold_every=every)
    seen: list[float] = []
    step = run.training_step

    def spy(*args: object) -> torch.Tensor:
        loss = step(*args)
        seen.append(quantizers_of(run.model)["first"].threshold.item())
        return loss

    run.training_step = spy  # type: ignore[method-assign]
    before = quantizers_of(run.model)["first"].threshold.item()
    run.train()
    changes = [a != b for a, b in zip([before, *seen], seen, strict=False)]
    assert changes == [step % every == 0 for step in range(10)]
    assert sum(changes) == expected


def test_weights_are_quantized_once_a_pass(tmp_path: Path) -> None:
    model = small_net()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) + F.linear(x.mean((2, 3)).repeat(1, 2), self.net.head.weight)

    run = trainer(tmp_path, Twice(), num_train_epochs=1, logging_strategy="no")
    quantizers_of(model)["head"].register_forward_hook(count)
    run.train()
    assert calls == 2 * 10
    calls = 0
    run.evaluate()
    assert calls == 1


def test_evaluation_sees_the_weights_of_its_moment(tmp_path: Path) -> None:
    run = trainer(tmp_path, num_train_epochs=1, eval_strategy="steps", eval_steps=1)
    run.train()
    model, data = run.model.eval(), Images(10, seed=2)
    with torch.no_grad():
        logits = model(data.pixels)
    last = [entry for entry in run.state.log_history if "eval_loss" in entry][-1]
    assert last["eval_loss"] == pytest.approx(F.cross_entropy(logits, data.labels).item(), rel=1e-5)
    accuracy = (logits.argmax(1) == data.labels).double().mean().item()
    assert last["eval_accuracy"] == pytest.approx(accuracy)
    torch.testing.assert_close(torch.tensor(run.predict(data).predictions), logits)


def test_gradient_checkpointing_finds_the_same_graph(tmp_path: Path) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.utils.checkpoint.checkpoint(self.net.first, x, use_reentrant=False)
            x = F.relu(self.net.first_norm(y))
            x = F.relu(self.net.second_norm(self.net.second(x))).mean((2, 3))
            return self.net.head(self.net.dropout(x))

    plain = trainer(tmp_path, num_train_epochs=1)
    plain.train()
    checkpointed = trainer(tmp_path, Checkpointed(small_net()), num_train_epochs=1)
    checkpointed.train()
    assert losses(checkpointed) == losses(plain)
    assert_same_state(checkpointed.model.net, plain.model)


def test_not_finite_gradient_names_the_layer(tmp_path: Path) -> None:
    data = Images()
    data.pixels[:] = float("nan")
    run = trainer(tmp_path, train_dataset=data)
    with pytest.raises(ValueError, match=r"gradient of first\.threshold is not finite"):
        run.train()
    assert quantizers_of(run.model)["first"].threshold.requires_grad
    assert run.model.first_norm.track_running_stats


def test_overflow_of_float16_skips_the_thresholds(tmp_path: Path) -> None:
    data = Images()
    data.pixels[:] = float("nan")
    run = trainer(tmp_path, train_dataset=data)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    run.create_optimizer()
    before = [q.threshold.item() for q in quantizers_of(run.model).values()]
    batch = {"pixel_values": data.pixels[:4], "labels": data.labels[:4]}
    run.update_thresholds([batch], None)
    assert [q.threshold.item() for q in quantizers_of(run.model).values()] == before


def test_scaled_gradient_is_scaled_back(tmp_path: Path) -> None:
    data, norms = Images(), []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        run = trainer(tmp_path)
        run.accelerator.scaler = scaler
        run.create_optimizer()
        batch = {"pixel_values": data.pixels, "labels": data.labels}
        norms.append(run.update_thresholds([batch], None))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6) and norms[0] > 0


def test_a_loss_that_is_told_the_number_of_labels_counts_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def summed(logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: int) -> torch.Tensor:
        return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch

    data = Images(4)
    run = TernaryTrainer(
        small_net(dropout=0.0), arguments(tmp_path), train_dataset=data, compute_loss_func=summed
    )
    batch = {"pixel_values": data.pixels, "labels": data.labels}
    alone = run.compute_loss(run.model.train(), batch, num_items_in_batch=4)
    # Two processes with 4 images each; their gradients are averaged.
    monkeypatch.setattr(type(run.accelerator), "num_processes", 2)
    shared = run.compute_loss(run.model, batch, num_items_in_batch=8)
    assert shared.item() == pytest.approx(alone.item())


def test_several_gpus_in_one_process_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="accelerate launch --multi_gpu --num_processes 2"):
        TernaryTrainer(small_net(), args, train_dataset=Images())


def test_plain_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TernaryTrainingArguments"):
        TernaryTrainer(small_net(), TrainingArguments(str(tmp_path), use_cpu=True))


def test_foreign_optimizer_is_refused_for_the_alternate_update(tmp_path: Path) -> None:
    model = small_net()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    run = TernaryTrainer(model, arguments(tmp_path), train_dataset=Images(), optimizers=(sgd, None))
    with pytest.raises(ValueError, match="--update joint"):
        run.train()
