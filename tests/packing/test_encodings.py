"""Codes and bytes: the documented layout, round trips, and what is refused."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
import zstandard
from torch import Tensor

from timm_ternary import packing
from timm_ternary.packing import encodings

BITS = {0: 0b00, 1: 0b01, -1: 0b10}


def random_codes(bases: int, count: int, *, zeros: float = 0.5, seed: int = 0) -> Tensor:
    """int8 ``(bases, count)``, a fraction `zeros` of them 0 and the signs alike."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(bases, count, generator=generator)
    signs = torch.where(torch.rand(bases, count, generator=generator) < 0.5, 1, -1)
    return torch.where(draw < zeros, 0, signs).to(torch.int8)


def reference(codes: Tensor, encoding: str) -> bytes:
    """The layout as packing/encodings.py documents it, one code at a time."""
    data = bytearray()
    for row in codes.tolist():
        if encoding == "2bit":
            for start in range(0, len(row), 4):
                four = row[start : start + 4]
                data.append(sum(BITS[code] << 2 * place for place, code in enumerate(four)))
        else:
            for start in range(0, len(row), 5):
                five = (row[start : start + 5] + [0] * 4)[:5]
                data.append(sum((code + 1) * 3**place for place, code in enumerate(five)))
    return bytes(data)


def as_bytes(data: Tensor) -> bytes:
    assert data.dtype == torch.uint8 and data.ndim == 1
    return data.numpy().tobytes()


def as_tensor(data: bytes) -> Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


@pytest.mark.parametrize("bases", [1, 2, 3])
@pytest.mark.parametrize("encoding", packing.ENCODINGS)
def test_round_trip_and_layout(encoding: str, bases: int) -> None:
    for count in [*range(42), 255, 256, 257, 1000, 4097]:
        codes = random_codes(bases, count, seed=count)
        before = codes.clone()
        data = packing.encode(codes, encoding)
        assert torch.equal(codes, before)
        plain = "2bit" if encoding == "zstd" else encoding
        stored = as_bytes(data)
        if encoding == "zstd":
            stored = zstandard.ZstdDecompressor().decompress(stored)
        assert stored == reference(codes, plain), count
        assert len(stored) == bases * packing.packed_size(count, plain)
        decoded = packing.decode(data, encoding, bases, count)
        assert decoded.dtype == torch.int8 and torch.equal(decoded, codes), count


