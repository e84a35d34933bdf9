"""FORMAT.md against files: numbers, names and the example are those of the code."""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from samples import trained
from torch import Tensor

import timm_ternary
from timm_ternary import packing
from timm_ternary.checkpoint.directory import save_packed
from timm_ternary.checkpoint.weights_file import VERSION, WEIGHTS_NAME
from timm_ternary.config import TernaryConfig
from timm_ternary.nn.timm_wrapper import quantization_dict

TEXT = (Path(timm_ternary.__file__).parent / "checkpoint" / "FORMAT.md").read_text()
README = (Path(__file__).parents[2] / "README.md").read_text()


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the table whose head begins like that, by the first word of each."""
    part = TEXT.partition(f"| {heading}")[2].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in part.splitlines()[2:]]
    return {row[0].strip().split(" ")[0].strip("`"): [c.strip() for c in row[1:]] for row in rows}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor], Any]:
    """A directory, its tensors and its metadata."""
    directory = save_packed(trained(ternary="ttq"), tmp_path_factory.mktemp("packed"))
    with safe_open(str(directory / WEIGHTS_NAME), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return directory, tensors, file.metadata()


def test_version_and_encodings() -> None:
    assert TEXT.startswith(f"# The file of a packed model, version {VERSION}\n")
    found = table("encoding | codes a byte")
    assert tuple(found) == packing.ENCODINGS
    for name, count in packing.CODES_PER_BYTE.items():
        assert found[name][:2] == [str(count), f"{8 / count:g}"]


def test_the_example() -> None:
    codes = torch.tensor([[0, 1, -1, 1, -1]], dtype=torch.int8)
    for encoding, (data,) in table("encoding | bytes, hexadecimal").items():
        stored = torch.tensor(list(bytes.fromhex(data)), dtype=torch.uint8)
        assert torch.equal(packing.encode(codes, encoding), stored)
        assert torch.equal(packing.decode(stored, encoding, 1, 5), codes)


def test_metadata(written: tuple[Path, dict[str, Tensor], dict[str, str]]) -> None:
    _, tensors, metadata = written
    assert metadata.keys() == table("entry of the header").keys()
    header = json.loads(metadata["timm_ternary"])
    assert header.keys() == table("key of `timm_ternary`").keys()
    assert header["version"] == VERSION
    text = metadata["timm_ternary"].encode()
    assert metadata["timm_ternary_digest"] == blake2b(text, digest_size=8).hexdigest()
    for name, tensor in tensors.items():
        data = f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode() + tensor.numpy().tobytes()
        assert header["digests"][name] == blake2b(data, digest_size=8).hexdigest()


def test_tensors(written: tuple[Path, dict[str, Tensor], dict[str, str]]) -> None:
    _, tensors, metadata = written
    for name, shape in json.loads(metadata["timm_ternary"])["layers"].items():
        packed, scale = tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_scale"]
        assert (packed.dtype, scale.dtype) == (torch.uint8, torch.float32)
        assert scale.shape[0] == 1 and scale.shape[1] in (1, 2) and scale.shape[2] in (1, shape[0])


def test_config(written: tuple[Path, dict[str, Tensor], dict[str, str]]) -> None:
    config = json.loads((written[0] / "config.json").read_text())
    assert table("entry of config.json").keys() <= config.keys()
    ternary = TernaryConfig("ttq").to_dict()
    assert config["model_args"]["ternary"] == ternary and config["model_args"]["packed"] == "2bit"
    assert config["quantization_config"] == quantization_dict(TernaryConfig("ttq"), "2bit")
    row = TEXT.partition("| `ternary` | how")[2].partition("\n")[0]
    assert re.findall(r"`(\w+)`", row) == list(ternary)


def test_readme_leads_here() -> None:
    assert "](timm_ternary/checkpoint/FORMAT.md)" in README
