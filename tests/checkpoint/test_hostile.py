"""Hostile files: memory follows the model, and whatever is changed ends in one line, or loads."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from samples import edit_config, image, outputs, rewrite, trained
from torch import Tensor, nn

from timm_ternary import packing
from timm_ternary.checkpoint import weights_file
from timm_ternary.checkpoint.directory import (
    CONFIG_NAME,
    load_packed,
    open_directory,
    save_float,
)
from timm_ternary.checkpoint.weights_file import (
    WEIGHTS_NAME,
    is_packed_file,
    read_file,
    read_weights,
)
from timm_ternary.code import TernaryCode
from timm_ternary.errors.foreign import FileError
from timm_ternary.models.names import load_model
from timm_ternary.training.arguments.model import ModelArguments
from timm_ternary.training.arguments.recipe import parse
from timm_ternary.training.run import ARGUMENTS
from timm_ternary.training.start import build_model, find_start

CODES, SCALES = "layer1.0.conv1.weight_packed", "layer1.0.conv1.weight_scale"
LAYER = "layer1.0.conv1"
EVIL = "\x1b]0;owned\x07\x9b2J\u202e\nerror: \ud800"


def line_of(call: Callable[[], object], match: str = "") -> str:
    """The one printable line of bounded length in which `call` ends."""
    with pytest.raises(FileError, match=match) as caught:
        call()
    line = str(caught.value)
    assert line.isprintable() and len(line) <= 1000, line
    return line


@contextmanager
def nothing_read() -> Iterator[None]:
    """Inside, no tensor of a weights file is read or decoded."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was read or decoded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "decode", fail)
        patch.setattr(weights_file, "_digest_tensor", fail)
        patch.setattr(safetensors.torch, "load_file", fail)
        yield


class TestMemory:
    """Shapes are compared with the model before a tensor is read or decoded."""

    def test_a_small_file_that_states_a_large_weight(self, directory: Path) -> None:
        stream = packing.encode(torch.zeros(1, 4096, dtype=torch.int8), "zstd")
        rewrite(
            directory,
            lambda tensors: tensors.update({CODES: stream}),
            lambda header: header["layers"].update({LAYER: [5_000, 1_000_000]}),
        )
        with nothing_read():
            for call in (load_packed, open_directory, lambda d: load_model(str(d)), _timm):
                line_of(lambda call=call: call(directory), rf"json disagrees .*{LAYER}\.weight")
            weights = directory / WEIGHTS_NAME
            line_of(lambda: read_weights(weights), f"{CODES} .* too large for a file")
            line_of(lambda: _start(weights), r"5,000,...,... values in its tensors")

    def test_a_file_of_one_huge_tensor(self, tmp_path: Path) -> None:
        """3 GB that take no place on the disk."""
        for name in ("test_resnet", "test_resnet_tern"):  # the latter starts from float weights
            save_float(trained("test_resnet"), tmp_path)
            edit_config(tmp_path, lambda values, name=name: values.update(architecture=name))
            _grow(tmp_path / WEIGHTS_NAME, 3 * 10**9)
            calls = (_timm,) if "tern" in name else (open_directory, _load, _start)
            with nothing_read():
                for call in calls:
                    line_of(
                        lambda call=call: call(tmp_path), r"safetensors: 3,000,...,... values in"
                    )

    @pytest.mark.parametrize("change", [{"num_classes": 10**10}, {"in_chans": 10**9}])
    def test_a_config_that_asks_for_a_huge_model(
        self, change: dict[str, int], directory: Path
    ) -> None:
        for path in (directory, save_float(trained("test_resnet"), directory / "float")):
            place = (lambda v: v) if "num_classes" in change else (lambda v: v["model_args"])
            edit_config(path, lambda values, place=place: place(values).update(change))
            with nothing_read():
                for call in (open_directory, _load):
                    line_of(lambda call=call, path=path: call(path))

    def test_a_header_of_100_megabytes(self, tmp_path: Path) -> None:
        path = tmp_path / WEIGHTS_NAME
        with path.open("wb") as file:
            file.write((99_000_000).to_bytes(8, "little") + b"{")
            file.truncate(100_000_000)
        line_of(lambda: read_file(path), "a header of 99,000,000 bytes")
        assert not is_packed_file(path)


