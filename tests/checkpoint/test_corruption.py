"""Any damage to a weights file ends in a ValueError, or changes nothing that is read."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from timm_ternary import TernaryCode, TernaryConfig, packing
from timm_ternary.checkpoint.weights_file import (
    StoredWeights,
    file_bytes,
    packed_tensors,
    read_weights,
)
from timm_ternary.nn.convert import install_
from timm_ternary.quantizers import get

FAST = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass(frozen=True)
class Sample:
    """A file's bytes, and what it holds."""

    data: bytes
    codes: dict[str, TernaryCode]
    dense: dict[str, torch.Tensor]
    config: TernaryConfig
    encoding: str


def layer(shape: tuple[int, ...]) -> nn.Module:
    """A layer with a weight of this shape and a bias."""
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0])
    kinds = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    return kinds[len(shape)](shape[1], shape[0], shape[2:])


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Models of one to three layers of any kind, with any codes, packed in any encoding."""
    side = st.integers(1, 9)
    shapes = draw(st.lists(st.lists(side, min_size=2, max_size=5), min_size=1, max_size=3))
    seed = draw(st.integers(0, 2**31))
    zeros = draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    config = TernaryConfig(
        method=draw(st.sampled_from(["tga", "ttq", "twn"])),
        granularity=draw(st.sampled_from(["layer", "channel"])),
    )
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        *(layer(tuple(shape[:2] + [min(n, 3) for n in shape[2:]])) for shape in shapes)
    )
    codes = {}
    for name, module in model.named_children():
        shape = module.weight.shape
        sign = torch.randint(0, 2, (1, *shape), generator=generator) * 2 - 1
        value = sign * (torch.rand(1, *shape, generator=generator) >= zeros)
        groups = shape[0] if config.granularity == "channel" else 1
        pos, neg = torch.randn(2, 1, groups, generator=generator)
        neg = neg if get(config.method).scale_rows == 2 else pos
        codes[name] = TernaryCode(value.to(torch.int8), pos, neg)
    install_(model, config, packed=True, codes=codes)
    encoding = draw(st.sampled_from(packing.ENCODINGS))
    dense = {f"{name}.bias": module.bias.detach() for name, module in model.named_children()}
    facts = {"config": config, "encoding": encoding, "architecture": "test_resnet_tern"}
    data = file_bytes(*packed_tensors(codes, dense, **facts))
    return Sample(data, codes, dense, config, encoding)


def read(data: bytes) -> StoredWeights:
    """`read_weights` of these bytes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        path.write_bytes(data)
        return read_weights(path)


def assert_same(stored: StoredWeights, sample: Sample) -> None:
    """`stored` is what was put into the file."""
    assert stored.codes.keys() == sample.codes.keys()
    for name, code in sample.codes.items():
        ours = stored.codes[name]
        assert torch.equal(ours.codes, code.codes)
        assert torch.equal(ours.pos, code.pos) and torch.equal(ours.neg, code.neg)
        assert torch.equal(stored.dense[f"{name}.weight"], code.decode())
    weights = {f"{name}.weight" for name in sample.codes}
    assert stored.dense.keys() == sample.dense.keys() | weights
    assert all(torch.equal(stored.dense[name], value) for name, value in sample.dense.items())
    assert (stored.config, stored.encoding) == (sample.config, sample.encoding)
    assert stored.architecture == "test_resnet_tern"


def assert_refused_or_same(data: bytes, sample: Sample) -> ValueError | None:
    """The property itself; no other exception may escape."""
    try:
        stored = read(data)
    except ValueError as error:
        assert "\n" not in str(error) and "model.safetensors: " in str(error)
        return error
    assert_same(stored, sample)
    return None


@FAST
@given(samples())
def test_whole_files_read_exactly(sample: Sample) -> None:
    assert_same(read(sample.data), sample)


