"""Each contradiction of a checkpoint and a run is named in one line, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn
from trainer_models import Images, SmallNet, arguments, assert_same_state, small_net, trainer

from timm_ternary.nn.convert import ternarize_
from timm_ternary.training.resume.compare import check_fits
from timm_ternary.training.resume.facts import facts_of
from timm_ternary.training.resume.record import RECORD_NAME, write_record
from timm_ternary.training.trainer import TernaryTrainer

SAVED = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model and the arguments of `trainer`."""
    output = tmp_path_factory.mktemp("run")
    trainer(output, **SAVED).train()
    return output / "checkpoint-3"


def _frozen() -> nn.Module:
    model = small_net()
    model.second_norm.requires_grad_(False)
    return model


def _other_classes() -> nn.Module:
    model = SmallNet()
    model.head = nn.Linear(6, 7)
    return ternarize_(model, "tga")


def _deeper() -> nn.Module:
    class DeepNet(SmallNet):
        pass

    return DeepNet()


OPTION = {"method": "tga", "options": {"init_factor": 0.2}}
CASES: list[tuple[Callable[[], nn.Module], dict[str, Any], str, str]] = [
    (lambda: small_net("ttq"), {}, "method is 'tga' there, 'ttq' here", "--ternary tga"),
    (lambda: small_net(OPTION), {}, "option init_factor is 0.1 there, 0.2 here", "--ternary tga"),
    (
        lambda: small_net({"method": "tga", "granularity": "channel"}),
        {},
        "granularity is 'layer' there, 'channel' here",
        "--ternary tga",
    ),
    (
        lambda: small_net({"method": "tga", "exclude": ["first"]}),
        {},
        'exclude is [] there, ["first"] here',
        "--ternary tga",
    ),
    (lambda: small_net(None), {}, "the model is ternary there, float here", ""),
    (_deeper, {}, "model is 'SmallNet' there, 'DeepNet' here", "--model SmallNet"),
    (_frozen, {}, "frozen parameters: 0 there, 2 here, e.g. second_norm.bias only here", ""),
    (_other_classes, {}, "it is of another model: head.bias is (3,) there, (7,) here", ""),
    (
        small_net,
        {"update": "joint"},
        "update is 'alternate' there, 'joint' here",
        "--update alternate",
    ),
    (small_net, {"optimizer": "lion"}, "optimizer is 'sgd' there, 'lion' here", "--optimizer sgd"),
    (
        small_net,
        {"optimizer": None},
        "optimizer is 'sgd' there, 'adamw_torch",
        "--optimizer sgd",
    ),
    (
        small_net,
        {"threshold_optimizer": "adam"},
        "threshold_optimizer is 'sgd' there, 'adam' here",
        "--threshold_optimizer sgd",
    ),
    (
        small_net,
        {"per_device_train_batch_size": 8},
        "a step sees 4 images there, 8 here (per device x accumulated x processes: 4 x 1 x 1, "
        "8 x 1 x 1)",
        "--per_device_train_batch_size 4",
    ),
    (
        small_net,
        {"gradient_accumulation_steps": 3},
        "4 images there, 12 here",
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 1",
    ),
    (
        small_net,
        {"soft_epochs": 0.3},
        "soft_epochs is 0.0 there, 0.3 here",
        "without --soft_epochs",
    ),
    (
        small_net,
        {"ema_decay": 0.9},
        "ema_decay is unset there, 0.9 here",
        "without --ema_decay",
    ),
    (
        small_net,
        {
            "lr_scheduler_type": "reduce_lr_on_plateau",
            "eval_strategy": "steps",
            "eval_steps": 2,
            "metric_for_best_model": "loss",
        },
        "lr_scheduler_type is 'linear' there, 'reduce_lr_on_plateau' here",
        "--lr_scheduler_type linear",
    ),
    (
        small_net,
        {"max_steps": 2},
        "it is of step 3, the run ends at 2",
        "a larger --max_steps than 3",
    ),
    (
        small_net,
        {"max_steps": -1, "num_train_epochs": 0.2},
        "it is of epoch 0.3, the run ends at 0.2",
        "more --num_train_epochs than 0.3",
    ),
]


