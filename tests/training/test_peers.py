"""What transformers tests of its Trainer, here of TernaryTrainer: as the stock Trainer does it.

Its tests/trainer use models of regression and of language; the ideas are taken over for images.
The stock Trainer trains the float network, TernaryTrainer the float one and both updates of the
ternary one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainer_models import CLASSES, Images, arguments, losses, small_net
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback

from timm_ternary.nn.convert import quantizers_of
from timm_ternary.training.trainer import TernaryTrainer

KINDS = ("stock", "float", "tga", "ttq")


class Stock(Trainer):
    """transformers' Trainer, told how a model without `labels` gives a loss and outputs."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        found = model(inputs["pixel_values"])
        logits = found["logits"] if isinstance(found, dict) else found
        logits = logits[0] if isinstance(logits, tuple) else logits
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(
                found, inputs["labels"], num_items_in_batch=num_items_in_batch
            )
        else:
            loss = F.cross_entropy(logits, inputs["labels"])
        outputs = {**found, "loss": loss} if isinstance(found, dict) else {"logits": found}
        return (loss, outputs) if return_outputs else loss


def make(kind: str, output: Path, wrap: Any = None, **options: Any) -> Trainer:
    """One of `KINDS` on 40 images, three steps unless `options` say otherwise."""
    keys = (
        "callbacks compute_metrics compute_loss_func optimizers optimizer_cls_and_kwargs "
        "preprocess_logits_for_metrics model_init"
    ).split()
    extra = {key: options.pop(key) for key in keys if key in options}
    model = small_net(None if kind in ("stock", "float") else kind)
    made = model if wrap is None else wrap(model)
    # SGD by transformers' name for it, which the stock Trainer knows too.
    quick = {"max_steps": 3, "optimizer": None, "momentum": None, "optim": "sgd"}
    args = arguments(output / kind, **{**quick, **options})
    return (Stock if kind == "stock" else TernaryTrainer)(
        None if "model_init" in extra else made,
        args,
        train_dataset=Images(),
        eval_dataset=Images(10, seed=2),
        **extra,
    )


