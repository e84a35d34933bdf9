"""Pixels: every mode of PIL is scaled by what it means, or refused; none becomes one color."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Image as PILImage

from timm_ternary.data.arguments import DataArguments
from timm_ternary.data.images import is_grey, plain, to_mode, varies
from timm_ternary.data.load import check_spread, load_data

GREY = np.array([[0, 60, 120], [180, 210, 255]], np.uint8)
DRAWING = np.where(GREY < 150, 255, 0).astype(np.uint8)  # of an alpha channel


def stored(image: PILImage, kind: str = "PNG", **options: Any) -> PILImage:
    """`image` as it comes back from a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return Image.open(file)


def levels(image: PILImage, mode: str = "L") -> np.ndarray:
    return np.asarray(to_mode(image, mode))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        Image.fromarray(GREY.astype(np.uint16) * 257),
        Image.frombytes("I;16B", (3, 2), (GREY.astype(">u2") * 257).tobytes()),
        stored(Image.fromarray(GREY.astype(np.uint16) * 257)),
        stored(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
        Image.fromarray((GREY / 255).astype(np.float32)),
        stored(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
        Image.fromarray(GREY).convert("LA"),
        Image.fromarray(GREY).convert("LA").convert("La"),
        Image.fromarray(GREY).convert("RGBA").convert("RGBa"),
        Image.fromarray(GREY).convert("P"),
        Image.fromarray(GREY).convert("PA"),
        Image.fromarray(GREY).convert("RGB").convert("CMYK"),
        Image.fromarray(GREY).convert("RGB").convert("YCbCr"),
        Image.fromarray(GREY).convert("RGB").convert("HSV"),
    ],
    ids=lambda image: f"{image.mode} {image.format}",
)
def test_levels_are_those_that_the_mode_means(image: PILImage) -> None:
    assert np.abs(levels(image).astype(int) - GREY).max() <= 1
    color = levels(image, "RGB").astype(int)
    assert color.shape == (2, 3, 3) and np.abs(color - GREY[..., None]).max() <= 1
    assert is_grey(image) or is_grey(plain(image)) == is_grey(image)


def test_16_bits_of_an_older_pillow() -> None:
    image = Image.fromarray(GREY.astype(np.int32) * 257)  # as before 11.3, from a PNG
    image.format = "PNG"
    assert np.array_equal(levels(image), GREY)


def test_one_bit_is_black_and_white() -> None:
    assert levels(Image.fromarray(GREY > 100)).tolist() == [[0, 0, 255], [255, 255, 255]]


def transparent(mode: str) -> PILImage:
    """A black drawing on a transparent ground that is black too."""
    image = Image.fromarray(np.dstack([np.zeros((2, 3, 3), np.uint8), DRAWING]))
    if mode == "P":
        image = Image.fromarray((DRAWING > 0).astype(np.uint8), "P")
        image.putpalette([0, 0, 0] * 256)
        return stored(image, transparency=0)
    if mode == "P bytes":
        image = Image.fromarray((DRAWING > 0).astype(np.uint8), "P")
        image.putpalette([0, 0, 0] * 256)
        return stored(image, transparency=b"\x00\xff")
    if mode == "RGB":
        image = Image.fromarray(np.dstack([255 - DRAWING] * 3) // 255)
        return stored(image, transparency=(1, 1, 1))
    return image.convert("LA").convert("La") if mode == "La" else image.convert(mode)


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "P", "P bytes", "RGB"])
def test_a_drawing_on_a_transparent_ground_stays_one(mode: str) -> None:
    assert np.array_equal(levels(transparent(mode)), 255 - DRAWING)


def test_an_image_that_is_all_transparent_keeps_its_colors() -> None:
    image = Image.fromarray(np.dstack([GREY, np.zeros_like(GREY)]), "LA")
    assert np.array_equal(levels(image), GREY)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.fromarray(np.float32([[0, 3], [200, 255]])), "from 0 to 255 (mode F), not from 0"),
        (Image.fromarray(np.float32([[-1, 1]])), "from -1 to 1 (mode F)"),
        (Image.fromarray(np.float32([[np.nan, 1]])), "nan"),
        (Image.fromarray(np.float32([[np.inf, 1]])), "inf"),
        (Image.fromarray(np.int32([[0, 70000]])), "32-bit levels, of which none is white (mode I)"),
        (stored(Image.fromarray(np.int32([[0, 9]])), "TIFF"), "(mode I)"),
        (Image.new("LAB", (2, 2)), "LAB colors"),
    ],
)
def test_levels_of_which_none_is_white_are_refused(image: PILImage, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        to_mode(image, "L")
    assert words in str(caught.value) and "save it with 8 or 16 bits, as PNG" in str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA", "F"])
def test_images_are_turned_upright_in_every_mode(orientation: int, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(GREY.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray((GREY / 255).astype(np.float32))
    else:
        image = Image.fromarray(GREY).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = levels(stored(image, "TIFF" if mode == "F" else "PNG", exif=exif))
    turns = {
        1: GREY, 2: GREY[:, ::-1], 3: GREY[::-1, ::-1], 4: GREY[::-1],
        5: GREY.T, 6: np.rot90(GREY, -1), 7: GREY[::-1, ::-1].T, 8: np.rot90(GREY),
    }  # fmt: skip
    assert np.array_equal(turned, turns[orientation])


def images_of(root: Path, train: Any, **options: Any) -> str:
    """An image folder of two classes whose training images `train(label, k)` gives."""
    for split in ("train", "test"):
        for label in range(2):
            (root / split / f"c{label}").mkdir(parents=True)
            for k in range(3):
                image = train(label, k) if split == "train" else Image.fromarray(GREY)
                kind = options.get("kind", "png")
                image.save(root / split / f"c{label}" / f"{k}.{kind}")
    return str(root)


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_that_cannot_be_scaled_are_named(tmp_path: Path, in_memory: bool) -> None:
    made = images_of(
        tmp_path / "d", lambda *_: Image.fromarray(np.float32([[0, 900]])), kind="tiff"
    )
    with pytest.raises(ValueError, match=r"row 0 of split 'train' \(.*0\.tiff\) cannot be read: "):
        load_data(DataArguments(dataset=made, in_memory=in_memory))


@pytest.mark.parametrize("options", [{}, {"in_memory": False}, {"streaming": True}])
@pytest.mark.parametrize("shade", [(0, 0, 0), (255, 255, 255), (200, 0, 0)])
def test_training_images_of_one_color_are_refused(
    tmp_path: Path, options: dict[str, Any], shade: tuple[int, int, int]
) -> None:
    made = images_of(tmp_path / "d", lambda *_: Image.new("RGB", (6, 6), shade))
    with pytest.raises(ValueError, match=r"images of split 'train' all have one and the same colo"):
        check_spread(load_data(DataArguments(dataset=made, **options)))


@pytest.mark.parametrize("options", [{}, {"in_memory": False}, {"streaming": True}])
def test_images_of_one_color_each_do_vary(tmp_path: Path, options: dict[str, Any]) -> None:
    made = images_of(tmp_path / "d", lambda label, k: Image.new("RGB", (6, 6), (100, 0, 9 * label)))
    data = load_data(DataArguments(dataset=made, **options))
    check_spread(data)
    assert data.train.varies()


def test_no_more_images_are_looked_at_than_needed() -> None:
    seen = []

    def images() -> Any:
        for shade in (3, 3, 7, 3):
            seen.append(shade)
            yield Image.new("L", (2, 2), shade)

    assert varies(images()) and seen == [3, 3, 7]
    assert not varies([]) and not varies([Image.new("L", (2, 2), 3)] * 4)
