"""Data: sources, splits and columns; batches; and the fast path against a plain one."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from timm_ternary.data.arguments import DataArguments
from timm_ternary.data.datasets.in_memory import InMemoryImages, collate, draw
from timm_ternary.data.datasets.lazy import LazyImages
from timm_ternary.data.load import load_data
from timm_ternary.training.arguments.model import ModelArguments
from timm_ternary.training.callbacks.set_epoch import SetEpoch

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def images(count: int, side: int = 6, chans: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, chans, side, side), dtype=np.uint8)


def memory(count: int = 40, **options: Any) -> InMemoryImages:
    options = {"mean": MEAN, "std": STD, "padding": 2, "hflip": 0.5, "seed": 3} | options
    return InMemoryImages(images(count), np.arange(count) % 5, **options)


def plain(dataset: InMemoryImages, pixels: np.ndarray, index: int) -> torch.Tensor:
    """The reference: one image, padded, cropped, flipped and normalized step by step."""
    pad = dataset.padding
    top, left, flip = draw(
        np.array([index]),
        seed=dataset.seed,
        epoch=dataset.epoch,
        padding=pad,
        hflip=dataset.hflip,
    )
    chans, height, width = pixels[index].shape
    canvas = np.zeros((chans, height + 2 * pad, width + 2 * pad), np.uint8)
    canvas[:, pad : pad + height, pad : pad + width] = pixels[index]
    crop = canvas[:, top[0] : top[0] + height, left[0] : left[0] + width]
    if flip[0]:
        crop = crop[:, :, ::-1]
    result = torch.empty(chans, height, width)
    for c in range(chans):
        scale, shift = torch.tensor(1 / (255 * STD[c])), torch.tensor(-MEAN[c] / STD[c])
        result[c] = torch.from_numpy(crop[c].copy()).float() * scale + shift
    return result


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("hflip", [0.0, 0.5, 1.0])
def test_a_batch_equals_the_plain_loop(padding: int, hflip: float) -> None:
    dataset = memory(padding=padding, hflip=hflip)
    dataset.set_epoch(2)
    index = [5, 0, 39, 5, 17, 22, 8]
    batch = dataset.__getitems__(index)
    expected = torch.stack([plain(dataset, images(40), i) for i in index])
    assert torch.equal(batch["pixel_values"], expected)
    assert batch["labels"].tolist() == [i % 5 for i in index]
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].dtype == torch.int64
    assert torch.equal(dataset[39]["pixel_values"], expected[2])


def test_normalization_is_that_of_torchvision() -> None:
    batch = memory(padding=0, hflip=0.0).__getitems__(range(40))
    expected = (torch.from_numpy(images(40)) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / (
        torch.tensor(STD).view(3, 1, 1)
    )
    torch.testing.assert_close(batch["pixel_values"], expected)


def test_draws_are_uniform_and_independent() -> None:
    index = np.arange(100_000)
    top, left, flip = draw(index, seed=0, epoch=0, padding=4, hflip=0.25)
    for edge in (top, left):
        counts = np.bincount(edge, minlength=9)
        assert len(counts) == 9
        # Five standard deviations of a binomial count with p = 1/9.
        assert np.abs(counts - len(index) / 9).max() < 5 * (len(index) * 8 / 81) ** 0.5
    assert abs(flip.mean() - 0.25) < 5 * (0.25 * 0.75 / len(index)) ** 0.5
    other = draw(index, seed=0, epoch=1, padding=4, hflip=0.25)[0]
    for a, b in ((top, left), (top, flip), (top, other), (top[:-1], top[1:])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / len(index) ** 0.5


def test_draws_depend_on_seed_epoch_and_index_alone() -> None:
    dataset, index = memory(), list(range(40))
    first = dataset.__getitems__(index)["pixel_values"]
    assert torch.equal(dataset.__getitems__(index[::-1])["pixel_values"].flip(0), first)
    dataset.set_epoch(1)
    assert not torch.equal(dataset.__getitems__(index)["pixel_values"], first)
    dataset.set_epoch(0)
    assert torch.equal(dataset.__getitems__(index)["pixel_values"], first)
    assert not torch.equal(memory(seed=4).__getitems__(index)["pixel_values"], first)
    assert memory(seed=-1).__getitems__(index)["pixel_values"].isfinite().all()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_gives_whole_batches(workers: int) -> None:
    dataset = memory()
    loader = DataLoader(dataset, batch_size=16, collate_fn=collate, num_workers=workers)
    batches = list(loader)
    assert [len(b["labels"]) for b in batches] == [16, 16, 8]
    pixels = torch.cat([b["pixel_values"] for b in batches])
    assert torch.equal(pixels, dataset.__getitems__(range(40))["pixel_values"])


def test_workers_that_outlive_an_epoch_see_the_next_one() -> None:
    dataset = memory()
    loader = DataLoader(
        dataset, batch_size=16, collate_fn=collate, num_workers=1, persistent_workers=True
    )
    for epoch in range(2):
        dataset.set_epoch(epoch)
        pixels = torch.cat([b["pixel_values"] for b in loader])
        assert torch.equal(pixels, dataset.__getitems__(range(40))["pixel_values"])


def test_collate_stacks_single_items() -> None:
    dataset = memory()
    batch = collate([dataset[3], dataset[4]])
    assert torch.equal(batch["pixel_values"], dataset.__getitems__([3, 4])["pixel_values"])
    assert batch["labels"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.5,)}, "3 values"),
        ({"images": images(4).astype(np.float32)}, "uint8"),
        ({"labels": np.zeros(3, np.int64)}, "4 images"),
    ],
)
def test_arrays_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    given = {"images": images(4), "labels": np.zeros(4, np.int64), "mean": MEAN, "std": STD}
    with pytest.raises(ValueError, match=message):
        InMemoryImages(**(given | change))


def test_digits() -> None:
    data = load_data(DataArguments(dataset="digits"))
    assert (len(data.train), len(data.eval)) == (1437, 360)
    assert data.num_classes == 10 and data.input_size == (1, 8, 8)
    assert isinstance(data.train, InMemoryImages) and data.train.hflip == 0
    assert np.bincount(data.eval.labels).min() >= 34  # stratified
    batch = data.eval.__getitems__(range(360))["pixel_values"]
    pixels = (batch * data.std[0] + data.mean[0]) * 16
    torch.testing.assert_close(pixels, pixels.round(), atol=0.04, rtol=0)
    assert pixels.max() > 15.9
    again = load_data(DataArguments(dataset="digits"))
    assert torch.equal(again.eval.labels, data.eval.labels)


def test_mean_and_std_are_measured_on_the_train_part() -> None:
    data = load_data(DataArguments(dataset="digits", padding=0))
    pixels = data.train.__getitems__(range(len(data.train)))["pixel_values"]
    assert abs(pixels.mean()) < 1e-5 and abs(pixels.std() - 1) < 1e-3
    assert data.eval.__getitems__([0])["pixel_values"].shape == (1, 1, 8, 8)


def folder(root: Path, *, classes: str = "ab", count: int = 4, side: int = 8, **sides: int) -> str:
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                size = sides.get(split, side)
                shade = np.full((size, size, 3), 100 * label + 10 * i, np.uint8)
                Image.fromarray(shade).save(root / split / name / f"{i}.png")
    return str(root)


@pytest.mark.parametrize("in_memory", [True, False])
def test_16_bit_images_are_scaled_not_clipped(tmp_path: Path, in_memory: bool) -> None:
    path = Path(folder(tmp_path / "d"))
    for i, file in enumerate(sorted((path / "test").rglob("*.png"))):
        Image.fromarray(np.full((8, 8), 257 * 10 * i, np.uint16)).save(file)
    args = DataArguments(dataset=str(path), in_memory=in_memory, mean=[0.0], std=[1.0])
    data = load_data(args, in_chans=1)
    pixels = [float(data.eval[i]["pixel_values"].mean()) * 255 for i in range(8)]
    assert pixels == pytest.approx([10 * i for i in range(8)], abs=0.01)


def test_image_folder_in_memory(tmp_path: Path) -> None:
    data = load_data(DataArguments(dataset=folder(tmp_path / "d"), padding=0, hflip=0.0))
    assert isinstance(data.train, InMemoryImages)
    assert data.label_names == ("a", "b") and data.input_size == (3, 8, 8)
    batch = data.train.__getitems__(range(8))
    assert batch["labels"].tolist() == [0] * 4 + [1] * 4
    pixels = (batch["pixel_values"][5] * data.std[0] + data.mean[0]) * 255
    torch.testing.assert_close(pixels, torch.full((3, 8, 8), 110.0), atol=1e-3, rtol=0)
    assert data.pretrained_cfg()["label_names"] == ["a", "b"]
    assert data.pretrained_cfg()["input_size"] == (3, 8, 8)


def test_images_of_other_sizes_are_resized(tmp_path: Path) -> None:
    path = folder(tmp_path / "d", side=8, test=12)
    data = load_data(DataArguments(dataset=path))
    assert data.eval[0]["pixel_values"].shape == (3, 8, 8)
    data = load_data(DataArguments(dataset=path, image_size=10), in_chans=1)
    assert data.train[0]["pixel_values"].shape == (1, 10, 10)


def test_lazy_and_in_memory_evaluation_agree(tmp_path: Path) -> None:
    path = folder(tmp_path / "d", side=12)
    args = {"dataset": path, "image_size": 8, "mean": list(MEAN), "std": list(STD)}
    lazy = load_data(DataArguments(**args, in_memory=False)).eval
    kept = load_data(DataArguments(**args, in_memory=True)).eval
    assert isinstance(lazy, LazyImages) and isinstance(kept, InMemoryImages)
    for index in range(8):
        assert lazy[index]["labels"] == kept[index]["labels"]
        torch.testing.assert_close(lazy[index]["pixel_values"], kept[index]["pixel_values"])


def test_an_augmentation_that_timm_does_not_know(tmp_path: Path) -> None:
    args = DataArguments(dataset=folder(tmp_path / "d", side=80), auto_augment="foo")
    with pytest.raises(ValueError, match=r"auto_augment='foo' is not .*e\.g\. rand-m9-mstd0\.5"):
        load_data(args, model_cfg={"input_size": (3, 72, 72)})


def test_lazy_augmentation_is_reproducible_and_leaves_the_generators_alone(tmp_path: Path) -> None:
    args = DataArguments(
        dataset=folder(tmp_path / "d", side=80),
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5",
        re_prob=0.5,
    )
    data = load_data(args, model_cfg={"input_size": (3, 72, 72)})
    assert isinstance(data.train, LazyImages) and data.input_size == (3, 72, 72)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = [data.train[i]["pixel_values"] for i in range(8)]
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(torch.equal(data.train[i]["pixel_values"], first[i]) for i in (3, 0, 7))
    data.train.set_epoch(1)
    assert any(not torch.equal(data.train[i]["pixel_values"], first[i]) for i in range(8))
    batch = collate([data.train[i] for i in range(3)])
    assert batch["pixel_values"].shape == (3, 3, 72, 72)


def test_small_lazy_images_are_padded_and_cropped(tmp_path: Path) -> None:
    args = DataArguments(dataset=folder(tmp_path / "d"), re_prob=0.1, padding=3)
    data = load_data(args)
    assert isinstance(data.train, LazyImages)
    assert data.train[0]["pixel_values"].shape == (3, 8, 8)
    assert "RandomCrop" in repr(data.train.transform)


def table(path: Path, columns: dict[str, list[Any]], features: Any = None) -> str:
    data = datasets.Dataset.from_dict(columns, features=features)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(str(path))
    return str(path)


def png(shade: int, side: int = 6) -> bytes:
    import io

    file = io.BytesIO()
    Image.fromarray(np.full((side, side), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def parquet(root: Path, labels: Any = (0, 1, 1, 0), test: Any = None, **options: Any) -> str:
    for split, values in (("train", labels), ("test", labels if test is None else test)):
        columns = {"img": [png(9 * i) for i in range(len(values))], "label": list(values)}
        columns |= options.get("more", {})
        table(root / f"{split}.parquet", columns, options.get(f"{split}_features"))
    return str(root)


def test_parquet_of_bytes_without_types(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p")
    data = load_data(DataArguments(dataset=path))
    assert data.label_names == ("0", "1") and data.input_size == (1, 6, 6)
    assert data.train.labels.tolist() == [0, 1, 1, 0]
    files = {"train": f"{path}/train.parquet", "test": f"{path}/test.parquet"}
    assert load_data(DataArguments(dataset=files), in_chans=3).input_size == (3, 6, 6)


def test_typed_columns_are_found(tmp_path: Path) -> None:
    features = datasets.Features(
        {"x": datasets.Image(), "y": datasets.ClassLabel(names=["cat", "dog"])}
    )
    for split in ("train", "validation"):
        columns = {"x": [{"bytes": png(9), "path": None}] * 3, "y": [0, 1, 0]}
        table(tmp_path / "p" / f"{split}.parquet", columns, features)
    data = load_data(DataArguments(dataset=str(tmp_path / "p")))
    assert data.label_names == ("cat", "dog")


def test_max_samples_are_spread_over_a_sorted_split(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p", labels=[0] * 10 + [1] * 10)
    data = load_data(DataArguments(dataset=path, max_train_samples=4, max_eval_samples=3))
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert len(data.eval) == 3
    assert len(load_data(DataArguments(dataset=path, max_train_samples=99)).train) == 20


def test_the_starting_weights_decide_size_and_normalization(tmp_path: Path) -> None:
    cfg = {"input_size": (3, 10, 10), "mean": MEAN, "std": STD}
    path = folder(tmp_path / "d")
    data = load_data(DataArguments(dataset=path), model_cfg=cfg, trained=True)
    assert data.input_size == (3, 10, 10) and data.mean == MEAN and data.std == STD
    fresh = load_data(DataArguments(dataset=path), model_cfg=cfg)
    assert fresh.input_size == (3, 8, 8) and fresh.mean != MEAN
    grey = load_data(DataArguments(dataset="digits"), model_cfg=cfg, trained=True)
    assert grey.input_size == (1, 10, 10) and grey.mean == pytest.approx((0.5,))


def _broken_image(root: Path) -> dict[str, Any]:
    folder(root)
    (root / "train" / "b" / "1.png").write_bytes(b"no image")
    return {"dataset": str(root)}


def _broken_cell(root: Path) -> dict[str, Any]:
    for split in ("train", "test"):
        cells = [png(1), png(2), png(3)[:-30], png(4)]
        table(root / f"{split}.parquet", {"image": cells, "label": [0, 1, 0, 1]})
    return {"dataset": str(root)}


def _no_test(root: Path) -> dict[str, Any]:
    parquet(root)
    (root / "test.parquet").rename(root / "extra.parquet")
    return {"dataset": {name: f"{root}/{name}.parquet" for name in ("train", "extra")}}


def _other_classes(root: Path) -> dict[str, Any]:
    def features(names: list[str]) -> Any:
        return datasets.Features(
            {"img": datasets.Value("binary"), "label": datasets.ClassLabel(names=names)}
        )

    given = {"train_features": features(["a", "b"]), "test_features": features(["a", "c"])}
    return {"dataset": parquet(root, **given)}


def _empty_split(root: Path) -> dict[str, Any]:
    features = datasets.Features(
        {"img": datasets.Value("binary"), "label": datasets.Value("int64")}
    )
    return {"dataset": parquet(root, test=[], test_features=features)}


def _two_label_columns(root: Path) -> dict[str, Any]:
    kind = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"img": datasets.Value("binary"), "label": kind, "coarse": kind})
    given = {"train_features": features, "test_features": features}
    return {"dataset": parquet(root, more={"coarse": [0, 1, 0, 1]}, **given)}


def _text_file(root: Path) -> dict[str, Any]:
    root.mkdir()
    (root / "x.txt").write_text("x")
    return {"dataset": str(root / "x.txt")}


def _bad_parquet(root: Path) -> dict[str, Any]:
    root.mkdir()
    (root / "x.parquet").write_bytes(b"nothing")
    return {"dataset": str(root / "x.parquet")}


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda root: {"dataset": parquet(root, labels=[0, 0])}, ["has 1 class", "at least 2"]),
        (
            lambda root: {"dataset": folder(root, classes="a")},
            ["a subdirectory for each", "2 classes"],
        ),
        (lambda root: {"dataset": parquet(root, labels=[0, -1, 1])}, ["label -1 in row 1"]),
        (lambda root: {"dataset": parquet(root, labels=[0, None, 1])}, ["lacks 1 labels"]),
        (lambda root: {"dataset": parquet(root, test=[0, 2])}, ["'test' has classes", "'2'"]),
        (_other_classes, ["train.parquet", "different classes", "'b'"]),
        (_empty_split, ['split "test" is empty']),
        (_broken_image, ["row 5", "1.png", "not an image"]),
        (_broken_cell, ["row 2 of split 'train'", "cannot be read"]),
        (_no_test, ["no split test, validation or val", "only train, extra"]),
        (_two_label_columns, ["could be label or coarse", "label_column"]),
        (
            lambda root: {"dataset": parquet(root), "label_column": "lable"},
            ["unknown label_column 'lable'", "did you mean 'label'?"],
        ),
        (
            lambda root: {
                "dataset": parquet(root, more={"extra": [0.5] * 4}),
                "image_column": "extra",
            },
            ["column 'extra'", "not images"],
        ),
        (
            lambda root: {"dataset": parquet(root), "train_split": "trian"},
            ["unknown train_split 'trian'", "did you mean 'train'?"],
        ),
        (
            lambda root: {"dataset": parquet(root), "mean": [0.5] * 3, "std": [0.5] * 3},
            ["mean has 3 values", "1 channels"],
        ),
        (lambda root: {"dataset": "./nowhere"}, ["'./nowhere'", "no such file"]),
        (lambda root: {"dataset": "nobody/nothing"}, ["'nobody/nothing'", "Hub name"]),
        (_text_file, ["not a .parquet file"]),
        (_bad_parquet, ["cannot read", "x.parquet"]),
    ],
)
def test_bad_data_ends_in_one_line(
    tmp_path: Path, make: Callable[[Path], dict[str, Any]], parts: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        load_data(DataArguments(**make(tmp_path / "data")))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "dataset is missing"),
        ({"dataset": "digits", "hflip": 2.0}, "hflip must lie between 0 and 1, got 2"),
        ({"dataset": "digits", "padding": -1}, "padding must be at least 0"),
        ({"dataset": "digits", "image_size": 0}, "image_size must be at least 1"),
        ({"dataset": "digits", "random_resized_crop": [0.5]}, "two shares"),
        ({"dataset": "digits", "mean": [0.5]}, "mean and std go together"),
        ({"dataset": "digits", "mean": [0.5], "std": [0.0]}, "std must be positive"),
        ({"dataset": "digits", "in_memory": True, "re_prob": 0.1}, "in_memory: false"),
        ({"dataset": "{x"}, "dataset: '{x' is not valid JSON"),
    ],
)
def test_data_arguments_refuse(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataArguments(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "model is missing"),
        ({"model": "x", "in_chans": 2}, r"in_chans must be 1 \(grey\) or 3"),
        ({"model": "x", "checkpoint": "y", "pretrained": True}, "give one"),
        ({"model": "x", "model_kwargs": "drop"}, "model_kwargs must be a mapping"),
    ],
)
def test_model_arguments_refuse(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelArguments(**values)


def test_set_epoch_follows_the_trainer() -> None:
    dataset = memory()
    callback = SetEpoch(dataset)
    for epoch, expected in ((None, 0), (1.0, 1), (2.999_999_9, 3), (3.4, 3)):
        callback.on_epoch_begin(None, type("State", (), {"epoch": epoch}), None)
        assert dataset.epoch == expected


def test_in_memory_images_can_be_pickled_for_workers() -> None:
    dataset = pickle.loads(pickle.dumps(memory()))
    assert torch.equal(dataset[3]["pixel_values"], memory()[3]["pixel_values"])
