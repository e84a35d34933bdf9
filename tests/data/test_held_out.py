"""Data without a split to evaluate on: a fifth of each class is held out, the same every time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
from PIL import Image

from timm_ternary.checkpoint.directory import save_float
from timm_ternary.data.arguments import DataArguments
from timm_ternary.data.sources.base import HELD_OUT
from timm_ternary.data.sources.huggingface import open_source, open_stream

COUNTS = {"cat": 10, "dog": 17, "eel": 2, "fox": 1}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder as people have it: a folder of photos a class, and nothing else."""
    root, level = tmp_path / "photos", 0
    for name, count in COUNTS.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            level += 1  # each photo has its own
            image = Image.fromarray(np.full((8, 8, 3), 5 * level, np.uint8))
            image.save(root / name / f"{index}.png")
    return root


def levels(part: Any) -> list[int]:
    return [part.image(i).getpixel((0, 0))[0] for i in range(len(part))]


def test_a_fifth_of_each_class(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(DataArguments(dataset=str(photos)))
    assert source.label_names == tuple(COUNTS)
    assert Counter(source.eval.labels.tolist()) == {0: 2, 1: 3, 2: 1}
    assert source.eval.name == HELD_OUT and source.train.name == "train"
    train, held = levels(source.train), levels(source.eval)
    assert sorted(train + held) == [5 * n for n in range(1, 31)]
    (said,) = {record.getMessage() for record in caplog.records}
    assert "6 of its 30 images, a fifth of each class, are held out" in said
    again = open_source(DataArguments(dataset=str(photos), eval_split=HELD_OUT))
    assert levels(again.eval) == held


def test_by_the_reader_of_timm_and_for_digits(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    photos.rename(tmp_path / "root" / "train")
    source = open_source(DataArguments(dataset=f"timm:{tmp_path / 'root'}"))
    assert Counter(source.eval.labels.tolist()) == {0: 2, 1: 3, 2: 1}
    digits = open_source(DataArguments(dataset="digits", eval_split=HELD_OUT))
    assert 270 <= len(digits.eval) <= 288 and len(digits.train) + len(digits.eval) == 1437


def test_a_stream_cannot_be_divided(photos: Path) -> None:
    with pytest.raises(ValueError, match="a stream cannot be divided") as caught:
        open_stream(DataArguments(dataset=str(photos), streaming=True), seed=0)
    assert "leave streaming out" in str(caught.value)


def test_evaluate_takes_the_same_images(photos: Path, tmp_path: Path, run: Any) -> None:
    model = timm.create_model("test_resnet", num_classes=len(COUNTS))
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    save_float(model, tmp_path / "net")
    counts = {}
    for split in (None, HELD_OUT, "train"):
        words = ["evaluate", str(tmp_path / "net"), "--dataset", str(photos), "--json"]
        _, printed, _ = run(*words, *(["--split", split] if split else []))
        counts[split] = json.loads(printed)["images"]
    assert counts == {None: 6, HELD_OUT: 6, "train": 30}
