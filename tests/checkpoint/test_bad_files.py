"""Bad directories: one line that names the file, and the tensor at fault where there is one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open
from samples import contents, edit_config, outputs, rewrite, trained
from torch import Tensor, nn

from timm_ternary import packing
from timm_ternary.checkpoint.directory import CONFIG_NAME, load_packed, save_packed
from timm_ternary.checkpoint.weights_file import (
    WEIGHTS_NAME,
    is_packed_file,
    read_weights,
)


def refused(directory: Path, match: str, *, file: str = WEIGHTS_NAME) -> None:
    """Both ways of loading raise a ValueError of one line that names `file`."""
    calls: list[Callable[[], object]] = [lambda: load_packed(directory)]
    if file == WEIGHTS_NAME and (directory / CONFIG_NAME).is_file():
        calls.append(lambda: timm.create_model(f"local-dir:{directory}", pretrained=True))
        calls.append(lambda: read_weights(directory / WEIGHTS_NAME))
    for call in calls:
        with pytest.raises(ValueError, match=match) as caught:
            call()
        line = str(caught.value)
        assert "\n" not in line and len(line) < 1000, line
        assert str(directory) in line and (file in line or file == ""), line


class TestBytes:
    """Damage on the way."""

    @pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 500, 20_000, 100_000, -1])
    def test_truncated(self, keep: int, directory: Path) -> None:
        path = directory / WEIGHTS_NAME
        path.write_bytes(path.read_bytes()[:keep])
        refused(directory, "not a whole safetensors file")
        assert not is_packed_file(path) or keep == -1

    def test_one_flipped_bit_in_each_tensor(self, directory: Path) -> None:
        path = directory / WEIGHTS_NAME
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        del header["__metadata__"]
        assert len(header) > 50
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            damaged = bytearray(data)
            damaged[8 + size + (start + end) // 2] ^= 1 << (len(name) % 8)
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"tensor {re.escape(name)} is damaged"):
                read_weights(path)
        refused(directory, r"model.safetensors: tensor .* is damaged")

    def test_trailing_bytes(self, directory: Path) -> None:
        path = directory / WEIGHTS_NAME
        path.write_bytes(path.read_bytes() + b"\0")
        refused(directory, "not a whole safetensors file")

    def test_not_a_safetensors_file(self, directory: Path) -> None:
        (directory / WEIGHTS_NAME).write_bytes(b"<html>404 Not Found</html>" * 100)
        refused(directory, "not a whole safetensors file")

    def test_a_header_whose_size_looks_like_a_pickle(self, directory: Path) -> None:
        """Every safetensors file begins with its header's size; 0x80 is a pickle's first byte."""
        path = directory / WEIGHTS_NAME
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        for start in (b"\x80", b"PK"):
            longer = size
            while not longer.to_bytes(8, "little").startswith(start):
                longer += 8
            text = data[8 : 8 + size].ljust(longer)
            path.write_bytes(longer.to_bytes(8, "little") + text + data[8 + size :])
            assert path.read_bytes().startswith(start)
            assert read_weights(path).architecture == "test_resnet_tern"


def make_bare(directory: Path) -> None:
    """Take the metadata out of the file."""
    path = directory / WEIGHTS_NAME
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"format": "pt"})


def packed_of(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    """A change to one tensor of a file."""

    def apply(tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name].clone())

    return apply


def filled(value: float) -> Callable[[Tensor], Tensor]:
    """Set the first entry."""

    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return change


CODES, SCALES = "layer1.0.conv1.weight_packed", "layer1.0.conv1.weight_scale"
FORGED = {
    "shape": (CODES, lambda t: t.view(2, -1), f"{CODES}: .* codes must be uint8"),
    "size": (CODES, lambda t: t[:-1], f"{CODES}: .* codes must be uint8 of"),
    "longer": (CODES, lambda t: torch.cat([t, t]), f"{CODES}: .* codes must be uint8 of"),
    "empty": (CODES, lambda t: t[:0], f"{CODES}: .* codes must be uint8 of"),
    "dtype": (CODES, lambda t: t.view(torch.int8), f"{CODES}: .* got torch.int8"),
    "floats": (CODES, lambda t: t.float(), f"{CODES}: .* got torch.float32"),
    "code": (CODES, filled(0b11), f"{CODES}: invalid byte 3 in 2bit"),
    "magic": (
        CODES,
        lambda t: torch.tensor([0x28, 0xB5, 0x2F, 0xFD] * 9, dtype=torch.uint8),
        CODES,
    ),
    "nan": (SCALES, filled(float("nan")), f"{SCALES}: .*not finite"),
    "inf": (SCALES, filled(float("inf")), f"{SCALES}: .*not finite"),
    "integers": (SCALES, lambda t: t.int(), f"{SCALES}: .*floating point, got torch.int32"),
    "scale shape": (SCALES, lambda t: t.view(-1), f"{SCALES}: .* shape .* got"),
    "rows": (SCALES, lambda t: t.repeat(1, 3, 1)[:, :3], f"{SCALES}: .* shape .* got"),
    "channels": (SCALES, lambda t: t.repeat(1, 1, 7), f"{SCALES}: .* shape .* got"),
    "no bases": (SCALES, lambda t: t[:0], f"{SCALES}: .* shape .* got"),
    "bases": (SCALES, lambda t: t.repeat(2, 1, 1), f"{CODES}: .* codes must be uint8 of"),
    "nan bias": ("fc.bias", filled(float("nan")), r"fc\.bias holds NaN"),
}


class TestForged:
    """Files whose digests fit: the checks behind them."""

    @pytest.mark.parametrize("case", FORGED)
    def test_tensor(self, case: str, directory: Path) -> None:
        name, change, match = FORGED[case]
        rewrite(directory, packed_of(name, change))
        refused(directory, f"tensor {match}")

    def test_base3_byte_above_242(self, model: nn.Module, tmp_path: Path) -> None:
        save_packed(model, tmp_path, "base3")
        rewrite(tmp_path, packed_of(CODES, filled(243)))
        refused(tmp_path, f"tensor {CODES}: invalid byte 243 in base3")

    def test_zstd_streams(self, model: nn.Module, tmp_path: Path) -> None:
        save_packed(model, tmp_path, "zstd")
        rewrite(tmp_path, packed_of(CODES, lambda t: t[:-9]))
        refused(tmp_path, f"tensor {CODES}: damaged Zstandard stream")
        bomb = packing.encode(torch.zeros(1, 50_000_000, dtype=torch.int8), "zstd")
        rewrite(tmp_path, packed_of(CODES, lambda t: bomb))
        refused(tmp_path, f"tensor {CODES}: damaged Zstandard stream .*bytes expected")

    @pytest.mark.parametrize("name", [CODES, SCALES, "bn1.weight"])
    def test_missing_tensor(self, name: str, directory: Path) -> None:
        rewrite(directory, lambda tensors: tensors.pop(name))
        with pytest.raises(ValueError, match=f"{directory}.*{name}") as caught:
            load_packed(directory)
        assert "\n" not in str(caught.value)

    def test_tensor_that_the_metadata_do_not_list(self, directory: Path) -> None:
        rewrite(directory, header=lambda header: header["digests"].pop("bn1.weight"))
        refused(directory, "tensor bn1.weight is damaged")

    def test_tensor_of_the_metadata_that_is_not_there(self, directory: Path) -> None:
        rewrite(directory, header=lambda header: header["digests"].update(ghost="0" * 16))
        refused(directory, "tensor ghost is missing")

    def test_tensor_too_many(self, directory: Path) -> None:
        rewrite(directory, lambda tensors: tensors.update(ghost=torch.zeros(2)))
        with pytest.raises(ValueError, match=f"{directory}.*ghost"):
            load_packed(directory)

    @pytest.mark.parametrize("version", [2, 99, 0, -1, "1", None, 1.5])
    def test_version(self, version: object, directory: Path) -> None:
        rewrite(directory, header=lambda header: header.update(version=version))
        refused(directory, f"format version {version!r}, this release reads up to 1; type: ")

    @pytest.mark.parametrize("key", ["version", "encoding", "architecture", "ternary", "layers"])
    def test_metadata_without_a_key(self, key: str, directory: Path) -> None:
        rewrite(directory, header=lambda header: header.pop(key))
        refused(directory, f"metadata states no {key}|{key} in the timm_ternary metadata")

    @pytest.mark.parametrize("shape", [None, [], 3, ["3"], [-1, 3], [1.5, 2], [True, 2]])
    def test_shape_in_the_metadata(self, shape: object, directory: Path) -> None:
        name = CODES.removesuffix(".weight_packed")
        rewrite(directory, header=lambda header: header["layers"].update({name: shape}))
        refused(directory, f"tensor {CODES} has the shape")

    @pytest.mark.parametrize("shape", [[1 << 62, 1 << 62], [0, 3], [24, 24, 3, 4], [1]])
    def test_other_shape_in_the_metadata(self, shape: list[int], directory: Path) -> None:
        name = CODES.removesuffix(".weight_packed")
        rewrite(directory, header=lambda header: header["layers"].update({name: shape}))
        refused(directory, f"{name}.weight has the shape|tensor {CODES}", file="")
        with pytest.raises(ValueError, match=f"{WEIGHTS_NAME}: tensor {CODES}"):
            read_weights(directory / WEIGHTS_NAME)

    def test_method_and_encoding_in_the_metadata(self, directory: Path) -> None:
        rewrite(directory, header=lambda header: header.update(encoding="3bit"))
        refused(directory, "unknown encoding '3bit'; did you mean '2bit'")
        rewrite(directory, header=lambda header: header.update(encoding="2bit"))
        rewrite(directory, header=lambda header: header["ternary"].update(granularity="chanel"))
        refused(directory, "unknown granularity 'chanel'; did you mean 'channel'")

    @pytest.mark.parametrize("text", ["", "[]", "7", "null", "{", "\\ud800"])
    def test_metadata_that_are_no_json_object(self, text: str, directory: Path) -> None:
        from timm_ternary.checkpoint.weights_file import _digest

        path = directory / WEIGHTS_NAME
        with safe_open(str(path), framework="pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}
        metadata = {"timm_ternary": text, "timm_ternary_digest": _digest(text.encode())}
        safetensors.torch.save_file(held, str(path), metadata)
        refused(directory, "timm_ternary metadata")


class TestForeign:
    """Whole files, but others."""

    def test_packed_tensors_without_metadata(self, directory: Path) -> None:
        make_bare(directory)
        assert not is_packed_file(directory / WEIGHTS_NAME)
        for key in ("packed", "ternary"):
            edit_config(directory, lambda values, key=key: values["model_args"].pop(key, None))
            with pytest.raises(
                ValueError, match=r"weight_packed is packed, but .* no timm_ternary"
            ):
                read_weights(directory / WEIGHTS_NAME)
            refused(directory, f"tensor .* is packed|{CONFIG_NAME}", file="")
        (directory / CONFIG_NAME).unlink()
        refused(directory, f"no {CONFIG_NAME} beside")

    @pytest.mark.parametrize("case", FORGED)
    def test_bare_file_that_config_json_describes(self, case: str, directory: Path) -> None:
        """transformers saves it where timm_ternary.hf is not imported; it has no digests."""
        name, change, match = FORGED[case]
        rewrite(directory, packed_of(name, change))
        make_bare(directory)
        with pytest.raises(ValueError, match=f"{WEIGHTS_NAME}: tensor {match}") as caught:
            load_packed(directory)
        assert "\n" not in str(caught.value)

    def test_bare_file_that_config_json_describes_wrongly(self, directory: Path) -> None:
        make_bare(directory)
        edit_config(directory, lambda values: values["model_args"].update(packed="2bits"))
        with pytest.raises(ValueError, match=f"{directory}.*'2bits'; did you mean '2bit'"):
            load_packed(directory, packed=False)
        edit_config(directory, lambda values: values["model_args"].update(packed="2bit"))
        edit_config(directory, lambda values: values["model_args"]["ternary"].update(method="tt"))
        refused(directory, "config.json: .*'tt'; did you mean", file="")
        ternary = {"method": "ttq", "exclude": ["fc"]}
        edit_config(directory, lambda values: values["model_args"].update(ternary=ternary))
        refused(directory, r"disagrees with the tensors: .*fc\.weight", file="")

    def test_bare_file_of_another_model(self, directory: Path, tmp_path: Path) -> None:
        other = save_packed(trained("test_vit_tern", ternary="ttq"), tmp_path / "other")
        shutil.copy(other / WEIGHTS_NAME, directory)
        make_bare(directory)
        refused(directory, r"tensor .*weight_packed is missing", file="")

    def test_float_file(self, directory: Path) -> None:
        tensors = timm.create_model("test_resnet", num_classes=5).state_dict()
        safetensors.torch.save_file(tensors, directory / WEIGHTS_NAME)
        with pytest.raises(ValueError, match="not packed by timm_ternary; type: timm-ternary pack"):
            load_packed(directory)

    def test_pickle_under_the_right_name(self, model: nn.Module, directory: Path) -> None:
        for new in (True, False):
            torch.save(
                model.state_dict(), directory / WEIGHTS_NAME, _use_new_zipfile_serialization=new
            )
            refused(directory, "a pickle file; only safetensors files are read")

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "model.pt"])
    def test_pickle_alone(self, name: str, model: nn.Module, directory: Path) -> None:
        (directory / WEIGHTS_NAME).unlink()
        torch.save(model.state_dict(), directory / name)
        refused(directory, f"{name}: pickle files are not read", file=name)
        with pytest.raises(ValueError, match="pickle files are not read"):
            timm.create_model(f"local-dir:{directory}", pretrained=True)

    def test_no_weights(self, directory: Path) -> None:
        (directory / WEIGHTS_NAME).unlink()
        refused(directory, "no such file")

    def test_no_config(self, directory: Path) -> None:
        (directory / CONFIG_NAME).unlink()
        refused(directory, "no config.json beside model.safetensors")

    def test_no_directory(self, tmp_path: Path) -> None:
        refused(tmp_path / "absent", "no such file")

    def test_weights_of_another_model(self, directory: Path, tmp_path: Path) -> None:
        other = save_packed(trained("test_vit_tern", ternary="ttq"), tmp_path / "other")
        shutil.copy(other / WEIGHTS_NAME, directory)
        match = "model.safetensors beside it was written with another config"
        refused(directory, match, file="")


def other_ternary(values: dict[str, Any]) -> None:
    values["model_args"]["ternary"]["method"] = "twn"


def other_granularity(values: dict[str, Any]) -> None:
    values["model_args"]["ternary"]["granularity"] = "channel"


DISAGREES = {
    "architecture": (
        lambda v: v.update(architecture="test_resnet"),
        "the weights are those of 'test_resnet_tern', not of 'test_resnet'",
    ),
    "other architecture": (
        lambda v: v.update(architecture="test_vit_tern"),
        "the weights are those of 'test_resnet_tern', not of 'test_vit_tern'",
    ),
    "unknown architecture": (lambda v: v.update(architecture="resnet_18_tern"), "resnet_18_tern"),
    "no architecture": (lambda v: v.pop("architecture"), "architecture"),
    "architecture list": (lambda v: v.update(architecture=["a"]), "architecture"),
    "method": (other_ternary, "config.json says ternary="),
    "granularity": (other_granularity, "config.json says ternary="),
    "packed": (lambda v: v["model_args"].update(packed="base3"), "config.json says packed='base3'"),
    "classes": (lambda v: v.update(num_classes=9), r"config.json disagrees .*fc\.weight"),
    "classes as text": (lambda v: v.update(num_classes="5"), "config.json"),
    "channels": (lambda v: v["model_args"].update(in_chans=4), r"config.json"),
    "argument": (lambda v: v["model_args"].update(no_such_argument=1), "no_such_argument"),
    "arguments list": (lambda v: v.update(model_args=[1]), "config.json"),
    "no source": (lambda v: v.pop("pretrained_cfg"), "config.json"),
    "source list": (lambda v: v.update(pretrained_cfg=[]), "config.json"),
    "block": (lambda v: v["model_args"].update(block_args={"x": 1}), "config.json"),
}


class TestConfig:
    """config.json against the tensors."""

    @pytest.mark.parametrize("case", DISAGREES)
    def test_disagrees(self, case: str, directory: Path) -> None:
        change, match = DISAGREES[case]
        edit_config(directory, change)
        refused(directory, match, file="")

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '"text"', "\x00", "{'a': 1}"])
    def test_not_what_timm_writes(self, text: str, directory: Path) -> None:
        (directory / CONFIG_NAME).write_text(text)
        refused(directory, CONFIG_NAME, file=CONFIG_NAME)

    def test_not_text(self, directory: Path) -> None:
        (directory / CONFIG_NAME).write_bytes(b"\xff\xfe\x00")
        refused(directory, CONFIG_NAME, file=CONFIG_NAME)

    def test_reading_changes_nothing(self, model: nn.Module, directory: Path) -> None:
        before = contents(directory)
        loaded = load_packed(directory)
        with torch.no_grad():
            for parameter in loaded.parameters():
                parameter.zero_()
            for buffer in loaded.buffers():
                buffer.zero_()
        assert contents(directory) == before
        assert torch.equal(outputs(load_packed(directory)), outputs(model))
