"""timm's readers of folders and tar files, and torchvision's data sets."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from timm_ternary.data.arguments import DataArguments
from timm_ternary.data.datasets.in_memory import collate
from timm_ternary.data.load import Data, load_data

NAMES = ("ape", "bee", "class10", "class9")
"""In timm's order class9 comes before class10."""
ORDER = ("ape", "bee", "class9", "class10")


def folder(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    for split in ("train", "val"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                shade = 40 * ORDER.index(name) + 10 * i if name in ORDER else 0
                image = Image.fromarray(np.full((70, 80, 3), shade, np.uint8))
                image.save(root / split / name / f"{i}.png")
    return root


def tars(root: Path) -> Path:
    """One tar file a split."""
    source = folder(root.parent / "source")
    root.mkdir()
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as file:
            for name in NAMES:
                file.add(source / split / name, arcname=name)
    return root


def class_tars(root: Path) -> Path:
    """One tar file a class, as ImageNet has them."""
    source = folder(root.parent / "source")
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for name in NAMES:
            with tarfile.open(root / split / f"{name}.tar", "w") as file:
                file.add(source / split / name, arcname="")
    return root


def load(name: str, **options: object) -> Data:
    values = {"image_size": 70, "mean": [0.0], "std": [1.0], "hflip": 0.0, **options}
    return load_data(DataArguments(name, **values))


def shades(data: Data, workers: int = 0) -> list[int]:
    loader = DataLoader(data.eval, 3, collate_fn=collate, num_workers=workers)
    pixels = torch.cat([batch["pixel_values"] for batch in loader])
    return (pixels.mean((1, 2, 3)) * 255).round().int().tolist()


@pytest.mark.parametrize("make", [folder, tars, class_tars])
def test_folders_and_tar_files(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    data = load(f"timm:{make(tmp_path / 'd')}")
    assert data.label_names == ORDER
    assert len(data.train) == len(data.eval) == 8
    labels = [int(data.eval[i]["labels"]) for i in range(8)]
    assert labels == [0, 0, 1, 1, 2, 2, 3, 3]
    found = shades(data)
    assert found == [0, 10, 40, 50, 80, 90, 120, 130]
    # The first image has been read in this process: forked workers must not share its file.
    assert shades(data, workers=2) == found
    assert load(f"timm:{tmp_path / 'd'}", max_train_samples=4).train.split.labels.tolist() == [
        0, 1, 2, 3
    ]  # fmt: skip


def test_torchvision(tmp_path: Path) -> None:
    data = load(f"timm:torch/image_folder:{folder(tmp_path / 'd')}")
    assert data.label_names == NAMES  # torchvision sorts by letters
    assert len(data.eval) == 8 and sorted(shades(data)) == [0, 10, 40, 50, 80, 90, 120, 130]


def _broken(root: Path) -> str:
    folder(root)
    (root / "train" / "ape" / "0.png").write_bytes(b"no image")
    return f"timm:{root}"


def _other(root: Path) -> str:
    folder(root)
    (root / "val" / "bee").rename(root / "val" / "wasp")
    return f"timm:{root}"


def _no_image(root: Path) -> str:
    (root / "train").mkdir(parents=True)
    (root / "val").mkdir()
    return f"timm:{root}"


def _bad_tar(root: Path) -> str:
    tars(root)
    (root / "val.tar").write_bytes(b"nothing")
    return f"timm:{root}"


def _empty_tar(root: Path) -> str:
    tars(root)
    tarfile.open(root / "val.tar", "w").close()
    return f"timm:{root}"


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (_broken, ["row 0 of split 'train'", "0.png", "not an image"]),
        (_other, ["splits 'train' and 'val' have different classes", "'bee'"]),
        (_no_image, ["cannot read", "Found 0 images"]),
        (_bad_tar, ["cannot read"]),
        (_empty_tar, ["split 'val': no image was found"]),
        (lambda root: f"timm:{folder(root, ('ape',))}", ["has 1 class"]),
        (lambda root: f"timm:{folder(root) / 'train'}", ["unknown train_split 'train'", "ape"]),
        (lambda root: f"timm:{root}", ["is not a directory", "train.tar"]),
        (lambda root: "timm:hfds/some/where", ["hfds", "--dataset NAME", "--streaming true"]),
        (lambda root: "timm:wds/where", ["wds", "--dataset DIRECTORY"]),
        (lambda root: f"timm:torch/mist:{root}", ["'mist'", "did you mean 'mnist'?"]),
        (lambda root: f"timm:torch/cifar10:{root}", ["cannot read", "Dataset not found"]),
        (lambda root: f"timm:torch/image_folder:{root}", ["is not a directory"]),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, make: Callable[[Path], str], parts: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        load(make(tmp_path / "d"))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