class Seen(TrainerCallback):
    """Names of the events, in their order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") and name != "on_init_end":
            events = object.__getattribute__(self, "events")
            return lambda *_, **__: events.append(name)
        return object.__getattribute__(self, name)


class TestCallbacks:
    """tests/trainer/test_trainer_callback.py."""

    def test_events_come_in_the_order_of_the_stock_trainer(self, tmp_path: Path) -> None:
        found = {}
        for kind in KINDS:
            seen = Seen()
            run = make(
                kind,
                tmp_path,
                callbacks=[seen],
                eval_strategy="steps",
                eval_steps=2,
                save_strategy="steps",
                save_steps=2,
                gradient_accumulation_steps=2,
                max_steps=4,
            )
            run.train()
            found[kind] = seen.events
        assert found["stock"] == found["float"] == found["tga"] == found["ttq"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_added_removed_and_popped_by_class_and_by_instance(
        self, tmp_path: Path, kind: str
    ) -> None:
        run = make(kind, tmp_path)
        before = [type(c) for c in run.callback_handler.callbacks]
        one, other = Seen(), Seen()
        run.add_callback(Seen)
        run.add_callback(one)
        assert type(run.pop_callback(Seen)) is Seen
        assert run.pop_callback(one) is one
        run.add_callback(other)
        run.remove_callback(other)
        run.add_callback(Seen)
        run.remove_callback(Seen)
        assert [type(c) for c in run.callback_handler.callbacks] == before
        run.train()

    @pytest.mark.parametrize("kind", KINDS)
    def test_early_stopping_of_transformers(self, tmp_path: Path, kind: str) -> None:
        run = make(
            kind,
            tmp_path,
            callbacks=[EarlyStoppingCallback(2)],
            compute_metrics=lambda _: {"same": 0.5},
            metric_for_best_model="same",
            load_best_model_at_end=True,
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=1,
            save_steps=1,
            max_steps=9,
        )
        run.train()
        assert run.state.global_step == 3 and run.state.best_global_step == 1
        state = json.loads(
            (Path(run.args.output_dir) / "checkpoint-3" / "trainer_state.json").read_text()
        )
        assert state["best_metric"] == 0.5

    @pytest.mark.parametrize("kind", KINDS)
    def test_control_ends_the_training(self, tmp_path: Path, kind: str) -> None:
        class Stop(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop = state.global_step == 2

        run = make(kind, tmp_path, callbacks=[Stop()], max_steps=9)
        run.train()
        assert run.state.global_step == 2


class TestTraining:
    """tests/trainer/test_trainer.py, test_trainer_optimizers.py."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_accumulation_is_one_batch(self, tmp_path: Path, kind: str) -> None:
        def still(model: nn.Module) -> nn.Module:
            for module in model.modules():
                if isinstance(module, (nn.BatchNorm2d, nn.Dropout)):
                    # Statistics and masks of a batch are not those of its parts.
                    module.forward = lambda x: x  # type: ignore[method-assign]
            return model

        states = []
        for batch, parts in ((8, 1), (2, 4)):
            run = make(
                kind,
                tmp_path / str(batch),
                still,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=parts,
                max_steps=2,
                learning_rate=0.01,
            )
            run.train()
            states.append(torch.cat([p.detach().reshape(-1) for p in run.model.parameters()]))
        torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_two_trainings_with_one_seed_are_one(self, tmp_path: Path, kind: str) -> None:
        found = []
        for name in "ab":
            run = make(kind, tmp_path / name, seed=11)
            run.train()
            found.append(losses(run))
        assert found[0] == found[1] and len(found[0]) == 3

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_second_training_starts_at_step_0_and_trains_all(
        self, tmp_path: Path, kind: str
    ) -> None:
        run = make(kind, tmp_path)
        for _ in range(2):
            before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
            output = run.train()
            assert output.global_step == run.state.global_step == 3
            still = [n for n, p in run.model.named_parameters() if torch.equal(p, before[n])]
            assert [n for n in still if n != "first.bias"] == []  # batch norm takes it away

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_model_made_by_a_function(self, tmp_path: Path, kind: str) -> None:
        made: list[nn.Module] = []

        def init() -> nn.Module:
            made.append(small_net(None if kind in ("stock", "float") else kind))
            return made[-1]

        run = make(kind, tmp_path, model_init=init)
        run.train()
        first = losses(run)
        run.train()
        assert run.model is made[-1] and len(made) == 3 and losses(run) == first

    @pytest.mark.parametrize("kind", KINDS)
    def test_an_optimizer_by_class(self, tmp_path: Path, kind: str) -> None:
        options = {"lr": 0.25, "momentum": 0.5}
        run = make(kind, tmp_path, optimizer_cls_and_kwargs=(torch.optim.SGD, options))
        run.train()
        group = run.optimizer.param_groups[0]
        assert group["momentum"] == 0.5 and group["initial_lr"] == 0.25
        quantizers = list(quantizers_of(run.model).values())
        held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
        assert all(id(p) in held for q in quantizers for p in q.parameters())

    @pytest.mark.parametrize("kind", ["stock", "float", "ttq"])
    def test_an_optimizer_and_a_schedule_given(self, tmp_path: Path, kind: str) -> None:
        # The alternate update says in one line that it makes its own: test_trainer.py.
        model = small_net(None if kind in ("stock", "float") else kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        run = make(kind, tmp_path, lambda _: model, optimizers=(optimizer, schedule))
        run.train()
        rates = [e["learning_rate"] for e in run.state.log_history if "learning_rate" in e]
        assert rates == [0.5, 0.25, 0.125]

    def test_what_the_trainer_says_of_its_optimizer(self, tmp_path: Path) -> None:
        counts, rates = {}, {}
        for kind in KINDS:
            run = make(kind, tmp_path, lr_scheduler_type="constant")
            before = run.get_num_trainable_parameters()
            own = sum(p.numel() for q in quantizers_of(run.model).values() for p in q.parameters())
            counts[kind] = before - own
            run.create_optimizer()
            groups = [group["params"] for group in run.optimizer.param_groups]
            assert [len(found) for found in run.get_optimizer_group()] == list(map(len, groups))
            rates[kind] = run.get_learning_rates()[:2]
            assert set(run.get_learning_rates()) == {0.05}
        assert len(set(counts.values())) == 1 and len(set(map(tuple, rates.values()))) == 1

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_batch_size_that_fits_is_found(self, tmp_path: Path, kind: str) -> None:
        run = make(
            kind,
            tmp_path,
            auto_find_batch_size=True,
            per_device_train_batch_size=8,
            max_steps=-1,
            num_train_epochs=1,
        )
        step, sizes = run.training_step, []

        def starved(model: Any, inputs: Any, *rest: Any) -> Tensor:
            sizes.append(len(inputs["labels"]))
            if sizes[-1] > 5:
                raise RuntimeError("CUDA out of memory.")
            return step(model, inputs, *rest)

        run.training_step = starved  # type: ignore[method-assign]
        before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
        run.train()
        assert sizes[:3] == [8, 7, 6] and set(sizes[3:]) == {5} and run.state.global_step == 8
        # Thresholds and scales too, which the attempts before had switched off.
        still = [n for n, p in run.model.named_parameters() if torch.equal(p, before[n])]
        assert [n for n in still if n != "first.bias"] == []

    def test_compiled_training_ends(self, tmp_path: Path) -> None:
        for kind in ("stock", "tga"):
            run = make(
                kind,
                tmp_path,
                torch_compile=True,
                torch_compile_backend="eager",
                max_steps=2,
            )
            run.train()
            assert len(losses(run)) == 2 and "eval_loss" in run.evaluate()

    @pytest.mark.parametrize("kind", KINDS)
    def test_gradients_are_clipped(self, tmp_path: Path, kind: str) -> None:
        norms = {}
        for most in (0.0, 1e-3):
            run = make(kind, tmp_path, max_grad_norm=most, weight_decay=0.0)
            before = [p.detach().clone() for p in _weights(run.model)]
            run.train()
            moved = [p - b for p, b in zip(_weights(run.model), before, strict=True)]
            norms[most] = torch.cat([m.reshape(-1) for m in moved]).norm().item()
        assert norms[1e-3] <= 3 * 0.05 * 1e-3 * 1.01 < norms[0.0]

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_norm_logged_is_that_of_the_float_run(self, tmp_path: Path, kind: str) -> None:
        run = make(kind, tmp_path)
        run.train()
        assert all(e["grad_norm"] > 0 for e in run.state.log_history if "loss" in e)

    @pytest.mark.parametrize("kind", KINDS)
    def test_speed_and_inputs_are_counted(self, tmp_path: Path, kind: str) -> None:
        run = make(kind, tmp_path, logging_first_step=True)
        found = run.train().metrics
        assert {"train_runtime", "train_samples_per_second", "train_loss"} <= found.keys()
        run.log_metrics("train", found)
        run.save_metrics("train", found)
        run.save_state()
        assert (Path(run.args.output_dir) / "train_results.json").is_file()


def _weights(model: nn.Module) -> list[nn.Parameter]:
    own = {id(p) for q in quantizers_of(model).values() for p in q.parameters()}
    return [p for p in model.parameters() if id(p) not in own]


class Outputs(nn.Module):
    """A network that gives more than logits."""

    def __init__(self, net: nn.Module, kind: str) -> None:
        super().__init__()
        self.net, self.kind = net, kind

    def forward(self, x: Tensor) -> Any:
        logits = self.net(x)
        more = logits.detach() * 2
        if self.kind == "tensor":
            return logits
        return (logits, more) if self.kind == "tuple" else {"logits": logits, "more": more}


class TestEvaluation:
    """tests/trainer/test_trainer_evaluation.py."""

    @pytest.mark.parametrize("concat", [True, False])
    @pytest.mark.parametrize("outputs", ["tensor", "tuple", "dict"])
    def test_outputs_of_every_kind_are_gathered_as_the_stock_trainer_does(
        self, tmp_path: Path, outputs: str, concat: bool
    ) -> None:
        found: dict[str, Any] = {}
        for kind in ("stock", "float", "tga"):
            seen: list[EvalPrediction] = []
            run = make(
                kind,
                tmp_path,
                lambda net: Outputs(net, outputs),
                compute_metrics=lambda given, seen=seen: seen.append(given) or {"mine": 1.0},
                eval_do_concat_batches=concat,
                per_device_eval_batch_size=4,
            )
            run.train()
            assert run.evaluate()["eval_mine"] == 1.0
            run.predict(run.eval_dataset)
            found[kind] = [_shapes((given.predictions, given.label_ids)) for given in seen]
            logits = run.prediction_step(run.model, _batch(), False)[1]
            found[kind].append(_shapes(logits))
            if outputs == "tensor":
                assert isinstance(logits, Tensor)
        assert found["stock"] == found["float"] == found["tga"]

    @pytest.mark.parametrize("outputs", ["tensor", "tuple", "dict"])
    def test_the_loss_of_those_is_that_of_the_logits(self, tmp_path: Path, outputs: str) -> None:
        found = []
        for kind in ("stock", "float"):
            run = make(kind, tmp_path, lambda net: Outputs(net, outputs))
            run.train()
            found.append((losses(run), run.evaluate()["eval_loss"]))
        assert found[0] == found[1]
        assert "eval_accuracy" in run.evaluate()

    @pytest.mark.parametrize("outputs", ["tensor", "tuple", "dict"])
    def test_images_without_labels(self, tmp_path: Path, outputs: str) -> None:
        run = make("tga", tmp_path, lambda net: Outputs(net, outputs))
        data = [{"pixel_values": pixels} for pixels in Images(10, seed=2).pixels]
        found = run.predict(data)
        first = found.predictions if outputs == "tensor" else found.predictions[0]
        assert first.shape == (10, CLASSES) and found.label_ids is None
        if outputs != "tensor":
            np.testing.assert_allclose(found.predictions[1], 2 * first)

    @pytest.mark.parametrize("outputs", ["tensor", "tuple", "dict"])
    def test_a_loss_function_gets_what_the_model_gives(self, tmp_path: Path, outputs: str) -> None:
        def loss(found: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            kinds.append(type(found))
            first = found["logits"] if isinstance(found, dict) else found
            return F.cross_entropy(first[0] if isinstance(first, tuple) else first, labels)

        logged = []
        for kind in ("stock", "float", "tga"):
            kinds: list[type] = []
            run = make(kind, tmp_path, lambda net: Outputs(net, outputs), compute_loss_func=loss)
            run.train()
            logged.append(losses(run))
            assert {kind.__name__ for kind in kinds} == {outputs.replace("tensor", "Tensor")}
        assert logged[0] == logged[1]

    @pytest.mark.parametrize("only", [True, False])
    def test_prediction_step(self, tmp_path: Path, only: bool) -> None:
        kept = {}
        for kind in ("stock", "float", "tga"):
            run = make(kind, tmp_path)
            loss, logits, labels = run.prediction_step(run.model.eval(), _batch(), only)
            kept[kind] = (loss.shape, _shapes(logits), _shapes(labels))
        assert kept["stock"] == kept["float"] == kept["tga"]

    def test_several_data_sets(self, tmp_path: Path) -> None:
        found = {}
        for kind in ("stock", "float", "tga"):
            run = make(kind, tmp_path, compute_metrics=lambda given: {"n": len(given.label_ids)})
            sets = {"one": Images(10, seed=2), "other": Images(6, seed=3)}
            found[kind] = run.evaluate(sets)
        assert [found[kind]["eval_one_n"] for kind in found] == [10, 10, 10]
        assert [found[kind]["eval_other_n"] for kind in found] == [6, 6, 6]

    @pytest.mark.parametrize("accumulation", [None, 1, 2])
    def test_predictions_moved_in_pieces_are_the_same(
        self, tmp_path: Path, accumulation: int | None
    ) -> None:
        run = make(
            "tga", tmp_path, eval_accumulation_steps=accumulation, per_device_eval_batch_size=3
        )
        with torch.no_grad():
            expected = run.model.eval()(run.eval_dataset.pixels)
        found = run.predict(run.eval_dataset).predictions
        torch.testing.assert_close(torch.tensor(found), expected)

    def test_what_the_caller_keeps_of_the_logits_reaches_metrics(self, tmp_path: Path) -> None:
        for kind in ("stock", "float", "tga"):
            run = make(
                kind,
                tmp_path,
                preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(1) + 1,
                compute_metrics=lambda given: {"least": given.predictions.min()},
            )
            assert run.evaluate()["eval_least"] >= 1
            assert run.predict(run.eval_dataset).predictions.shape == (10,)

    @pytest.mark.parametrize("kind", KINDS)
    def test_losses_for_metrics(self, tmp_path: Path, kind: str) -> None:
        run = make(
            kind,
            tmp_path,
            include_for_metrics=["loss"],
            compute_metrics=lambda given: {"sizes": len(given.losses)},
        )
        assert run.evaluate()["eval_sizes"] == 10


def test_a_model_that_gives_no_logits_is_refused_in_one_line(tmp_path: Path) -> None:
    class Hidden(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            return {"hidden": self.net(x)}

    run = make("tga", tmp_path, Hidden)
    with pytest.raises(ValueError, match="without logits") as error:
        run.train()
    assert "\n" not in str(error.value)
    mine = make(
        "tga",
        tmp_path,
        Hidden,
        compute_loss_func=lambda found, labels, **_: F.cross_entropy(found["hidden"], labels),
    )
    mine.train()
    assert len(losses(mine)) == 3 and "eval_loss" in mine.evaluate()


def _batch() -> dict[str, Tensor]:
    data = Images(4, seed=5)
    return {"pixel_values": data.pixels, "labels": data.labels}


def _shapes(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_shapes(entry) for entry in value]
    return None if value is None else tuple(value.shape)
