"""training.json as a type, and which checkpoint is the newest."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from timm_ternary.checkpoint.run_files import (
    CHECKPOINT_PREFIX,
    STATE_NAME,
    TRAINING_NAME,
    TrainingFacts,
    newest_checkpoint,
    read_metrics,
    read_training,
)

# As the first release with a training.json wrote it.
WRITTEN = {
    "weights_sha256": "0" * 64,
    "dataset": {
        "name": "digits", "hub_id": None, "config": None, "train_split": "train",
        "train_images": 1437, "eval_split": "test", "eval_images": None, "classes": 10,
    },
    "base": {"name": "out", "hub_id": None, "float_accuracy": 0.25},
    "ternary": {"method": "tga", "granularity": "layer", "exclude": [], "options": {}},
    "arguments": {"max_steps": 3},
    "seconds": 12,
    "steps": 3,
    "epochs": 0.75,
    "hardware": {"cpu": "a CPU", "cores": 2, "gpus": [], "processes": 1},
    "versions": {"python": "3.11"},
    "date": "2026-11-21",
    "evaluation": "timm-ternary evaluate DIR --dataset digits",
    "left_out": {"seconds": "the run was resumed"},
}  # fmt: skip


def test_the_file_stays_as_it_is() -> None:
    text = json.dumps(WRITTEN, indent=2)
    assert json.dumps(TrainingFacts.from_dict(WRITTEN).to_dict(), indent=2) == text
    assert TrainingFacts().to_dict().keys() == WRITTEN.keys()


@pytest.mark.parametrize("key", WRITTEN)
@pytest.mark.parametrize("value", [None, True, float("nan"), object()])
def test_what_is_missing_or_strange_is_not_stated(key: str, value: Any) -> None:
    facts = asdict(TrainingFacts.from_dict(WRITTEN | {key: value, "of a later version": 1}))
    assert facts[key] == asdict(TrainingFacts())[key]
    assert {**facts, key: WRITTEN[key]} == WRITTEN
    assert TrainingFacts.from_dict({k: v for k, v in WRITTEN.items() if k != key}) == (
        TrainingFacts.from_dict(WRITTEN | {key: value})
    )


def test_entries_within_others() -> None:
    facts = TrainingFacts.from_dict(
        {"dataset": {"name": ["a"], "train_images": 2.5, "eval_images": 3}, "hardware": {"gpus": 1}}
    )
    assert facts.dataset is not None and facts.dataset.eval_images == 3
    assert facts.dataset.name is None and facts.dataset.train_images is None
    assert facts.hardware.gpus == []


def test_files_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    assert read_training(tmp_path) is None and read_metrics(tmp_path) is None
    for text, words in (("{", "not valid JSON"), ("[]", "not a JSON object, but list")):
        (tmp_path / TRAINING_NAME).write_text(text)
        with pytest.raises(ValueError, match=f"{TRAINING_NAME}: {words}"):
            read_training(tmp_path)


def test_names_are_those_of_transformers() -> None:
    assert CHECKPOINT_PREFIX == f"{PREFIX_CHECKPOINT_DIR}-" and STATE_NAME == TRAINER_STATE_NAME


def test_the_newest_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-last", "checkpoint-"):
        (tmp_path / name).mkdir()
        (tmp_path / name / STATE_NAME).write_text("{}")
    (tmp_path / "checkpoint-200").mkdir()  # cut off before its state was written
    assert newest_checkpoint(str(tmp_path)) == tmp_path / "checkpoint-100"