@pytest.mark.parametrize("make, options, text, typed", CASES)
def test_a_contradiction_is_named_before_loading(
    tmp_path: Path,
    checkpoint: Path,
    make: Callable[[], nn.Module],
    options: dict[str, Any],
    text: str,
    typed: str,
) -> None:
    if "optimizer" in options:
        options = {"momentum": None, **options}
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = trainer(tmp_path, model, **{**SAVED, "max_steps": 6, **options})
    with pytest.raises(ValueError) as caught:
        run.train(resume_from_checkpoint=str(checkpoint))
    message = str(caught.value)
    assert message.startswith(f"{checkpoint} contradicts this run: ") and "\n" not in message
    assert text in message and len(message) < 900
    assert (f"to resume it type {typed}; " if typed else "; to start anew leave") in message
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_several_at_once(tmp_path: Path, checkpoint: Path) -> None:
    options = {"optimizer": "adamw", "momentum": None, "per_device_train_batch_size": 8}
    run = trainer(tmp_path, small_net("ttq"), **options, soft_epochs=1, ema_decay=0.9)
    with pytest.raises(ValueError, match="; and 1 more; to resume it type --ternary tga --optim"):
        run.train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize(
    "options",
    [
        {"num_train_epochs": 3, "max_steps": -1},
        {"logging_steps": 5, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"report_to": "none", "run_name": "other", "dataloader_num_workers": 0},
        {"update": "alternate"},
    ],
)
def test_what_may_be_other(
    tmp_path: Path, checkpoint: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(tmp_path, **{**SAVED, "max_steps": 5, **options})
    run.train(resume_from_checkpoint=checkpoint)
    assert run.state.global_step > 3
    assert not [r for r in caplog.records if r.name.startswith("timm_ternary")]


def test_what_is_said_of_other_settings(
    tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"learning_rate": 0.1, "lr_scheduler_type": "cosine", "seed": 4, "max_steps": 5}
    run = trainer(tmp_path, train_dataset=Images(44), **{**SAVED, **options})
    run.train(resume_from_checkpoint=str(checkpoint))
    kept, changed = (r.getMessage() for r in caplog.records if r.name.startswith("timm_ternary"))
    assert "learning_rate stays 0.05, not 0.1; to change them start from its weights" in kept
    assert max(entry["learning_rate"] for entry in run.state.log_history[3:5]) < 0.05
    assert "lr_scheduler_type 'linear' becomes 'cosine', seed 3 becomes 4" in changed
    assert changed.endswith("images 40 becomes 44")


def test_what_means_the_same_is_the_same(tmp_path: Path, checkpoint: Path) -> None:
    same = {"method": "tga", "granularity": "layer", "options": {"init_factor": 0.1}}
    run = trainer(tmp_path, small_net(same), **{**SAVED, "max_steps": 4})
    run.train(resume_from_checkpoint=str(checkpoint))
    assert run.state.global_step == 4


def test_a_finished_run_can_be_finished_again(tmp_path: Path, checkpoint: Path) -> None:
    run = trainer(tmp_path, **SAVED)
    run.train(resume_from_checkpoint=str(checkpoint))
    assert run.state.global_step == 3


def _earlier(checkpoint: Path, output: Path) -> Path:
    """As an earlier version wrote it."""
    found = Path(shutil.copytree(checkpoint, output / checkpoint.name))
    (found / RECORD_NAME).unlink()
    return found


def test_checkpoints_of_earlier_versions_resume(tmp_path: Path, checkpoint: Path) -> None:
    whole, resumed = trainer(tmp_path / "a", max_steps=5), trainer(tmp_path / "b", max_steps=5)
    whole.train(resume_from_checkpoint=str(checkpoint))
    resumed.train(resume_from_checkpoint=str(_earlier(checkpoint, tmp_path)))
    assert_same_state(resumed.model, whole.model)


@pytest.mark.parametrize(
    "make, options, text",
    [
        (lambda: small_net(None), {}, "first.parametrizations|first.threshold|first.weight"),
        (lambda: small_net("ttq"), {}, "it is of another model: first.* is missing"),
        (_other_classes, {}, r"head.bias is \(3,\) there, \(7,\) here"),
        (_frozen, {}, "another optimizer or schedule"),
        (small_net, {"optimizer": "adamw", "momentum": None}, "another optimizer or schedule"),
        (small_net, {"update": "joint", "optimizer": "adamw", "momentum": None}, "another optim"),
        (
            small_net,
            {"lr_scheduler_type": "greedy", "eval_strategy": "steps", "eval_steps": 2},
            "the schedule is a function of the step there, none here",
        ),
    ],
)
def test_contradictions_of_earlier_versions_end_in_one_line_too(
    tmp_path: Path,
    checkpoint: Path,
    make: Callable[[], nn.Module],
    options: dict[str, Any],
    text: str,
) -> None:
    run = trainer(tmp_path, make(), **{**SAVED, "max_steps": 6, **options})
    with pytest.raises(ValueError, match=text) as caught:
        run.train(resume_from_checkpoint=str(_earlier(checkpoint, tmp_path)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_the_names_of_timms_models_and_their_classes(tmp_path: Path) -> None:
    def run(name: str, classes: int, **options: Any) -> TernaryTrainer:
        model = timm.create_model(name, num_classes=classes, in_chans=3)
        args = arguments(tmp_path, **{**SAVED, **options})
        return TernaryTrainer(model, args, train_dataset=Images())

    run("resnet8_cifar_tern", 3).train()
    checkpoint = str(tmp_path / "checkpoint-3")
    for name, classes, text in (
        ("resnet8_cifar", 3, "model is 'resnet8_cifar_tern' there.* type --model resnet8_cifar_t"),
        ("resnet14_cifar_tern", 3, "model is 'resnet8_cifar_tern' there, 'resnet14_cifar_tern' "),
        ("resnet8_cifar_tern", 5, r"number of classes is 3 there, 5 here \(take the data that"),
    ):
        with pytest.raises(ValueError, match=text):
            run(name, classes, max_steps=5).train(resume_from_checkpoint=checkpoint)


def test_a_given_optimizer(tmp_path: Path, checkpoint: Path) -> None:
    model = small_net("ttq")
    made = torch.optim.RMSprop(model.parameters(), lr=0.1)
    args = arguments(tmp_path, **SAVED)
    TernaryTrainer(model, args, train_dataset=Images(), optimizers=(made, None)).train()
    run = trainer(tmp_path, small_net("ttq"), **{**SAVED, "max_steps": 5})
    with pytest.raises(ValueError, match="optimizer is 'RMSprop' there, 'sgd' here; to start anew"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize("strange", [None, 3, "x", [], {}, {"a": {"b": [1]}}])
def test_facts_of_any_type_end_in_a_line_or_fit(
    tmp_path: Path, checkpoint: Path, strange: Any
) -> None:
    run = trainer(tmp_path, **SAVED)
    here = facts_of(run)
    for name in here:
        found = Path(shutil.copytree(checkpoint, tmp_path / name / "checkpoint-3"))
        write_record(found, here | {name: strange})
        try:
            check_fits(found, here, run.model, run.args)
        except ValueError as error:
            assert "contradicts this run" in str(error) and str(error).isascii()


def test_text_of_a_checkpoint_is_harmless(tmp_path: Path, checkpoint: Path) -> None:
    found = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint-3"))
    run = trainer(tmp_path / "run", **SAVED)
    here = facts_of(run)
    write_record(
        found, here | {"model": "\x1b[31m\n" + "x" * 100_000, "frozen": ["\u202ey" * 9999]}
    )
    with pytest.raises(ValueError) as caught:
        check_fits(found, here, run.model, run.args)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1200


def test_float16_without_its_scaler(tmp_path: Path, checkpoint: Path) -> None:
    found = _earlier(checkpoint, tmp_path)
    torch.save({"scale": 1.0}, found / "scaler.pt")
    with pytest.raises(ValueError, match=r"fp16 is true there, false here; .*--fp16"):
        trainer(tmp_path, **SAVED).train(resume_from_checkpoint=str(found))


def test_files_that_are_no_state_end_in_one_line(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("scheduler.pt", "optimizer.pt"):
        found = _earlier(checkpoint, tmp_path / name)
        torch.save({"made": Path("elsewhere")}, found / name)
        with pytest.raises(ValueError, match=f"{name}|the state of another") as caught:
            run = trainer(tmp_path, **{**SAVED, "max_steps": 5})
            run.train(resume_from_checkpoint=str(found))
        assert "\n" not in str(caught.value)


def test_shards(checkpoint: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path, **SAVED)
    here = facts_of(run)
    args = SimpleNamespace(max_steps=9)
    for old, new, typed in (
        (None, "fsdp", "accelerate launch without --use_fsdp"),
        ("fsdp", None, "accelerate launch --use_fsdp"),
    ):
        found = Path(shutil.copytree(checkpoint, tmp_path / str(old) / "checkpoint-3"))
        write_record(found, here | {"shards": old})
        with pytest.raises(ValueError, match=f"to resume it type {typed}; "):
            check_fits(found, here | {"shards": new}, run.model, args)


def test_facts_are_data(tmp_path: Path) -> None:
    facts = facts_of(trainer(tmp_path, lr_milestones=[1.0], soft_epochs=0.5))
    assert json.loads(json.dumps(facts)) == facts
