"""--push_to_hub: what others see of a run, during it and at its end."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from hub_server import OWNER, Fault, Hub
from samples import outputs, trained
from trainer_models import Images
from transformers import AutoModelForImageClassification

from timm_ternary import train, unpack_
from timm_ternary.training.arguments.trainer import TernaryTrainingArguments
from timm_ternary.training.trainer import TernaryTrainer

pytestmark = pytest.mark.hub

REPO = f"{OWNER}/net"
MODEL_FILES = {"model.safetensors", "config.json", "README.md"}


def recipe(directory: Path, **changes: Any) -> list[str]:
    """The words of a run of two steps, with a checkpoint at each."""
    values = {
        "model": "resnet8_cifar_tern",
        "dataset": "digits",
        "max_train_samples": 32,
        "max_eval_samples": 16,
        "padding": 1,
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "output_dir": str(directory / "out"),
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 1,
        "push_to_hub": True,
        "hub_model_id": REPO,
        **changes,
    }
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return [str(path)]


def trainer(directory: Path, model: Any = None, **changes: Any) -> TernaryTrainer:
    """A trainer that has not trained."""
    args = TernaryTrainingArguments(
        str(directory / "out"), use_cpu=True, hub_model_id=REPO, **{"max_steps": 1, **changes}
    )
    model = trained("resnet8_cifar_tern", num_classes=3) if model is None else model
    return TernaryTrainer(model, args, train_dataset=Images(8))


def check_packed(weights: bytes) -> None:
    """Packed weights, and no latent ones."""
    names = safetensors.torch.load(weights).keys()
    assert any(name.endswith(".weight_packed") for name in names)
    assert not any("parametrizations" in name for name in names)


def test_a_run_publishes_packed_models_only(hub: Hub, tmp_path: Path) -> None:
    train.main(recipe(tmp_path))
    repository = hub.repositories[REPO]
    in_progress = [f"Training in progress, checkpoint-{step}" for step in (1, 2)]
    assert repository.titles == [*in_progress, "End of training"]
    held = [files for files in repository.commits.values() if files]
    assert [set(files) for files in held[:2]] == [MODEL_FILES, MODEL_FILES]
    for files in held:
        check_packed(files["model.safetensors"].data)
    assert held[0]["model.safetensors"] != held[1]["model.safetensors"]
    out = tmp_path / "out"
    assert (out / "checkpoint-2" / "optimizer.pt").is_file()
    allowed = {f"{name}.json" for name in ("metrics", "training", "history", "evaluation")}
    allowed |= {"index.html"}
    there = {path.name for path in out.iterdir() if path.name in allowed or path.suffix == ".png"}
    last = repository.files()
    assert "metrics.json" in there and set(last) == MODEL_FILES | there
    assert last["model.safetensors"] == (out / "model.safetensors").read_bytes()
    assert last["config.json"] == (out / "config.json").read_bytes()


def test_at_the_end_only(hub: Hub, tmp_path: Path) -> None:
    train.main(recipe(tmp_path, hub_strategy="end", hub_private_repo=True, hub_revision="try"))
    assert hub.repositories[REPO].titles == ["End of training"]
    assert hub.repositories[REPO].private and hub.repositories[REPO].files("main") == {}
    check_packed(hub.repositories[REPO].files("try")["model.safetensors"])


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoints_are_not_published(
    hub: Hub, tmp_path: Path, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(recipe(tmp_path, hub_strategy=strategy))
    line = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and hub.log == []
    assert strategy in line and "--hub_strategy end" in line


def test_no_permission_ends_the_run_before_it_begins(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.main(recipe(tmp_path, hub_model_id="others/net"))
    assert "(403)" in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_failure_in_between_does_not_end_the_run(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults.append(Fault("POST", "/commit/", status=500))
    with caplog.at_level(logging.WARNING, "timm_ternary"):
        train.main(recipe(tmp_path))
    assert "the Hub itself failed (500)" in caplog.text and "training goes on" in caplog.text
    assert len(hub.repositories[REPO].titles) == 2


def test_a_card_that_the_hub_refuses_does_not_end_the_run(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("---\nlicense: nonsense\n---\nMine.\n")
    with pytest.raises(SystemExit), caplog.at_level(logging.WARNING, "timm_ternary"):
        train.main(recipe(tmp_path))
    assert "training goes on" in caplog.text
    assert "the result is in" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_a_failure_at_the_end_says_what_to_type(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults.append(Fault("POST", "/commit/", status=500))
    with pytest.raises(SystemExit):
        train.main(recipe(tmp_path, hub_strategy="end"))
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"timm-ternary push {tmp_path / 'out'} {REPO}" in line
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_method(hub: Hub, tmp_path: Path) -> None:
    run = trainer(tmp_path)
    (tmp_path / "out" / "README.md").write_text("Mine.")
    (tmp_path / "out" / "training_args.bin").write_bytes(b"")
    assert run.push_to_hub("Mine", private=True) == f"{hub.url}/{REPO}"
    repository = hub.repositories[REPO]
    assert repository.titles == ["Mine"] and repository.private
    assert set(repository.files()) == MODEL_FILES
    assert repository.files()["README.md"] == b"Mine."
    loaded = timm.create_model(f"hf-hub:{REPO}", pretrained=True)
    assert torch.equal(outputs(loaded), outputs(run.model))


def test_the_name_is_that_of_the_directory(hub: Hub, tmp_path: Path) -> None:
    run = trainer(tmp_path, push_to_hub=True)
    assert run.hub_model_id == REPO
    run.args.hub_model_id = None
    run.init_hf_repo()
    assert run.hub_model_id == f"{OWNER}/out" and f"{OWNER}/out" in hub.repositories


def test_save_model_publishes_too(hub: Hub, tmp_path: Path) -> None:
    trainer(tmp_path, push_to_hub=True).save_model()
    assert set(hub.repositories[REPO].files()) == MODEL_FILES
    check_packed(hub.repositories[REPO].files()["model.safetensors"])


def test_a_float_model(hub: Hub, tmp_path: Path) -> None:
    network = trained("resnet8_cifar", num_classes=3)
    trainer(tmp_path, network).push_to_hub()
    loaded = timm.create_model(f"hf-hub:{REPO}", pretrained=True)
    assert torch.equal(outputs(loaded), outputs(network))


def test_the_average_is_what_is_published(hub: Hub, tmp_path: Path) -> None:
    run = trainer(tmp_path, ema_decay=0.5, learning_rate=0.1, max_steps=3, save_steps=1)
    own: dict[str, torch.Tensor] = {}

    def remember(*_: Any, **__: Any) -> None:
        own.update({name: value.clone() for name, value in run.model.state_dict().items()})
        run.push_to_hub()

    run._push_from_checkpoint = remember  # type: ignore[method-assign]
    run.args.push_to_hub = True
    run.train()
    loaded = timm.create_model(f"hf-hub:{REPO}", pretrained=True)
    assert torch.equal(outputs(loaded), outputs(run.model))
    assert any(not torch.equal(own[name], v) for name, v in run.model.state_dict().items())


def test_a_model_within_a_wrapper_of_transformers(hub: Hub, tmp_path: Path) -> None:
    network = trained("test_resnet_tern", num_classes=3)
    trainer(tmp_path, network).push_to_hub()
    wrapper = unpack_(AutoModelForImageClassification.from_pretrained(REPO))
    trainer(tmp_path, wrapper, hub_revision="again").push_to_hub()
    loaded = timm.create_model(f"hf-hub:{REPO}@again", pretrained=True)
    assert torch.equal(outputs(loaded), outputs(network))
