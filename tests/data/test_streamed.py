"""Streams: every image once, in an order that depends on seed and pass alone; and mistakes."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from streams import numbered
from torch.utils.data import DataLoader
from trainer_models import arguments, assert_same_state, losses, small_net

from timm_ternary.data.arguments import DataArguments
from timm_ternary.data.datasets.in_memory import collate
from timm_ternary.data.datasets.lazy import LazyImages
from timm_ternary.data.datasets.streamed import StreamedImages
from timm_ternary.data.load import load_data
from timm_ternary.data.sources.base import Stream
from timm_ternary.training.callbacks.health import check_streaming
from timm_ternary.training.trainer import TernaryTrainer

NAMES = ["ape", "bee", "cow"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    # datasets 5 waits for 5 s after each shuffled pass over several parquet files.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def levels(batches: Any) -> list[int]:
    return [int(level) for batch in batches for level in batch["pixel_values"].flatten()]


def loaded(data: StreamedImages, workers: int, batch: int = 4, steps: int | None = None) -> list:
    data.batch_size = batch
    loader = DataLoader(data, batch, collate_fn=collate, num_workers=workers)
    return [batch for _, batch in zip(range(steps or 99), loader, strict=False)]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_share_the_batches_of_one_loader(workers: int) -> None:
    plain, shared = loaded(numbered(), 0), loaded(numbered(), workers)
    assert levels(plain) == list(range(13))
    assert len(plain) == len(shared) == 4
    for one, other in zip(plain, shared, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])  # the noise too
        assert torch.equal(one["labels"], other["labels"])


def test_without_a_known_batch_each_image_comes_once() -> None:
    loader = DataLoader(numbered(), 4, collate_fn=collate, num_workers=2)
    assert sorted(levels(loader)) == list(range(13))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_endless_stream_begins_another_pass_within_a_batch(workers: int) -> None:
    found = levels(loaded(numbered(5, endless=True), workers, steps=4))
    assert found == [0, 1, 2, 3, 4, 1, 2, 3, 4, 0, 2, 3, 4, 0, 1, 3]


def test_noise_depends_on_seed_pass_and_place() -> None:
    def pixels(**options: Any) -> torch.Tensor:
        data = numbered(4, **{"seed": 1, **options})
        return torch.cat([batch["pixel_values"] for batch in loaded(data, 0, steps=2)])

    first = pixels(endless=True)
    assert torch.equal(first[:4], pixels())
    assert not torch.equal(first[:4], pixels(seed=2))
    assert not torch.equal(first[4:].sort(0).values, first[:4])
    later = numbered(4, seed=1)
    later.set_epoch(1)
    assert torch.equal(loaded(later, 0)[0]["pixel_values"], first[4:])


def test_skipped_images_are_not_decoded() -> None:
    decoded = []

    def rows(_: int | None) -> Iterator[Any]:
        for i in range(6):
            yield (lambda i=i: decoded.append(i) or Image.new("L", (1, 1), i)), i

    data = StreamedImages(
        Stream("train", rows), lambda _: torch.ones(1, 1, 1), mode="L", input_size=(1, 1, 1)
    )
    data.skip(4)
    items = list(data)
    assert [float(item["pixel_values"]) for item in items] == [0, 0, 0, 0, 1, 1]
    assert [int(item["labels"]) for item in items] == list(range(6)) and decoded == [4, 5]


def jpeg(label: int, index: int, side: int = 10) -> dict[str, Any]:
    file = io.BytesIO()
    shade = np.full((side, side + 2, 3), 60 * label + 3 * index, np.uint8)
    Image.fromarray(shade).save(file, "JPEG")
    return {"bytes": file.getvalue(), "path": f"{label}-{index}.jpg"}


def parquet(root: Path, *, files: int = 3, rows: int = 4, named: bool = True) -> str:
    """`files` files of a train split and one of a test split, `rows` images each."""
    label = datasets.ClassLabel(names=NAMES) if named else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    root.mkdir(parents=True)
    for name, first in [(f"train-{k}", k * rows) for k in range(files)] + [("test-0", 0)]:
        labels = [(first + i) % 3 for i in range(rows)]
        cells = [jpeg(label, first + i) for i, label in enumerate(labels)]
        table = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
        table.to_parquet(str(root / f"{name}.parquet"))
    return str(root)


def folder(root: Path) -> str:
    for split in ("train", "test"):
        for label, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                path = root / split / name / f"{i}.jpg"
                path.write_bytes(jpeg(label, i)["bytes"])
    return str(root)


def passes(data: StreamedImages, images: int) -> Iterator[list[str]]:
    """Names of the images, pass by pass."""
    for number in range(3):
        found = [read.args[1]["path"] for read, _ in data.stream.rows(number)]
        assert len(found) == images
        yield found


@pytest.mark.parametrize("make", [parquet, folder])
def test_a_pass_is_shuffled_anew_and_holds_each_image_once(
    tmp_path: Path, make: Callable[[Path], str]
) -> None:
    args = DataArguments(make(tmp_path / "d"), streaming=True, shuffle_buffer=5)
    data = load_data(args, seed=1)
    assert isinstance(data.train, StreamedImages) and data.label_names == tuple(NAMES)
    count = {"parquet": 12, "folder": 9}[make.__name__]
    first, second, third = passes(data.train, count)
    assert len(set(first)) == count and set(first) == set(second) == set(third)
    assert first != second != third != first
    assert next(passes(load_data(args, seed=1).train, count)) == first
    assert next(passes(load_data(args, seed=2).train, count)) != first
    stored = [read.args[1]["path"] for read, _ in data.eval.stream.rows(0)]
    assert stored == sorted(stored, key=lambda p: p.rpartition("-")[2]) or make is folder
    assert [read.args[1]["path"] for read, _ in data.eval.stream.rows(1)] == stored


def test_streamed_and_lazy_evaluation_agree(tmp_path: Path) -> None:
    path = parquet(tmp_path / "d")
    options = {"mean": [0.5], "std": [0.2]}
    lazy = load_data(DataArguments(path, in_memory=False, **options)).eval
    streamed = list(load_data(DataArguments(path, streaming=True, **options)).eval)
    assert isinstance(lazy, LazyImages) and len(lazy) == len(streamed) == 4
    for index, item in enumerate(streamed):
        assert torch.equal(item["pixel_values"], lazy[index]["pixel_values"])
        assert item["labels"] == lazy[index]["labels"]


def test_max_samples_are_the_first_ones(tmp_path: Path) -> None:
    args = DataArguments(
        parquet(tmp_path / "d"), streaming=True, max_train_samples=6, max_eval_samples=2
    )
    data = load_data(args)
    for found in passes(data.train, 6):
        assert sorted(found, key=lambda name: int(name[2:-4])) == [
            f"{i % 3}-{i}.jpg" for i in range(6)
        ]
    assert [int(item["labels"]) for item in data.eval] == [0, 1]


def test_bare_numbers_need_num_classes(tmp_path: Path) -> None:
    path = parquet(tmp_path / "d", named=False)
    with pytest.raises(ValueError, match=r"'label' does not name its classes.* --num_classes"):
        load_data(DataArguments(path, streaming=True))
    data = load_data(DataArguments(path, streaming=True, num_classes=3))
    assert data.label_names == ("0", "1", "2")
    few = load_data(DataArguments(path, streaming=True, num_classes=2))
    with pytest.raises(
        ValueError, match=r"image 2 of pass 0 .*'test' \(2-2.jpg\) has label 2, not 0"
    ):
        list(few.eval)


def run(output: Path, path: str, **options: Any) -> TernaryTrainer:
    """A run of 8 steps of 4 images: several passes over 12."""
    data = load_data(
        DataArguments(path, streaming=True, shuffle_buffer=5, re_prob=0.3), in_chans=3, seed=3
    )
    values = {"max_steps": 8, "num_train_epochs": 1, "per_device_eval_batch_size": 3, **options}
    return TernaryTrainer(
        small_net(),
        arguments(output, **values),
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=data.data_collator,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, workers: int) -> None:
    path = parquet(tmp_path / "d")
    options = {"save_strategy": "steps", "save_steps": 5, "dataloader_num_workers": workers}
    whole = run(tmp_path / "out", path, **options)
    others = multiprocessing.active_children()
    whole.train()
    # Those that outlive it hold up, for seconds each, whoever drops the Trainer.
    assert set(multiprocessing.active_children()) <= set(others)
    assert whole.state.global_step == 8 and len(losses(whole)) == 8
    resumed = run(tmp_path / "out", path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))
    assert int(resumed.train_dataset._skipped) == 20
    assert losses(resumed) == losses(whole)
    assert_same_state(resumed.model, whole.model)


def test_evaluation_counts_every_image_once(tmp_path: Path) -> None:
    trainer = run(tmp_path / "out", parquet(tmp_path / "d", rows=7), dataloader_num_workers=2)
    result = trainer.predict(trainer.eval_dataset)
    items = list(load_data(DataArguments(str(tmp_path / "d"), streaming=True)).eval)
    assert result.label_ids.tolist() == [int(item["labels"]) for item in items]
    with torch.no_grad():
        logits = trainer.model.eval()(torch.stack([item["pixel_values"] for item in items]))
    torch.testing.assert_close(torch.from_numpy(result.predictions), logits)
    hits = (logits.argmax(1).numpy() == result.label_ids).mean()
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(hits)


def _broken(root: Path) -> dict[str, Any]:
    path = folder(root)
    (root / "test" / "bee" / "1.jpg").write_bytes(b"no image")
    return {"dataset": path}


def _empty(root: Path) -> dict[str, Any]:
    return {"dataset": parquet(root, rows=0)}


def _strings(root: Path) -> dict[str, Any]:
    root.mkdir()
    for split in ("train", "test"):
        table = {"image": [jpeg(0, 0)["bytes"]], "label": ["ape"]}
        datasets.Dataset.from_dict(table).to_parquet(str(root / f"{split}.parquet"))
    return {"dataset": str(root), "num_classes": 3}


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (_broken, ["image 4 of pass 0 through split 'test'", "bee/1.jpg", "not an image"]),
        (_empty, ["split 'train' is empty"]),
        (
            _strings,
            ["labels of a stream must be integers", "leave streaming out", "'label'", "string"],
        ),
        (lambda root: {"dataset": "./nowhere"}, ["'./nowhere'", "no such file"]),
        (lambda root: {"dataset": "nobody/nothing"}, ["'nobody/nothing'", "Hub name"]),
        (
            lambda root: {"dataset": parquet(root), "train_split": "trian"},
            ["unknown train_split 'trian'", "did you mean 'train'?"],
        ),
        (
            lambda root: {"dataset": parquet(root), "label_column": "lable"},
            ["unknown label_column 'lable'", "did you mean 'label'?"],
        ),
        (
            lambda root: {"dataset": parquet(root), "num_classes": 4},
            ["num_classes is 4, but column 'label' names 3"],
        ),
    ],
)
def test_bad_streams_end_in_one_line(
    tmp_path: Path, make: Callable[[Path], dict[str, Any]], parts: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        list(load_data(DataArguments(**make(tmp_path / "data"), streaming=True)).eval)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "digits", "streaming": True}, "'digits' cannot be streamed"),
        ({"dataset": "timm:x", "streaming": True}, "'timm:x' cannot be streamed"),
        ({"dataset": "x", "streaming": True, "in_memory": True}, "exclude each other"),
        ({"dataset": "x", "shuffle_buffer": 0}, "shuffle_buffer must be at least 1"),
        ({"dataset": "x", "num_classes": 3}, "type --streaming true"),
        ({"dataset": "x", "num_classes": 1, "streaming": True}, "num_classes must be at least 2"),
    ],
)
def test_data_arguments_refuse(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataArguments(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": -1}, "--max_steps 10000"),
        ({"eval_strategy": "epoch"}, "--eval_strategy steps --eval_steps NUMBER"),
        ({"save_strategy": "epoch"}, "--save_strategy steps --save_steps NUMBER"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last does nothing"),
    ],
)
def test_what_needs_a_length_is_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    check_streaming(arguments(tmp_path, max_steps=2))
    with pytest.raises(ValueError, match=message):
        check_streaming(arguments(tmp_path, **{"max_steps": 2, **values}))