def _grow(path: Path, more: int) -> None:
    """One more tensor of so many bytes, that take no place on the disk."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    end = len(data) - 8 - size
    header["ghost"] = {"dtype": "U8", "shape": [more], "data_offsets": [end, end + more]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with path.open("rb+") as file:
        file.truncate(8 + len(text) + end + more)


def _load(directory: Path) -> nn.Module:
    return load_model(str(directory))


def _timm(directory: Path) -> nn.Module:
    return timm.create_model(f"local-dir:{directory}", pretrained=True)


def _start(checkpoint: Path) -> nn.Module:
    args = ModelArguments(model="test_resnet_tern", checkpoint=str(checkpoint))
    return build_model(args, find_start(args), num_classes=5, in_chans=3)


def test_bases_are_few(directory: Path) -> None:
    rewrite(directory, lambda tensors: tensors.update({SCALES: torch.ones(1000, 1, 1)}))
    line_of(lambda: load_packed(directory), f"{SCALES}: must have 1 to 16 bases")
    code = torch.zeros(17, 2, 2, dtype=torch.int8), torch.ones(17, 1), torch.ones(17, 1)
    with pytest.raises(ValueError, match="1 to 16 bases, got 17"):
        TernaryCode(*code)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.bool, torch.int64]
)
def test_tensors_of_strange_types(dtype: torch.dtype, directory: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(directory, tmp_path / "other"))
    rewrite(directory, lambda tensors: tensors.update({SCALES: tensors[SCALES].to(dtype)}))
    line_of(lambda: load_packed(directory), f"{SCALES}: must be floating point, got {dtype}")
    rewrite(other, lambda tensors: tensors.update({"bn1.bias": tensors["bn1.bias"].to(dtype)}))
    with suppress(FileError):  # torch converts what it can
        load_packed(other)


def test_nan_of_every_type() -> None:
    for dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.float64, torch.complex64):
        tensor = torch.zeros(3)
        assert not weights_file.has_nan(tensor.to(dtype))
        tensor[1] = float("nan")
        assert weights_file.has_nan(tensor.to(dtype))


class TestText:
    """Text from files does not reach a terminal as it is."""

    def test_names_of_tensors(self, directory: Path) -> None:
        evil = EVIL.replace("\ud800", "")  # safetensors knows UTF-8 alone
        rewrite(directory, lambda tensors: tensors.update({evil: torch.zeros(1)}))
        line_of(lambda: load_packed(directory), r"\\x1b\]0;owned\\x07")
        line_of(lambda: load_model(str(directory)))
        rewrite(directory, header=lambda header: header["layers"].update({evil: [1, 2]}))
        line_of(lambda: read_weights(directory / WEIGHTS_NAME))

    @pytest.mark.parametrize("size", [1, 100_000])
    @pytest.mark.parametrize("key", ["architecture", "encoding", "version", "ternary", "layers"])
    def test_metadata(self, key: str, size: int, directory: Path) -> None:
        rewrite(directory, header=lambda header: header.update({key: EVIL * size}))
        line_of(lambda: load_packed(directory))
        line_of(lambda: load_model(str(directory)))

    @pytest.mark.parametrize("size", [1, 100_000])
    def test_config_json(self, size: int, directory: Path) -> None:
        text = EVIL * size
        changes: dict[str, Callable[[dict[str, Any]], object]] = {
            "architecture": lambda v: v.update(architecture=text),
            "argument": lambda v: v["model_args"].update({text: 1}),
            "packed": lambda v: v["model_args"].update(packed=text),
            "method": lambda v: v["model_args"]["ternary"].update(method=text),
            "mean": lambda v: v["pretrained_cfg"].update(mean=text),
        }
        for change in changes.values():
            copy = Path(shutil.copytree(directory, directory.with_name("copy")))
            edit_config(copy, change)
            line_of(lambda copy=copy: load_packed(copy))
            line_of(lambda copy=copy: load_model(str(copy)))
            shutil.rmtree(copy)


NASTY: list[Any] = [
    *(None, True, -1, 0, 1.5, 10**12, 10**400, float("nan"), float("inf"), "", "a", EVIL),
    *([], [[]], {}, {"a": {}}, [1, "2"], ["fc"], "x" * 100_000, [None] * 1000),
]


def mutated(values: Any, rng: random.Random) -> Any:
    """One place of a JSON value changed: replaced, taken out, or added to."""
    keys = list(values) if isinstance(values, dict) else list(range(len(values)))
    if not keys:
        return rng.choice(NASTY)
    key = rng.choice(keys)
    if isinstance(values[key], (dict, list)) and rng.random() < 0.7:
        values[key] = mutated(values[key], rng)
    elif rng.random() < 0.2:
        del values[key]
    elif isinstance(values, dict) and rng.random() < 0.2:
        values[rng.choice(["a", "features_only", "packed", EVIL])] = rng.choice(NASTY)
    else:
        values[key] = rng.choice(NASTY)
    return values


def flipped(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, taken out or doubled."""
    text = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text))
        kind = rng.random()
        if kind < 0.6:
            text[place] = rng.choice([rng.randrange(256), *b'{}[]",:0-'])
        elif kind < 0.8:
            del text[place : place + rng.randint(1, 30)]
        else:
            text[place:place] = text[place : place + rng.randint(1, 30)]
    return bytes(text)


