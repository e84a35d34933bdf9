"""What training.json says: no paths, no more than was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from timm_ternary.config import TernaryConfig
from timm_ternary.data.arguments import DataArguments
from timm_ternary.data.load import load_data
from timm_ternary.files import sha256
from timm_ternary.training.arguments.model import ModelArguments
from timm_ternary.training.arguments.trainer import TernaryTrainingArguments
from timm_ternary.training.run_facts import training_facts
from timm_ternary.training.start import Start, find_start

STATE = SimpleNamespace(global_step=7, epoch=2.0)
DIGITS = load_data(DataArguments(dataset="digits", max_train_samples=8, max_eval_samples=4))


def facts(
    directory: Path,
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    start: Start | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Of a run on eight digits, whatever the data set's name is."""
    directory.mkdir(exist_ok=True)
    (directory / "model.safetensors").write_bytes(b"weights")
    model_args = ModelArguments(**{"model": "resnet8_cifar", **(model or {})})
    return training_facts(
        model_args,
        DataArguments(**{"dataset": "digits", **(data or {})}),
        TernaryTrainingArguments(str(directory), use_cpu=True, **options),
        start=start or find_start(model_args),
        data=DIGITS,
        config=TernaryConfig(method="bwn"),
        state=STATE,
        seconds=1.5,
        gpus=[],
    ).to_dict()


def test_paths_are_cut_to_their_last_name(tmp_path: Path) -> None:
    root = tmp_path / "secret"
    for name in ("flowers", "teacher"):
        (root / name).mkdir(parents=True)
    for dataset, name in (
        (str(root / "flowers"), "flowers"),
        (str(root / "flowers") + "/", "flowers"),
        ({"train": str(root / "a.parquet"), "test": str(root / "b.parquet")}, None),
        (f"timm:{root}", "timm:secret"),
        (f"timm:torch/cifar10:{root}", "timm:torch/cifar10:secret"),
    ):
        (root / "base.safetensors").touch()
        options = {"teacher": f"local-dir:{root / 'teacher'}", "learning_rate": 0.5}
        checkpoint = {"checkpoint": str(root / "base.safetensors")}
        found = facts(tmp_path / "out", checkpoint, {"dataset": dataset}, **options)
        assert str(tmp_path) not in json.dumps(found)
        name = name or '{"train": "a.parquet", "test": "b.parquet"}'
        assert found["dataset"]["name"] == name and found["dataset"]["hub_id"] is None
        assert found["base"]["name"] == "base.safetensors"
        assert found["arguments"] == {"teacher": "teacher", "learning_rate": 0.5}


def test_secrets_and_places_are_not_told(tmp_path: Path) -> None:
    found = facts(tmp_path, hub_token="hf_secret", run_name="mine", logging_steps=3, save_steps=9)
    assert found["arguments"] == {} and "secret" not in json.dumps(found)


def test_names_of_the_hub(tmp_path: Path) -> None:
    found = facts(tmp_path, data={"dataset": "uoft-cs/cifar10"})
    assert found["dataset"]["name"] == found["dataset"]["hub_id"] == "uoft-cs/cifar10"
    assert found["dataset"]["train_images"] == 8 and found["dataset"]["eval_images"] == 4
    model = {"model": "resnet18_tern.tv_in1k", "pretrained": True}
    found = facts(tmp_path, model)
    hub_id = "timm/resnet18.tv_in1k"
    assert found["base"] == {"name": hub_id, "hub_id": hub_id, "float_accuracy": None}
    assert "not evaluated" in found["left_out"]["float_accuracy"]
    found = facts(tmp_path, {"model": "hf-hub:user/x@main"}, start=Start("resnet18", {}, True))
    assert found["base"]["hub_id"] == "user/x"


def test_a_command_that_would_measure_something_else_is_left_out(tmp_path: Path) -> None:
    for data, words in (
        ({"dataset": "a/b", "dataset_config": "c"}, "no configuration"),
        ({"dataset": "a/b", "streaming": True, "max_eval_samples": 9}, "of a stream"),
    ):
        found = facts(tmp_path, data=data)
        assert found["evaluation"] is None and words in found["left_out"]["evaluation"]
    data = {"dataset": "a/b", "image_column": "the image", "label_column": "y"}
    assert facts(tmp_path, data=data)["evaluation"] == (
        "timm-ternary evaluate DIR --dataset a/b --split test --image-column 'the image' "
        "--label-column y"
    )


def test_the_accuracy_of_the_base_is_that_of_its_own_run(tmp_path: Path) -> None:
    base = tmp_path / "base"
    own = facts(base) | {"ternary": None}
    metrics = {"eval_accuracy": 0.25}

    def of(change: dict[str, Any], measured: dict[str, Any] = metrics) -> tuple[Any, Any]:
        (base / "training.json").write_text(json.dumps(own | change))
        (base / "metrics.json").write_text(json.dumps(measured))
        found = facts(tmp_path / "out", {"checkpoint": str(base)})
        return found["base"]["float_accuracy"], found["left_out"].get("float_accuracy")

    assert own["weights_sha256"] == sha256(base / "model.safetensors")
    assert of({}) == (0.25, None)
    for change, words in (
        ({"ternary": {"method": "tga"}}, "is ternary"),
        ({"dataset": own["dataset"] | {"eval_images": 5}}, "another data set"),
        ({"weights_sha256": "0"}, "was changed"),
    ):
        accuracy, reason = of(change)
        assert accuracy is None and words in reason
    assert of({}, {})[0] is None
    (base / "training.json").write_text("{")
    assert facts(tmp_path / "out", {"checkpoint": str(base)})["base"]["float_accuracy"] is None


@pytest.mark.parametrize("sized", [True, False])
def test_a_stream_has_no_counts(tmp_path: Path, sized: bool, monkeypatch: Any) -> None:
    stream: Any = iter(())
    data = DIGITS if sized else replace(DIGITS, train=stream, eval=stream)
    monkeypatch.setitem(globals(), "DIGITS", data)
    found = facts(tmp_path)["dataset"]
    assert (found["train_images"], found["eval_images"]) == ((8, 4) if sized else (None, None))


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ({"train": "https://u:pw@host/x.parquet?X-Signature=SECRET"}, '{"train": "x.parquet"}'),
        ({"train": ["/home/me/a.parquet", "b.parquet"]}, '{"train": ["a.parquet", "b.parquet"]}'),
    ],
)
def test_names_of_files_hold_no_secrets(tmp_path: Path, dataset: Any, name: str) -> None:
    found = facts(tmp_path / "out", data={"dataset": dataset})
    assert found["dataset"]["name"] == name
    assert "SECRET" not in json.dumps(found) and "/home/me" not in json.dumps(found)


@pytest.mark.parametrize("text", ["x" * 400, "~nobody-of-this-name/x", "../../home/me/x"])
def test_words_that_are_no_paths_of_this_machine(tmp_path: Path, text: str) -> None:
    told = facts(tmp_path / "out", run_name=text)
    assert "/home/me" not in json.dumps(told)
