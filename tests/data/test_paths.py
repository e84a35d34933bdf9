"""A path that does not exist fails at once: nothing asks the Hub for it six times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from timm_ternary.data.arguments import DataArguments
from timm_ternary.data.load import load_data
from timm_ternary.data.sources import huggingface
from timm_ternary.errors.hub import HTTPError


class Asked(Exception):
    """The Hub was asked."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with photos/dogs in it, and a Hub that must not be asked."""

    def asked(*_: Any, **__: Any) -> None:
        raise Asked

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(HfApi, "dataset_info", asked)
    monkeypatch.setattr(huggingface, "load_dataset", asked)
    (tmp_path / "photos" / "dogs").mkdir(parents=True)
    (tmp_path / "train.parquet").touch()
    return tmp_path


def refusal(dataset: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_data(DataArguments(dataset=dataset))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("photos/dog", "no such file or directory (did you mean 'photos/dogs'?)"),
        ("photos/horses", "no such file or directory"),
        ("./photos", None),
        ("./nowhere", "no such file or directory"),
        ("~/no such place", "no such file or directory"),
        ("/no/such/place", "no such file or directory"),
        ("../nowhere", "no such file or directory"),
        ("a/b/c", "no such file or directory"),
        ("my photos", "no such file or directory (did you mean 'photos'?)"),
        ("nowhere/", "no such file or directory"),
        ("trian.parquet", "no such file or directory (did you mean 'train.parquet'?)"),
        ("C:\\photos", "no such file or directory"),
        ({"train": "trian.parquet"}, "'trian.parquet': no such file (did you mean 'train.parqu"),
        ({"train": ["train.parquet", "b.parquet"]}, "'b.parquet': no such file"),
    ],
)
def test_paths_are_looked_up_here(place: Path, dataset: Any, words: str | None) -> None:
    if words is None:
        with pytest.raises(Asked):
            load_data(DataArguments(dataset=dataset))
    else:
        assert words in refusal(dataset)


def test_a_name_is_asked_for_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []

    def unreachable(self: HfApi, name: str, **_: Any) -> None:
        found.append(name)
        raise HTTPError("no route")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    assert "there is no such directory, and the Hub cannot be reached" in refusal("someone/cats")
    assert "there is no such directory (did you mean 'photos'?)" in refusal("photo")
    assert found == ["someone/cats", "photo"]


def test_a_name_that_the_hub_does_not_know(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(self: HfApi, name: str, **_: Any) -> None:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(HfApi, "dataset_info", unknown)
    assert "no such data set on the Hub; if it is private, type: hf auth login" in refusal("a/b")


def test_names_that_are_there_go_on_to_datasets(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: None)
    for dataset in ("someone/cats", {"train": "https://host/x.parquet"}, {"train": "*.parquet"}):
        with pytest.raises(Asked):
            load_data(DataArguments(dataset=dataset))


def test_what_is_in_the_cache_needs_no_hub(place: Path) -> None:
    (place / "cache" / "someone___cats").mkdir(parents=True)
    with pytest.raises(Asked):  # by load_dataset, which finds it there
        load_data(DataArguments(dataset="someone/cats"))