def ends_well(call: Callable[[], nn.Module], expected: Tensor) -> str:
    """Whether `call` gave the model as it was; else it was refused in one line."""
    try:
        loaded = call()
    except FileError as error:
        line = str(error)
        assert line.isprintable() and 0 < len(line) <= 1000, line
        return "refused"
    assert torch.equal(outputs(loaded), expected)
    return "loaded"


@pytest.mark.parametrize("seed", range(4))
class TestFuzz:
    """Fixed seeds: each change loads the same model, or is refused in one line."""

    @pytest.mark.parametrize("signed", [True, False])
    def test_config_json(
        self, seed: int, signed: bool, directory: Path, whole: Path, model: nn.Module
    ) -> None:
        rng, path, expected = random.Random(seed), directory / CONFIG_NAME, outputs(model, image())
        found = set()
        for turn in range(10):
            edit_config(directory, lambda values: mutated(values, rng), signed=signed)
            if turn % 3 == 0:
                path.write_bytes(flipped(path.read_bytes(), rng))
            calls = (lambda: load_packed(directory)), (lambda: load_model(str(directory)))
            found.add(ends_well(calls[turn % 2], expected))
            for name in (CONFIG_NAME, WEIGHTS_NAME):
                shutil.copy(whole / name, directory)
        assert "refused" in found

    def test_header(self, seed: int, directory: Path, model: nn.Module) -> None:
        rng, path, expected = random.Random(seed), directory / WEIGHTS_NAME, outputs(model, image())
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        for turn in range(12):
            text = data[8 : 8 + size]
            if turn % 2:
                text = flipped(text, rng)
            else:
                text = json.dumps(mutated(json.loads(text), rng)).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
            ends_well(lambda: load_packed(directory), expected)
            with suppress(FileError):
                assert read_file(path).is_packed in (True, False)

    def test_metadata_whose_digests_fit(self, seed: int, directory: Path, model: nn.Module) -> None:
        rng, expected = random.Random(seed), outputs(model, image())
        whole = (directory / WEIGHTS_NAME).read_bytes()
        for _ in range(8):
            rewrite(directory, header=lambda header: mutated(header, rng))
            ends_well(lambda: load_packed(directory), expected)
            (directory / WEIGHTS_NAME).write_bytes(whole)

    def test_recipe(self, seed: int, tmp_path: Path) -> None:
        rng, path = random.Random(seed), tmp_path / "recipe.yaml"
        fields = {
            "model": "resnet8_cifar_tern",
            "dataset": "digits",
            "ternary": {"method": "tga", "exclude": ["first"], "options": {"init_factor": 0.1}},
            "model_kwargs": {"drop_rate": 0.1},
            "learning_rate": 0.1,
            "num_train_epochs": 3,
            "lr_scheduler_type": "cosine",
            "output_dir": str(tmp_path),
            "use_cpu": True,
            "report_to": ["none"],
        }
        for turn in range(16):
            values = mutated(json.loads(json.dumps(fields)), rng)
            data = json.dumps(values).encode()  # JSON is YAML
            path.write_bytes(flipped(data, rng) if turn % 3 == 0 else data)
            try:
                parse([str(path)], *ARGUMENTS)
            except FileError as error:
                line = str(error)
                assert line.isprintable() and 0 < len(line) <= 1000, line
