"""Photographs, end to end at 224 pixels: an image folder, and the same images as a stream."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
from PIL import Image
from torch.utils.data import DataLoader

from timm_ternary import train
from timm_ternary.data.arguments import DataArguments
from timm_ternary.data.datasets.in_memory import collate
from timm_ternary.data.datasets.streamed import StreamedImages
from timm_ternary.data.load import load_data
from timm_ternary.evaluation import accuracy

NAMES = ["ape", "bee", "cow"]
COUNTS = {"train": 8, "test": 3}


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def photographs(split: str) -> Iterator[tuple[int, bytes]]:
    """JPEG files of odd sizes; the classes differ in colour."""
    numbers = np.random.default_rng(len(split))
    for label in range(len(NAMES)):
        for index in range(COUNTS[split]):
            size = (240 + 7 * index, 301 - 5 * label, 3)
            pixels = numbers.integers(0, 160, size, dtype=np.uint8)
            pixels[..., label] += 90
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG")
            yield label, file.getvalue()


def folder(root: Path) -> str:
    for split in COUNTS:
        for index, (label, content) in enumerate(photographs(split)):
            path = root / split / NAMES[label] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return str(root)


def parquet(root: Path, *, files: int = 3) -> str:
    root.mkdir()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    for split in COUNTS:
        rows = list(photographs(split))
        for number in range(files):
            part = rows[number::files]
            columns = {
                "image": [{"bytes": content, "path": None} for _, content in part],
                "label": [label for label, _ in part],
            }
            table = datasets.Dataset.from_dict(columns, features=features)
            table.to_parquet(str(root / f"{split}-{number:05d}-of-{files:05d}.parquet"))
    return str(root)


def words(path: Path, **values: Any) -> list[str]:
    """The words of a command line whose recipe writes to `path`/out."""
    content = {
        "model": "test_resnet_tern",
        "ternary": "twn",
        "image_size": 224,
        "output_dir": str(path / "out"),
        "per_device_train_batch_size": 6,
        "per_device_eval_batch_size": 4,
        "optimizer": "sgd",
        "learning_rate": 0.02,
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        **values,
    }
    (path / "recipe.yaml").write_text(json.dumps(content))
    return [str(path / "recipe.yaml")]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_224_pixel_run_reloads_with_its_accuracy(tmp_path: Path, streaming: bool) -> None:
    path = parquet(tmp_path / "d") if streaming else folder(tmp_path / "d")
    # Six steps of 6 images: two passes over 24 where they are streamed.
    options = {"streaming": True, "shuffle_buffer": 8} if streaming else {}
    metrics = train.main(words(tmp_path, dataset=path, max_steps=6, **options))
    packed = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert packed.pretrained_cfg["input_size"] == (3, 224, 224)
    assert packed.pretrained_cfg["label_names"] == NAMES
    # Read without streaming, each image once; the stream must have come to the same.
    data = load_data(DataArguments(path, image_size=224), model_cfg=packed.pretrained_cfg)
    assert not isinstance(data.eval, StreamedImages) and len(data.eval) == 9
    result = accuracy(packed, DataLoader(data.eval, 4, collate_fn=collate))
    assert result.images == 9
    assert result.top1 == pytest.approx(metrics["eval_accuracy"])
    assert result.top1 == pytest.approx(metrics["reloaded_accuracy"])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics


def test_a_stream_needs_max_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(words(tmp_path, dataset="./nowhere", streaming=True))
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: a stream has no length") and "--max_steps" in error
    assert not (tmp_path / "out").exists()


def test_a_method_that_needs_epochs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet(tmp_path / "d")
    with pytest.raises(SystemExit):
        train.main(words(tmp_path, dataset=path, streaming=True, max_steps=2, ternary="admm"))
    assert "by ADMM, refreshed between epochs" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    path = folder(tmp_path / "d")
    (tmp_path / "d" / "train" / "cow" / "20.jpg").write_bytes(b"no image")
    options = {"streaming": True, "max_steps": 4, "dataloader_num_workers": workers}
    with pytest.raises(SystemExit) as caught:
        train.main(words(tmp_path, dataset=path, **options))
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: image ") and "through split 'train'" in error
    assert "cow/20.jpg) cannot be read: not an image" in error
    assert not (tmp_path / "out" / "model.safetensors").exists()
