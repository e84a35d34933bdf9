"""Optimizers and schedules of ternary training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from trainer_models import Images, arguments, small_net, trainer

from timm_ternary.nn.convert import quantizers_of, ternarize_
from timm_ternary.nn.state_dict import readable_name
from timm_ternary.training.optim import (
    TwoPhaseOptimizer,
    create_timm_optimizer,
    decay_names,
    multi_step_schedule,
)


def _two_phase(rate: float = 0.5) -> tuple[nn.Parameter, nn.Parameter, TwoPhaseOptimizer]:
    weight, threshold = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
    first = torch.optim.AdamW([weight], lr=0.1)
    second = torch.optim.Adam([threshold], lr=rate)
    return weight, threshold, TwoPhaseOptimizer(first, second)


def test_each_phase_steps_its_own_parameters() -> None:
    weight, threshold, optimizer = _two_phase()
    weight.grad, threshold.grad = torch.ones(2), torch.ones(1)
    optimizer.step()
    assert torch.equal(threshold, torch.ones(1)) and (weight < 1).all()
    kept = weight.detach().clone()
    optimizer.step_thresholds()
    assert torch.equal(weight, kept) and threshold.item() == pytest.approx(0.5)
    optimizer.zero_grad()
    assert weight.grad is None and threshold.grad is None


def test_state_is_that_of_one_optimizer_and_is_restored() -> None:
    weight, threshold, optimizer = _two_phase()
    weight.grad, threshold.grad = torch.ones(2), torch.ones(1)
    optimizer.step()
    optimizer.step_thresholds()
    saved = copy.deepcopy(optimizer.state_dict())
    assert sorted(saved["state"]) == [0, 1] and len(saved["param_groups"]) == 2
    other_weight, other_threshold, other = _two_phase(rate=0.1)
    other.load_state_dict(saved)
    with torch.no_grad():
        other_weight.copy_(weight)
        other_threshold.copy_(threshold)
    for w, t, o in ((weight, threshold, optimizer), (other_weight, other_threshold, other)):
        w.grad, t.grad = torch.full((2,), 2.0), torch.full((1,), 3.0)
        o.step()
        o.step_thresholds()
    assert torch.equal(weight, other_weight) and torch.equal(threshold, other_threshold)
    assert other.threshold_groups[0]["lr"] == 0.5


def test_one_schedule_scales_both_rates_exactly() -> None:
    *_, optimizer = _two_phase()
    schedule = multi_step_schedule(optimizer, [3, 5], [0.1], warmup_steps=2)
    rates = []
    for _ in range(7):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    factors = [0.0, 0.5, 1.0, 0.1, 0.1, 0.1**2, 0.1**2]
    assert rates == [[0.1 * f, 0.5 * f] for f in factors]


def test_decay_reaches_latent_weights_only() -> None:
    model = ternarize_(timm.create_model("test_resnet", num_classes=3), "tga")
    quantizers = [p for q in quantizers_of(model).values() for p in q.parameters()]
    names = set(decay_names(model, quantizers))
    assert names == {f"{name}.parametrizations.weight.original" for name in quantizers_of(model)}


def test_decay_follows_timms_list_in_the_wrapper_too() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    assert "pos_embed" in model.no_weight_decay()
    wrapper = nn.Module()
    wrapper.timm_model = model
    for names in (decay_names(model), [n[11:] for n in decay_names(wrapper)]):
        assert "pos_embed" not in names and "cls_token" not in names
        assert "blocks.0.attn.qkv.weight" in names and "blocks.0.norm1.weight" not in names


@pytest.mark.parametrize(
    "name, kept",
    [
        ("xcit_nano_12_p16_224", "pos_embed.token_projection.weight"),  # by a pattern
        ("twins_svt_small", "pos_block.0.proj.0.weight"),  # by the names that it finds
        ("swinv2_tiny_window8_256", "layers.0.blocks.0.attn.cpb_mlp.0.weight"),
    ],
)
@pytest.mark.parametrize("ternary", [False, True])
def test_decay_of_a_ternary_model_is_that_of_timm_for_the_float_one(
    name: str, kept: str, ternary: bool
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        groups = param_groups_weight_decay(model, 0.1, True, model.no_weight_decay())
        timms = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        expected = {n for n, p in model.named_parameters() if id(p) in timms}
        if ternary:
            ternarize_(model)
    quantizers = [p for q in quantizers_of(model).values() for p in q.parameters()]
    found = {readable_name(n) for n in decay_names(model, quantizers)}
    assert found == expected and kept not in expected


def test_a_two_dimensional_scale_is_not_decayed() -> None:
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(2, 2))
    assert decay_names(model) == ["scale"] and decay_names(model, [model.scale]) == []


@pytest.mark.parametrize(
    "options, cls, expected",
    [
        ({"optimizer": "sgd", "momentum": None}, "SGD", {"momentum": 0.9, "nesterov": False}),
        ({"optimizer": "sgd", "momentum": 0.8}, "SGD", {"momentum": 0.8, "nesterov": False}),
        ({"optimizer": "sgd", "nesterov": True}, "SGD", {"momentum": 0.9, "nesterov": True}),
        ({"optimizer": "sgd", "momentum": 0.0}, "SGD", {"momentum": 0.0, "nesterov": False}),
        ({"optimizer": "adamw", "momentum": None}, "AdamW", {"betas": (0.9, 0.999)}),
        ({"optimizer": "LAMB", "momentum": None, "adam_beta2": 0.9}, "Lamb", {"betas": (0.9, 0.9)}),
        ({"optimizer": "lookahead_sgd", "momentum": 0.5}, "Lookahead", {"momentum": 0.5}),
    ],
)
def test_timm_optimizers(tmp_path: Path, options: dict, cls: str, expected: dict) -> None:
    model = small_net()
    args = arguments(tmp_path, **options)
    optimizer = create_timm_optimizer(args, model, decay_names(model))
    assert type(optimizer).__name__.removesuffix("Legacy") == cls
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim > 1}
    for group in optimizer.param_groups:
        assert group["lr"] == 0.05
        assert {key: group[key] for key in expected} == expected


@pytest.mark.parametrize("update", ["alternate", "joint"])
@pytest.mark.parametrize("optimizer", [None, "adamw"])
def test_decay_never_reaches_thresholds(tmp_path: Path, update: str, optimizer: str | None) -> None:
    # Learning rate times decay of 0.5: one decayed step halves a parameter.
    run = trainer(
        tmp_path,
        update=update,
        optimizer=optimizer,
        momentum=None,
        learning_rate=1e-3,
        weight_decay=500.0,
        threshold_learning_rate=0.0 if update == "alternate" else 1e-12,
        lr_scheduler_type="constant",
        max_steps=1,
    )
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    last = run.optimizer.param_groups[-1]
    assert last["weight_decay"] == 0.0 and len(last["params"]) == 3
    for name, parameter in run.model.named_parameters():
        halved = parameter.ndim > 1
        ratio = (parameter / before[name])[before[name].abs() > 0.02]
        assert ratio.numel() == 0 or bool((ratio.median() < 0.7) == halved), name


def test_multi_step_rates_of_an_epoch_and_thresholds_following(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        num_train_epochs=4,
        gradient_accumulation_steps=4,
        lr_milestones=[1, 3],
        lr_gamma=0.5,
        threshold_learning_rate=0.01,
    )
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    factors = [1.0] * 3 + [0.5] * 6 + [0.25] * 3
    assert [entry["learning_rate"] for entry in logs] == [0.05 * f for f in factors]
    assert [entry["threshold_learning_rate"] for entry in logs] == [0.01 * f for f in factors]


def test_a_factor_for_each_milestone(tmp_path: Path) -> None:
    run = trainer(tmp_path, num_train_epochs=4, lr_milestones=[1, 3], lr_gamma=[0.2, 0.5])
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0.05] * 10 + [0.01] * 20 + [0.005] * 10, rel=1e-12)


def test_milestones_count_epochs_under_max_steps_too(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=13, lr_milestones=[1])
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    assert rates == [0.05] * 10 + [0.05 * 0.1] * 3


def test_milestones_need_a_length(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Images()[index] for index in range(40)])

    run = trainer(tmp_path, train_dataset=Stream(), max_steps=2, lr_milestones=[1])
    with pytest.raises(ValueError, match="no length"):
        run.train()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"update": "alternating"}, "did you mean 'alternate'"),
        ({"threshold_optimizer": "sgdm"}, "did you mean 'sgd'"),
        ({"optimizer": "adamwx"}, "did you mean 'adamw'"),
        ({"optimizer": "adahessian"}, "unknown optimizer"),
        ({"threshold_learning_rate": -0.1}, "threshold_learning_rate must be a finite number"),
        ({"threshold_learning_rate": float("nan")}, "must be a finite number"),
        ({"learning_rate": "1e-4"}, "a number in quotes is text"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"threshold_every": 0}, "whole number >= 1"),
        ({"threshold_every": 1.5}, "whole number >= 1"),
        ({"threshold_fraction": 0.0}, "above 0 and at most 1"),
        ({"threshold_fraction": 1.5}, "above 0 and at most 1"),
        ({"threshold_fraction": float("nan")}, "finite number"),
        ({"threshold_fraction": "half"}, "finite number"),
        ({"lr_milestones": [80, 80]}, "increasing epochs"),
        ({"lr_milestones": []}, "increasing epochs"),
        ({"lr_milestones": [0, 3]}, "increasing epochs"),
        ({"lr_milestones": ["80"]}, "increasing epochs"),
        ({"lr_milestones": [1, 2, 3], "lr_gamma": [0.2, 0.5]}, "give 1 factor, or 3"),
        ({"lr_gamma": [0.2, -0.5]}, "lr_gamma must be a finite number"),
        ({"lr_gamma": []}, "lr_gamma"),
        ({"lr_gamma": 0.5}, "lr_gamma=\\[0.5\\] is for lr_milestones"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be a whole number"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end is about evaluations"),
        ({"lr_milestones": [80], "lr_scheduler_type": "cosine"}, "leave one of them out"),
        ({"nesterov": True, "momentum": None}, "--momentum 0.9"),
        ({"nesterov": True, "momentum": 0.0}, "--momentum 0.9"),
        ({"optimizer": "adamw"}, "takes no momentum"),
        ({"optimizer": "adamw", "nesterov": True, "momentum": None}, "takes no nesterov"),
        ({"optimizer": None}, "momentum is for timm's optimizers"),
        ({"optim": "adafactor"}, "give one of them"),
        ({"update": "joint", "threshold_every": 2}, "--update alternate"),
        ({"update": "joint", "threshold_fraction": 0.5}, "--update alternate"),
        ({"update": "joint", "threshold_optimizer": "adam"}, "--update alternate"),
    ],
)
def test_contradictions_are_refused_in_one_line(
    tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        arguments(tmp_path, **options)
    assert "\n" not in str(error.value)


def test_a_joint_method_refuses_what_only_alternating_can_do(tmp_path: Path) -> None:
    run = trainer(tmp_path, small_net("ttq"), threshold_every=2)
    with pytest.raises(ValueError, match="--update alternate"):
        run.train()


def test_arguments_parse_from_a_command_line() -> None:
    from transformers import HfArgumentParser

    from timm_ternary.training.arguments.trainer import TernaryTrainingArguments

    line = (
        "--output_dir out --use_cpu --optimizer sgd --momentum 0.9 --nesterov "
        "--lr_milestones 80 120 --update alternate --threshold_learning_rate 1e-4"
        " --threshold_every 2"
    )
    (args,) = HfArgumentParser(TernaryTrainingArguments).parse_args_into_dataclasses(line.split())
    assert (args.optimizer, args.momentum, args.nesterov) == ("sgd", 0.9, True)
    assert args.lr_milestones == [80.0, 120.0] and args.threshold_learning_rate == 1e-4
    assert args.label_names == ["labels"] and args.remove_unused_columns is False
    assert args.report_to == [] and args.update == "alternate" and args.threshold_every == 2


def test_a_schedule_that_reads_the_first_rate(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        max_steps=4,
        lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"lr_end": 0.01, "power": 1.0},
        threshold_learning_rate=0.5,
    )
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    rates = [entry["threshold_learning_rate"] for entry in logs]
    # From 0.05 to 0.01, and the thresholds' own rate by the same factors.
    assert rates == pytest.approx([0.5, 0.4, 0.3, 0.2])
