"""Files of others: what is no file is refused before it is opened, and sizes are bounded."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
from samples import trained
from torch import nn

from timm_ternary.checkpoint.directory import load_packed, save_packed
from timm_ternary.checkpoint.weights_file import WEIGHTS_NAME, is_packed_file, read_file
from timm_ternary.data.sources.base import read_image
from timm_ternary.errors.foreign import FileError
from timm_ternary.evaluation import predict
from timm_ternary.files import check_regular, read_json, sha256
from timm_ternary.models.names import load_model
from timm_ternary.training.arguments.recipe import load_yaml


def directory(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # a name of at most 107 bytes


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


KINDS: dict[Callable[[Path], None], str] = {
    directory: "a directory",
    pipe: "a pipe",
    unix_socket: "a socket",
    device: "a device",
    link_to_pipe: "a pipe",
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Tests do not change it."""
    return trained()


@pytest.fixture(scope="module")
def whole(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good directory."""
    return save_packed(model, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def never_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pipe that is opened would be waited for: a test that hangs says little."""
    import signal

    def fail(*_: object) -> None:
        raise AssertionError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("never_waits")
@pytest.mark.parametrize("make", KINDS)
def test_what_is_no_file_is_not_opened(
    make: Callable[[Path], None], whole: Path, model: nn.Module, tmp_path: Path
) -> None:
    calls: dict[str, list[Callable[[Path], object]]] = {
        "model.safetensors": [
            read_file,
            sha256,
            lambda path: load_packed(path.parent),
            lambda path: load_model(str(path.parent)),
            lambda path: load_model("test_resnet_tern", checkpoint_path=path),
            lambda path: timm.create_model(f"local-dir:{path.parent}", pretrained=True),
        ],
        "config.json": [
            read_json,
            lambda path: load_model(str(path.parent)),
        ],
        "recipe.yaml": [load_yaml],
        "image.png": [lambda path: read_image("image 1", str(path), lambda: path.open("rb"))],
    }
    for name, functions in calls.items():
        for function in functions:
            place = tmp_path / "place"
            shutil.copytree(whole, place)
            (place / name).unlink(missing_ok=True)
            make(place / name)
            with pytest.raises(ValueError, match=f"{name}: not a file, but {KINDS[make]}"):
                function(place / name)
            assert not is_packed_file(place / name)
            shutil.rmtree(place)
    make(tmp_path / "image.png")
    skipped: list[str] = []
    assert not list(predict(model, [tmp_path / "image.png"], skipped=lambda *s: skipped.extend(s)))
    assert skipped == [str(tmp_path / "image.png"), f"not a file, but {KINDS[make]}"]


def test_links_to_files_are_files(whole: Path, tmp_path: Path) -> None:
    for path in whole.iterdir():
        (tmp_path / path.name).symlink_to(path)
    load_packed(tmp_path)
    check_regular(tmp_path / WEIGHTS_NAME)
    (tmp_path / "dangling").symlink_to("nothing")
    for path in (tmp_path / "dangling", tmp_path / "loop", tmp_path / ("x" * 300), "a\0b"):
        if str(path).endswith("loop"):
            Path(path).symlink_to("loop")
        with pytest.raises(FileError):
            check_regular(path)


def test_a_large_json_file_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # it takes no place on the disk
    with pytest.raises(FileError, match=r"config\.json: larger than 16,777,216 bytes"):
        read_json(path)
    assert read_json(_written(path, "[1]"), kind=list) == [1]
    for text, reason in (("[" * 100_000, "nested too deeply"), ("[1]", "not a JSON object")):
        with pytest.raises(FileError, match=f"config.json: not .*{reason}|config.json: {reason}"):
            read_json(_written(path, text))


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
