"""train.main, from a recipe to a directory that timm loads."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from recipe_files import recipe
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import TrainerCallback

import timm_ternary
from timm_ternary import train
from timm_ternary.data.arguments import DataArguments
from timm_ternary.data.load import load_data
from timm_ternary.training import run
from timm_ternary.training.arguments.model import ModelArguments
from timm_ternary.training.start import build_model, find_start


@pytest.fixture(scope="module")
def float_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float")
    metrics = train.main(recipe(path, model="resnet8_cifar"))
    assert metrics["eval_accuracy"] >= 0
    return path / "out"


def eval_images() -> torch.Tensor:
    data = load_data(DataArguments(dataset="digits", max_eval_samples=64))
    return data.eval.__getitems__(range(64))["pixel_values"]


def test_a_float_run_writes_what_timm_loads(float_run: Path) -> None:
    assert {p.name for p in float_run.iterdir()} >= {
        "config.json",
        "metrics.json",
        "model.safetensors",
    }
    metrics = json.loads((float_run / "metrics.json").read_text())
    assert metrics["epoch"] == 0.75 and 0 <= metrics["eval_accuracy"] <= 1
    config = json.loads((float_run / "config.json").read_text())
    assert config["label_names"] == [str(digit) for digit in range(10)]
    assert config["pretrained_cfg"]["input_size"] == [1, 8, 8]
    assert len(config["pretrained_cfg"]["mean"]) == 1
    assert "num_classes" not in config.get("model_args", {})
    model = timm.create_model(f"local-dir:{float_run}", pretrained=True).eval()
    assert model(eval_images()).shape == (64, 10)


def test_a_run_writes_facts_its_history_and_what_the_file_gives(
    float_run: Path, tmp_path: Path
) -> None:
    options = {"model": "resnet8_cifar_tern", "checkpoint": str(float_run), "ternary": "twn"}
    found = train.main(recipe(tmp_path, **options, logging_steps=1, eval_strategy="epoch"))
    metrics, facts, history = (
        json.loads((tmp_path / "out" / f"{name}.json").read_text())
        for name in ("metrics", "training", "history")
    )
    assert metrics == found
    assert metrics["reloaded_accuracy"] == metrics["eval_accuracy"]
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert facts["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert facts["dataset"] == {
        "name": "digits",
        "hub_id": None,
        "config": None,
        "train_split": "train",
        "train_images": 128,
        "eval_split": "test",
        "eval_images": 64,
        "classes": 10,
    }
    accuracy = json.loads((float_run / "metrics.json").read_text())["eval_accuracy"]
    assert facts["base"] == {"name": "out", "hub_id": None, "float_accuracy": accuracy}
    twn = {"method": "twn", "granularity": "layer", "exclude": [], "options": {}}
    assert facts["ternary"] == twn
    assert facts["arguments"]["learning_rate"] == 0.02 and facts["arguments"]["padding"] == 1
    assert not {"output_dir", "checkpoint", "use_cpu", "logging_steps"} & facts["arguments"].keys()
    assert facts["seconds"] == metrics["train_runtime"]
    assert (facts["steps"], facts["epochs"]) == (3, 0.75)
    assert facts["hardware"]["cpu"] and facts["hardware"]["cores"] >= 1
    assert facts["hardware"]["gpus"] == [] and facts["hardware"]["processes"] == 1
    assert facts["versions"]["timm_ternary"] == timm_ternary.__version__
    assert facts["versions"]["timm"] == timm.__version__
    assert facts["evaluation"] == (
        "timm-ternary evaluate DIR --dataset digits --split test --max-samples 64"
    )
    assert facts["left_out"] == {}
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3]
    assert history[-1]["eval_accuracy"] == metrics["eval_accuracy"]


def test_the_reloaded_accuracy_is_that_of_the_file(
    float_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file gets another model than the one that was trained: it always says `answer`."""
    data = load_data(DataArguments(dataset="digits", max_eval_samples=64)).eval
    shares = data.__getitems__(range(64))["labels"].bincount() / 64
    answers = int(shares.argmin()), int(shares.argmax())
    assert shares[answers[0]] < shares[answers[1]]
    for answer in answers:

        def save_another(model: torch.nn.Module, directory: str, answer: int = answer) -> None:
            with torch.no_grad():
                model.fc.bias[answer] += 1e6
            timm_ternary.checkpoint.save_packed(model, directory)

        monkeypatch.setattr(run, "save_model", save_another)
        words = recipe(tmp_path, model="resnet8_cifar_tern", checkpoint=str(float_run))
        assert train.main(words)["reloaded_accuracy"] == float(shares[answer])


def test_nothing_is_lost_with_a_file_that_cannot_be_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: Path) -> None:
        raise ValueError("damaged")

    monkeypatch.setattr(run, "load_packed", fail)
    with pytest.raises(SystemExit):
        train.main(recipe(tmp_path, model="resnet8_cifar_tern"))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "eval_accuracy" in metrics and "reloaded_accuracy" not in metrics


class _Keep(TrainerCallback):
    """Keeps the model that a run trained."""

    model: Any = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _Keep.model = kwargs["model"]