@settings(FAST, max_examples=300)
@given(samples(), st.data())
def test_damage(sample: Sample, draw: st.DataObject) -> None:
    """Bits flipped, bytes overwritten, the file cut, lengthened, or a piece taken out."""
    data = bytearray(sample.data)
    header = 8 + int.from_bytes(data[:8], "little")
    # The header is most of so small a file: ask for the tensors half of the time.
    first = draw.draw(st.sampled_from([0, header]), label="first")
    where = st.integers(first, len(data) - 1)
    kind = draw.draw(st.sampled_from(["flip", "overwrite", "cut", "append", "remove", "insert"]))
    at = draw.draw(where, label="at")
    some = st.binary(min_size=1, max_size=16)
    if kind == "flip":
        for place in [at, *draw.draw(st.lists(where, max_size=3))]:
            data[place] ^= 1 << draw.draw(st.integers(0, 7))
    elif kind == "overwrite":
        new = draw.draw(some)[: len(data) - at]
        data[at : at + len(new)] = new
    elif kind == "cut":
        del data[at:]
    elif kind == "append":
        data += draw.draw(some)
    elif kind == "remove":
        del data[at : at + draw.draw(st.integers(1, 64))]
    else:
        data[at:at] = draw.draw(some)
    error = assert_refused_or_same(bytes(data), sample)
    if bytes(data) != sample.data and kind in ("cut", "append", "remove", "insert"):
        assert error is not None


@FAST
@given(samples(), st.data())
def test_a_damaged_tensor_is_named(sample: Sample, draw: st.DataObject) -> None:
    data = bytearray(sample.data)
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start])
    entries.pop("__metadata__")
    held = {
        k: v["data_offsets"]
        for k, v in entries.items()
        if v["data_offsets"][1] > v["data_offsets"][0]
    }
    name = draw.draw(st.sampled_from(sorted(held)))
    at = draw.draw(st.integers(held[name][0], held[name][1] - 1))
    data[start + at] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=f"tensor {name} is damaged"):
        read(bytes(data))


@FAST
@given(samples(), st.data())
def test_a_header_of_other_tokens(sample: Sample, draw: st.DataObject) -> None:
    """Damage that stays valid JSON: safetensors' own names, types, shapes and offsets."""
    size = int.from_bytes(sample.data[:8], "little")
    header = json.loads(sample.data[8 : 8 + size])
    name = draw.draw(st.sampled_from(sorted(header)))
    entry = header[name]
    value = st.one_of(
        st.none(),
        st.integers(-2, 2**70),
        st.text(max_size=5),
        st.sampled_from(
            ["F16", "BF16", "I8", "BOOL", "F64", "F8_E5M2", "F8_E8M0", "F4", "C64", "U16"]
        ),
        st.lists(st.integers(-1, 2**63), max_size=3),
    )
    if draw.draw(st.booleans()):
        entry[draw.draw(st.sampled_from(sorted(entry)))] = draw.draw(value)
    elif draw.draw(st.booleans()):
        header[draw.draw(st.text(max_size=5))] = header.pop(name)
    else:
        del header[name]
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + sample.data[8 + size :]
    assert_refused_or_same(data, sample)


@settings(FAST, max_examples=100)
@given(st.binary(max_size=300))
def test_any_bytes_at_all(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        read(data)


@FAST
@given(st.data(), st.integers(1, 3), st.integers(0, 400), st.sampled_from(packing.ENCODINGS))
def test_any_bytes_as_codes(draw: st.DataObject, bases: int, count: int, encoding: str) -> None:
    """`decode` gives codes of which the bytes are the only encoding, or refuses."""
    size = bases * packing.packed_size(count, "2bit" if encoding == "zstd" else encoding)
    raw = draw.draw(
        st.binary(min_size=0, max_size=2 * size + 4) | st.binary(min_size=size, max_size=size)
    )
    data = torch.tensor(list(raw), dtype=torch.uint8)
    try:
        codes = packing.decode(data, encoding, bases, count)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert codes.shape == (bases, count)
    if encoding != "zstd":
        assert torch.equal(packing.encode(codes, encoding), data)