@pytest.mark.parametrize("encoding", ["2bit", "base3"])
def test_round_trip_across_the_chunks_of_the_fast_path(encoding: str) -> None:
    codes = random_codes(2, 5 * encodings._CHUNK + 3)
    data = packing.encode(codes, encoding)
    assert torch.equal(packing.decode(data, encoding, 2, codes.shape[1]), codes)
    head = 5 * encodings._CHUNK // 20 * 20  # whole bytes of both encodings
    per_byte = packing.CODES_PER_BYTE[encoding]
    tail = reference(codes[:1, head:], encoding)
    size = packing.packed_size(codes.shape[1], encoding)
    assert as_bytes(data)[head // per_byte : size] == tail


def test_codes_that_do_not_lie_row_by_row() -> None:
    codes = random_codes(7, 3).T[:, ::2]
    assert not codes.is_contiguous()
    for encoding in packing.ENCODINGS:
        data = packing.encode(codes, encoding)
        assert torch.equal(packing.decode(data, encoding, 3, 4), codes)


def test_every_byte_of_either_encoding() -> None:
    for byte in range(256):
        data = as_tensor(bytes([byte]))
        pairs = [byte >> shift & 3 for shift in (0, 2, 4, 6)]
        if 3 in pairs:
            with pytest.raises(ValueError, match=f"invalid byte {byte} in 2bit"):
                packing.decode(data, "2bit", 1, 4)
        else:
            decoded = packing.decode(data, "2bit", 1, 4)[0].tolist()
            assert [BITS[code] for code in decoded] == pairs
        if byte > 242:
            with pytest.raises(ValueError, match=f"invalid byte {byte} in base3"):
                packing.decode(data, "base3", 1, 5)
        else:
            decoded = packing.decode(data, "base3", 1, 5)[0].tolist()
            assert sum((code + 1) * 3**i for i, code in enumerate(decoded)) == byte


@pytest.mark.parametrize("place", [0, encodings._CHUNK, 2 * encodings._CHUNK + 11])
def test_one_invalid_code_far_inside_is_found(place: int) -> None:
    data = torch.zeros(2 * encodings._CHUNK + 12, dtype=torch.uint8)
    data[place] = 0b00110000
    with pytest.raises(ValueError, match="invalid byte 48 in 2bit"):
        packing.decode(data, "2bit", 1, data.numel() * 4)
    data[place] = 243
    with pytest.raises(ValueError, match="invalid byte 243 in base3"):
        packing.decode(data, "base3", 1, data.numel() * 5)


@pytest.mark.parametrize("encoding", packing.ENCODINGS)
@pytest.mark.parametrize("value", [2, -2, 127, -128])
def test_codes_out_of_range(encoding: str, value: int) -> None:
    codes = random_codes(1, 9)
    codes[0, 4] = value
    with pytest.raises(ValueError, match=rf"codes must be -1, 0 or \+1, got .*{value}"):
        packing.encode(codes, encoding)


@pytest.mark.parametrize(
    "codes", [torch.zeros(1, 8), torch.zeros(8, dtype=torch.int8), torch.zeros(1, 8).long()]
)
def test_codes_of_another_dtype_or_shape(codes: Tensor) -> None:
    for encoding in packing.ENCODINGS:
        with pytest.raises(ValueError, match="codes must be int8"):
            packing.encode(codes, encoding)


@pytest.mark.parametrize("encoding", ["2bit", "base3"])
def test_wrong_sizes(encoding: str) -> None:
    data = packing.encode(random_codes(2, 23), encoding)
    for wrong in (data[:-1], data[:0], torch.cat([data, data[:1]])):
        with pytest.raises(ValueError, match=rf"2 x 23 codes take {data.numel()} bytes"):
            packing.decode(wrong, encoding, 2, 23)


@pytest.mark.parametrize("encoding", packing.ENCODINGS)
def test_wrong_dtype_or_dimensions(encoding: str) -> None:
    data = packing.encode(random_codes(1, 23), encoding)
    for wrong in (data.to(torch.int8), data.float(), data.view(1, -1)):
        with pytest.raises(ValueError, match="packed codes must be uint8 and 1-D"):
            packing.decode(wrong, encoding, 1, 23)


@pytest.mark.parametrize("encoding", packing.ENCODINGS)
def test_the_last_byte_must_be_filled_with_zeros(encoding: str) -> None:
    codes = torch.tensor([[1, -1, 0, 1, 1, 0, 1, 1]], dtype=torch.int8)
    for count in (6, 7):
        with pytest.raises(ValueError, match=f"codes beyond the last of {count} are not 0"):
            packing.decode(packing.encode(codes, encoding), encoding, 1, count)


def test_unknown_encoding_names_the_nearest() -> None:
    for call in (
        lambda: packing.encode(random_codes(1, 4), "2bits"),
        lambda: packing.decode(torch.zeros(1, dtype=torch.uint8), "2bits", 1, 4),
        lambda: packing.check_encoding("2bits"),
    ):
        with pytest.raises(ValueError, match=r"unknown encoding '2bits'; did you mean '2bit'\?"):
            call()


def test_detect_tells_what_decodes_to_the_same_codes() -> None:
    for count in range(2001):
        # Mostly zeros: Zstandard streams are then of any size, that of base3 or 2bit included.
        codes = random_codes(1, count, zeros=(0.3, 0.6, 0.95)[count % 3], seed=count)
        for encoding in packing.ENCODINGS:
            data = packing.encode_smallest(codes, encoding)
            assert data.numel() <= packing.packed_size(count)
            found = packing.detect(data, 1, count)
            assert found in (encoding, "2bit"), (count, encoding)
            assert torch.equal(packing.decode(data, found, 1, count), codes), (count, encoding)


def test_detect_with_several_bases_and_constant_codes() -> None:
    for count in [*range(1, 60), 4096]:
        for value in (-1, 0, 1):
            for bases in (1, 2, 3):
                codes = torch.full((bases, count), value, dtype=torch.int8)
                for encoding in packing.ENCODINGS:
                    data = packing.encode_smallest(codes, encoding)
                    found = packing.detect(data, bases, count)
                    assert torch.equal(packing.decode(data, found, bases, count), codes)


def test_detect_refuses_what_no_encoding_gives() -> None:
    data = packing.encode(random_codes(1, 100), "2bit")
    for wrong in (data[:-1], data[:0], data.to(torch.int8), data.view(1, -1), data.float()):
        with pytest.raises(ValueError, match=r"must be uint8 of 25 \(2bit\) or 20 \(base3\) bytes"):
            packing.detect(wrong, 1, 100)


class TestZstd:
    """Streams that are damaged, or forged."""

    count = 4000

    def stream(self) -> bytes:
        return as_bytes(packing.encode(random_codes(1, self.count), "zstd"))

    def refused(self, stream: bytes, match: str, count: int = count) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            packing.decode(as_tensor(stream), "zstd", 1, count)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("keep", [0, 1, 4, 5, 6, 20, 400, -1])
    def test_truncated(self, keep: int) -> None:
        self.refused(self.stream()[:keep], "damaged Zstandard stream")

    @pytest.mark.parametrize("tail", [b"\0", b"garbage", zstandard.compress(b"")])
    def test_trailing(self, tail: bytes) -> None:
        self.refused(self.stream() + tail, "damaged Zstandard stream .*data behind its end")

    def test_no_stream_at_all(self) -> None:
        self.refused(b"\0" * 1000, "damaged Zstandard stream")

    def test_bomb(self) -> None:
        bomb = zstandard.compress(bytes(200 << 20))
        assert len(bomb) < 100_000
        self.refused(bomb, "more than the 1000 bytes expected")

    def test_bomb_that_does_not_state_its_size(self) -> None:
        worker = zstandard.ZstdCompressor(write_content_size=False).compressobj()
        bomb = b"".join(worker.compress(bytes(1 << 20)) for _ in range(200)) + worker.flush()
        assert len(bomb) < 100_000
        self.refused(bomb, "no size stated")

    def test_bomb_of_a_frame_that_lies_about_its_size(self) -> None:
        honest = bytearray(zstandard.compress(bytes(1 << 20)))
        at = honest.index((1 << 20).to_bytes(4, "little"))
        honest[at : at + 4] = (1000).to_bytes(4, "little")
        self.refused(bytes(honest), "damaged Zstandard stream")

    def test_too_short_a_content(self) -> None:
        self.refused(zstandard.compress(bytes(999)), "holds 999 bytes, expected 1000")

    def test_invalid_code_inside(self) -> None:
        self.refused(zstandard.compress(b"\xff" * 1000), "invalid byte 255 in 2bit")

    def test_empty_layer(self) -> None:
        data = packing.encode(torch.zeros(2, 0, dtype=torch.int8), "zstd")
        assert packing.decode(data, "zstd", 2, 0).shape == (2, 0)

    def test_missing_library_says_what_to_type(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = packing.encode(random_codes(1, 100), "zstd")

        def absent(name: str, *rest: object) -> object:
            raise ImportError(name)

        monkeypatch.setattr(importlib, "import_module", absent)
        line = r'pip install -e "\.\[zstd\]"'
        with pytest.raises(ValueError, match=line):
            packing.encode(random_codes(1, 100), "zstd")
        with pytest.raises(ValueError, match=line):
            packing.decode(data, "zstd", 1, 100)
        packing.decode(packing.encode(random_codes(1, 100), "2bit"), "2bit", 1, 100)

    @pytest.mark.parametrize("zeros", [0.5, 0.6])
    def test_reaches_the_entropy_within_one_percent(self, zeros: float) -> None:
        codes = random_codes(1, 2_000_000, zeros=zeros)
        share = np.bincount(codes.numpy().ravel() + 1, minlength=3) / codes.numel()
        entropy = -(share * np.log2(share)).sum()
        bits = packing.encode(codes, "zstd").numel() * 8 / codes.numel()
        print(f"{zeros:.0%} zeros: {bits:.4f} bits a code, entropy {entropy:.4f}")
        assert entropy < bits <= 1.01 * entropy
