"""Labels of a table: numbers, text, ids; and what to type where they are none."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from timm_ternary.data.arguments import DataArguments
from timm_ternary.data.load import load_data
from timm_ternary.data.sources.huggingface import open_source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 6), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def tables(root: Path, _features: Any = None, _more: Any = None, **splits: Any) -> str:
    """Parquet files of images with the labels of each split."""
    root.mkdir(exist_ok=True)
    for name, labels in splits.items():
        columns = {"img": [png(9 * i) for i in range(len(labels))], "label": labels}
        columns |= {key: value[: len(labels)] for key, value in (_more or {}).items()}
        data = datasets.Dataset.from_dict(columns, features=_features)
        data.to_parquet(str(root / f"{name}.parquet"))
    return str(root)


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["dog", "cat", "dog"], ("cat", "dog"), [1, 0, 1]),
        (["10", "9", "2"], ("2", "9", "10"), [2, 1, 0]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        ([1.0, 0.0, 2.0], ("0", "1", "2"), [1, 0, 2]),
        ([3, 1, 2], ("0", "1", "2", "3"), [3, 1, 2]),
        ([10_000_001, 10_000_000, 77], ("77", "10000000", "10000001"), [2, 1, 0]),
        ([2**62, 2**61, 2**62], (str(2**61), str(2**62)), [1, 0, 1]),
    ],
)
def test_text_and_ids_are_names_of_classes(
    tmp_path: Path, labels: list[Any], names: tuple[str, ...], numbers: list[int]
) -> None:
    data = load_data(DataArguments(dataset=tables(tmp_path / "p", train=labels, test=labels)))
    assert data.label_names == names
    assert data.train.labels.tolist() == data.eval.labels.tolist() == numbers


def test_that_numbers_are_taken_for_names_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = [10_000_000 + k % 4 for k in range(8)]
    with caplog.at_level(logging.WARNING):
        open_source(DataArguments(dataset=tables(tmp_path / "p", train=labels, test=labels)))
    assert "labels 10000000 ... 10000003 are taken for names: 4 classes" in caplog.text


def test_a_class_that_only_the_other_split_has_is_named(tmp_path: Path) -> None:
    made = tables(tmp_path / "p", train=["a", "b"], test=["a", "c"])
    with pytest.raises(ValueError, match=r"'test' has classes that split 'train' lacks: 'c'"):
        open_source(DataArguments(dataset=made))


TYPED = datasets.Features(
    {"img": datasets.Value("binary"), "label": datasets.ClassLabel(names=["a", "b"])}
)
UNLABELLED = datasets.Features({"img": datasets.Value("binary"), "label": datasets.Value("int64")})


@pytest.mark.parametrize("features", [None, TYPED])
@pytest.mark.parametrize("options", [{}, {"eval_split": "test"}, {"streaming": True}])
def test_an_unlabelled_test_split_beside_a_good_one(
    tmp_path: Path, features: Any, options: dict[str, Any]
) -> None:
    made = tables(tmp_path / "p", features, train=[0, 1, 1], validation=[1, 0], test=[-1, -1])
    more = {"num_classes": 2} if "streaming" in options and features is None else {}
    with pytest.raises(ValueError, match=r": type --eval_split validation$") as caught:
        load_data(DataArguments(dataset=made, **options, **more))
    assert "\n" not in str(caught.value)
    if "streaming" not in options:
        assert "split 'test' is not labelled, all its labels are -1" in str(caught.value)
    kept = options | more | {"eval_split": "validation"}
    assert load_data(DataArguments(dataset=made, **kept)).splits == ("train", "validation")


def test_labels_that_are_null(tmp_path: Path) -> None:
    made = tables(tmp_path / "p", UNLABELLED, train=[0, 1, 1], validation=[1, 0], test=[None, None])
    with pytest.raises(ValueError, match=r"'test' lacks all labels: type --eval_split validation$"):
        open_source(DataArguments(dataset=made))


def test_a_test_split_without_the_column(tmp_path: Path) -> None:
    made = tables(tmp_path / "p", train=[0, 1, 1], validation=[1, 0])
    cells = datasets.Dataset.from_dict({"img": [png(1)], "id": [7]})
    cells.to_parquet(str(tmp_path / "p" / "test.parquet"))
    files = {split: f"{made}/{split}.parquet" for split in ("train", "validation", "test")}
    with pytest.raises(ValueError) as caught:
        open_source(DataArguments(dataset=files))
    assert "\n" not in str(caught.value)


def test_only_an_unlabelled_split(tmp_path: Path) -> None:
    made = tables(tmp_path / "p", train=[0, 1, 1], test=[-1, -1])
    with pytest.raises(ValueError, match=r"'test' is not labelled, all its labels are -1$"):
        open_source(DataArguments(dataset=made))


@pytest.mark.parametrize(
    ("labels", "more", "words"),
    [
        ([[0], [1, 0], [1]], {}, ["holds list", "a recipe cannot learn from it"]),
        ([[0], [1], [1]], {"fine": [0, 1, 1]}, ["holds list: type --label_column fine"]),
        (
            [[0], [1], [1]],
            {"fine": [0, 1, 1], "name": ["a", "b", "c"]},
            ["name another with --label_column: fine, name"],
        ),
        ([0.0, 0.5, 1.0], {}, ["label 0.5 in row 1 of split 'train' is no whole number"]),
        ([0.0, float("nan"), 1.0], {}, ["label nan in row 1"]),
        ([{"a": 1}, {"a": 2}, {"a": 1}], {}, ["'label' of split 'train' holds dict"]),
        ([b"a", b"b", b"a"], {}, ["holds binary"]),
        ([0, 1, -100], {}, ["label -100 in row 2 of split 'train' is not in 0, 1, ..."]),
    ],
)
def test_labels_that_are_none(
    tmp_path: Path, labels: list[Any], more: dict[str, Any], words: list[str]
) -> None:
    made = tables(tmp_path / "p", None, more, train=labels, test=labels)
    with pytest.raises(ValueError) as caught:
        load_data(DataArguments(dataset=made))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_text_that_differs_from_image_to_image_is_no_class(tmp_path: Path) -> None:
    captions = [f"photo {k}" for k in range(1100)]
    cells = {"img": [png(1)] * 1100, "label": captions}
    for split in ("train", "test"):
        (tmp_path / "p").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(cells).to_parquet(str(tmp_path / "p" / f"{split}.parquet"))
    with pytest.raises(ValueError, match=r"1,100 different texts for 1,100 images, which are no c"):
        open_source(DataArguments(dataset=str(tmp_path / "p")))
