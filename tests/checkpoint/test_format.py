"""FORMAT.md against files: numbers, names and the example are those of the code."""

from __future__ import annotations

import json
import math
import re
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from samples import trained
from torch import Tensor

import timm_ternary
from timm_ternary import packing
from timm_ternary.checkpoint import weights_file
from timm_ternary.checkpoint.directory import load_packed, save_packed
from timm_ternary.checkpoint.weights_file import VERSION, WEIGHTS_NAME
from timm_ternary.config import TernaryConfig
from timm_ternary.nn.convert import ternary_layers
from timm_ternary.nn.forms import layer_code
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


class Decoder:
    """FORMAT.md alone: the standard library and numpy, no torch, nothing of this project."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        self.header = json.loads(data[8:end])
        self.about = json.loads(self.header["__metadata__"]["timm_ternary"])
        self.data = data[end:]

    def names(self) -> list[str]:
        return [name for name in self.header if name != "__metadata__"]

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        entry = self.header[name]
        start, stop = entry["data_offsets"]
        kind = {"F32": "<f4", "U8": "u1", "I64": "<i8"}[entry["dtype"]]
        return np.frombuffer(self.data[start:stop], kind).reshape(entry["shape"])

    def digest(self, name: str) -> str:
        entry = self.header[name]
        start, stop = entry["data_offsets"]
        sizes = entry["shape"]
        shape = f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(map(str, sizes))})"
        kind = {row[0].strip("`"): row[-1] for row in DTYPES}[entry["dtype"]]
        return blake2b(
            f"{name} {kind} {shape} ".encode() + self.data[start:stop], digest_size=8
        ).hexdigest()

    def weight(self, layer: str) -> np.ndarray[Any, Any]:
        shape = self.about["layers"][layer]
        count, scale = math.prod(shape), self.tensor(f"{layer}.weight_scale")
        bases, rows, groups = scale.shape
        packed = self.tensor(f"{layer}.weight_packed").tobytes()
        codes = self._codes(packed, bases, count)
        group = np.zeros(count, int) if groups == 1 else np.arange(count) // (count // shape[0])
        weight = np.zeros(count, np.float32)
        for b in range(bases):
            plus, minus = scale[b, 0, group], -scale[b, rows - 1, group]
            zero = np.float32(0)
            weight += np.where(codes[b] > 0, plus, np.where(codes[b] < 0, minus, zero))
        return weight.reshape(shape)

    def _codes(self, packed: bytes, bases: int, count: int) -> np.ndarray[Any, Any]:
        if packed[:4] == bytes.fromhex("28b52ffd"):
            packed = unzstd(packed)
        size = len(packed) // bases
        streams = np.frombuffer(packed, np.uint8).reshape(bases, size)
        i = np.arange(count)
        if len(packed) == bases * -(-count // 4):
            pairs = streams[:, i // 4] >> 2 * (i % 4) & 3
            assert not np.any(pairs == 3)
            return np.array([0, 1, -1])[pairs]
        assert len(packed) == bases * -(-count // 5)
        return streams[:, i // 5] // 3 ** (i % 5) % 3 - 1


def unzstd(data: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.decompress(data)
    import zstandard

    return zstandard.ZstdDecompressor().decompress(data)


DTYPES = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if re.match(r"\| `[A-Z0-9]+` \| [1248] \|", line)
]

MODELS = [
    ("tga", "layer"), ("ttq", "channel"), ("twn", "channel"), ("bwn", "channel"), ("rel", "layer"),
    ("abcnet", "layer"),
]  # fmt: skip


@pytest.mark.parametrize("encoding", packing.ENCODINGS)
@pytest.mark.parametrize(("method", "granularity"), MODELS)
def test_a_decoder_by_this_text_alone(
    method: str, granularity: str, encoding: str, tmp_path: Path
) -> None:
    ternary = {"method": method, "granularity": granularity}
    model = trained("resnet8_cifar_tern", num_classes=3, ternary=ternary)
    decoder = Decoder(save_packed(model, tmp_path, encoding) / WEIGHTS_NAME)
    state = load_packed(tmp_path).state_dict()
    layers = decoder.about["layers"]
    assert layers and decoder.about["encoding"] == encoding
    for name, layer in ternary_layers(load_packed(tmp_path)).items():
        expected = layer_code(layer).decode().numpy()
        assert np.array_equal(decoder.weight(name), expected), name
    for name in decoder.names():
        assert decoder.digest(name) == decoder.about["digests"][name]
        if not name.startswith(tuple(f"{layer}.weight_" for layer in layers)):
            assert np.array_equal(decoder.tensor(name), state[name].numpy())


@pytest.mark.parametrize("encoding", packing.ENCODINGS)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 6, 9, 40])
def test_a_decoder_tells_the_encoding(encoding: str, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    codes = torch.randint(-1, 2, (2, count), dtype=torch.int8, generator=generator)
    data = packing.encode_smallest(codes, encoding).numpy().tobytes()
    found = Decoder._codes(Decoder.__new__(Decoder), data, 2, count)
    assert np.array_equal(found, codes.numpy())


def test_names_of_dtypes() -> None:
    names = {
        torch.empty(0, dtype=getattr(torch, row[-1].removeprefix("torch."))).dtype: row[0].strip(
            "`"
        )
        for row in DTYPES
    }
    assert len(names) == 10
    for dtype, name in names.items():
        data = safetensors.torch.save({"a": torch.zeros(2, dtype=dtype)})
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert header["a"]["dtype"] == name
        size = next(row[1] for row in DTYPES if row[0] == f"`{name}`")
        assert header["a"]["data_offsets"] == [0, 2 * int(size)]


def test_the_digest_of_the_example() -> None:
    found = re.search(r"tensor `([^`]+)`, U8, shape \[2\], bytes 64 02 \| `(\w+)`", TEXT)
    assert found is not None
    tensor = torch.tensor([0x64, 0x02], dtype=torch.uint8)
    assert weights_file._digest_tensor(found[1], tensor) == found[2]


def test_readme_leads_here() -> None:
    assert "](timm_ternary/checkpoint/FORMAT.md)" in README