@pytest.mark.parametrize("ternary", ["tga", {"method": "ttq", "exclude": ["first", "last"]}])
def test_a_ternary_run_starts_from_it_and_reloads_exactly(
    float_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ternary: Any
) -> None:
    class Trainer(run.TernaryTrainer):
        def __init__(self, **options: Any) -> None:
            options["callbacks"] = [_Keep()]
            super().__init__(**options)

    monkeypatch.setattr(run, "TernaryTrainer", Trainer)
    words = recipe(tmp_path, model="resnet8_cifar_tern", checkpoint=str(float_run), ternary=ternary)
    metrics = train.main([*words, "--max_steps", "2"])
    assert metrics["epoch"] == 0.5
    images, trained = eval_images(), _Keep.model.eval()
    reloaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.inference_mode():
        expected, logits = trained(images), reloaded(images)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert reloaded.pretrained_cfg["mean"] == pytest.approx(trained.pretrained_cfg["mean"])
    with safe_open(str(tmp_path / "out" / "model.safetensors"), "pt") as file:
        assert any(name.endswith(".weight_packed") for name in file.keys())
    summary = timm_ternary.summarize(reloaded)
    assert summary is not None


def test_a_teacher_from_the_command_line(float_run: Path, tmp_path: Path) -> None:
    before = (float_run / "model.safetensors").read_bytes()
    results = []
    for name, extra in (("alone", []), ("taught", ["--teacher", str(float_run)])):
        words = recipe(tmp_path / name, model="resnet8_cifar_tern", max_steps=2)
        results.append(train.main([*words, *extra])["train_loss"])
    assert results[0] != results[1]
    keys = [load_file(tmp_path / n / "out" / "model.safetensors") for n in ("alone", "taught")]
    assert keys[0].keys() == keys[1].keys()
    assert (float_run / "model.safetensors").read_bytes() == before


def test_the_packed_model_is_that_of_the_moving_average(tmp_path: Path) -> None:
    words = recipe(tmp_path, model="resnet8_cifar_tern", learning_rate=0.3, ema_decay=0.5)
    metrics = train.main([*words, "--save_strategy", "steps", "--save_steps", "3"])
    average = build_model(ModelArguments(model="resnet8_cifar_tern"), num_classes=10, in_chans=1)
    average.load_state_dict(load_file(tmp_path / "out" / "checkpoint-3" / "ema.safetensors"))
    saved = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = eval_images()
    with torch.inference_mode():
        logits, expected = saved(images), average.eval()(images)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    average.load_state_dict(load_file(tmp_path / "out" / "checkpoint-3" / "model.safetensors"))
    with torch.inference_mode():
        assert not torch.allclose(logits, average(images), atol=1e-2)
    data = load_data(DataArguments(dataset="digits", max_eval_samples=64))
    loss = torch.nn.functional.cross_entropy(logits, data.eval.labels).item()
    assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-4)


def test_training_starts_from_the_checkpoints_weights_and_normalization(float_run: Path) -> None:
    args = ModelArguments(model="resnet8_cifar_tern", checkpoint=str(float_run))
    start = find_start(args)
    recorded = json.loads((float_run / "config.json").read_text())["pretrained_cfg"]
    assert start.trained and start.cfg["mean"] == recorded["mean"]
    model = build_model(args, start, num_classes=10, in_chans=1)
    weights = load_file(float_run / "model.safetensors")
    layer = model.get_submodule("layer1.0.conv1")
    latent = layer.parametrizations.weight.original
    assert torch.equal(latent, weights["layer1.0.conv1.weight"])
    # The threshold starts from these weights, not from those the layer was constructed with.
    threshold = next(iter(layer.parametrizations.weight[0].parameters()))
    assert float(threshold.detach()) == pytest.approx(0.1 * float(latent.detach().abs().max()))
    assert torch.equal(model.state_dict()["fc.bias"], weights["fc.bias"])


def test_a_checkpoint_may_be_a_file_or_a_ternary_run(float_run: Path, tmp_path: Path) -> None:
    args = ModelArguments(model="resnet8_cifar", checkpoint=str(float_run / "model.safetensors"))
    model = build_model(args, num_classes=10, in_chans=1)
    weights = load_file(float_run / "model.safetensors")
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    ternary = timm_ternary.ternarize_(model, "twn").eval()
    run.save_model(ternary, tmp_path / "packed")
    again = build_model(
        ModelArguments(
            model="resnet8_cifar_tern", checkpoint=str(tmp_path / "packed"), ternary="twn"
        ),
        num_classes=10,
        in_chans=1,
    ).eval()
    images = eval_images()
    with torch.inference_mode():
        torch.testing.assert_close(again(images), ternary(images), atol=1e-5, rtol=1e-5)
    stored = build_model(
        ModelArguments(model=f"local-dir:{tmp_path / 'packed'}"), num_classes=10, in_chans=1
    ).eval()
    with torch.inference_mode():
        torch.testing.assert_close(stored(images), ternary(images), atol=1e-5, rtol=1e-5)
    assert any("original" in name for name, _ in stored.named_parameters())  # trainable


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    words = recipe(
        tmp_path,
        model="resnet8_cifar_tern",
        dataset="digits",
        padding=2,
        max_steps=6,
        save_strategy="steps",
        save_steps=3,
    )
    whole = train.main(words)
    before = load_file(tmp_path / "out" / "model.safetensors")
    checkpoint = tmp_path / "out" / "checkpoint-3"
    resumed = train.main([*words, "--resume_from_checkpoint", str(checkpoint)])
    facts = json.loads((tmp_path / "out" / "training.json").read_text())
    assert facts["seconds"] is None and "was resumed" in facts["left_out"]["seconds"]
    assert facts["base"] is None and "random weights" in facts["left_out"]["base"]
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert resumed["eval_loss"] == whole["eval_loss"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"model": "resnet9_cifar"}, ["unknown model 'resnet9_cifar'", "did you mean 'resnet"]),
        ({"model": "resnet18.a1_in2k"}, ["unknown tag of resnet18 'a1_in2k'", "a1_in1k"]),
        (
            {"model": "resnet8_cifar", "ternary": "tga"},
            ["float model", "type model: resnet8_cifar_tern"],
        ),
        ({"model": "resnet8_cifar_tern", "ternary": "tgb"}, ["'tgb'", "did you mean 'tga'?"]),
        ({"model": "resnet8_cifar", "pretrained": True}, ["no weights are published"]),
        ({"model": "resnet8_cifar", "checkpoint": "nowhere"}, ["'nowhere'", "there is no file"]),
        ({"model": "local-dir:nowhere"}, ["cannot read model 'local-dir:nowhere'"]),
        ({"model": "some/where"}, ["'hf-hub:some/where'"]),
        ({"model": "resnet8_cifar", "model_kwargs": {"drip": 1}}, ["cannot build", "drip"]),
        ({"model": "resnet8_cifar", "dataset": "./none"}, ["'./none'", "no such file"]),
        ({"model": "resnet8_cifar", "learning_rat": 1}, ["did you mean 'learning_rate'?"]),
        ({"model": "resnet8_cifar", "update": "both"}, ["unknown update 'both'"]),
        ({"model": "resnet8_cifar", "resume_from_checkpoint": True}, ["no checkpoint in"]),
        ({"model": "resnet8_cifar", "resume_from_checkpoint": "x"}, ["no directory 'x'"]),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(recipe(tmp_path, **values))
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    for part in parts:
        assert part in lines[-1]
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_checkpoint_of_other_data_gives_its_backbone(
    float_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ModelArguments(model="resnet8_cifar_tern", checkpoint=str(float_run))
    assert build_model(args, num_classes=7, in_chans=1).num_classes == 7
    with pytest.raises(SystemExit):
        train.main(recipe(tmp_path, model="resnet14_cifar", checkpoint=str(float_run)))
    assert "cannot build 'resnet14_cifar'" in capsys.readouterr().err


def test_an_output_directory_that_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit):
        train.main(recipe(tmp_path, model="resnet8_cifar"))
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")


def test_no_recipe_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main([])
    assert "error: no recipe is given" in capsys.readouterr().err
    assert train.main(["--help"]) == {}
    assert "--threshold_learning_rate" in capsys.readouterr().out


def test_resume_passes_over_a_checkpoint_that_was_cut_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = recipe(tmp_path, model="resnet8_cifar_tern", save_strategy="steps", save_steps=1)
    train.main(words)
    (tmp_path / "out" / "checkpoint-3" / "trainer_state.json").unlink()
    (tmp_path / "out" / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    assert train.main([*words, "--resume_from_checkpoint", "true"])["epoch"] == 0.75
    (line,) = [r.getMessage() for r in caplog.records if "is torn" in r.getMessage()]
    assert line.startswith("checkpoint-3 is torn: trainer_state.json is missing")
    assert "resuming from the newest whole one" in line and "checkpoint-2" in line


def test_an_interrupt_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.TernaryTrainer, "training_step", interrupt)
    with pytest.raises(SystemExit) as caught:
        train.main(recipe(tmp_path, model="resnet8_cifar"))
    assert caught.value.code == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("interrupted; no checkpoint was written yet; to start anew type")


@pytest.mark.multi_process
def test_two_processes_share_the_batches(tmp_path: Path) -> None:
    launch = Path(__file__).parents[2] / "recipes" / "accelerate" / "cpu_two_processes.yaml"
    # Without use_cpu, as in the bundled recipes: the launcher does not pass its own on.
    options = {"max_steps": -1, "num_train_epochs": 2, "use_cpu": False}
    words = recipe(tmp_path, model="resnet8_cifar_tern", **options)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch)]
    run = subprocess.run(
        [*command, "--main_process_port", "0", "-m", "timm_ternary.train", *words],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    # 128 images, 32 a process: two steps an epoch, where one process would take four.
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["train_steps_per_second"] * metrics["train_runtime"] == pytest.approx(4, abs=0.2)
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True) is not None
