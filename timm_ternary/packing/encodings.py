"""Codes to bytes and back, bit-exact: ``2bit``, ``base3`` and ``zstd``.

======== ============ ============================================================================
encoding bits a code  bytes
======== ============ ============================================================================
2bit     2            4 codes a byte, lowest bits first: 00 = 0, 01 = +1, 10 = -1; 11 is invalid
base3    1.6          5 codes a byte, ``sum (c_i + 1) 3^i``; values above 242 are invalid
zstd     the entropy  the 2bit stream, compressed with Zstandard
======== ============ ============================================================================

Codes are taken in row-major order. Each base begins a new byte; the codes that fill its last byte
up are 0.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors.wording import extra, unknown

__all__ = [
    "ENCODINGS",
    "check_encoding",
    "decode",
    "detect",
    "encode",
    "encode_smallest",
    "pack_2bit",
    "packed_size",
    "unpack_2bit",
]

CODES_PER_BYTE = {"2bit": 4, "base3": 5}
ENCODINGS = ("2bit", "base3", "zstd")

# Bytes handled at once on a CPU: the temporaries stay in the cache and the extra memory small.
_CHUNK = 1 << 16
# Entropy coding does it all: 1.500 bits at 50 % zeros at levels 3, 9 and 19 (zstandard 0.25).
_ZSTD_LEVEL = 3
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

_BYTES = np.arange(256, dtype=np.int64)[:, None]
_PAIRS = (_BYTES >> np.array([0, 2, 4, 6])) & 3
_POWERS = np.array([1, 3, 9, 27, 81])
# One 32-bit word holds the four codes of a byte, so that one look-up decodes four codes.
_FOUR_CODES = np.array([0, 1, -1, 0], dtype=np.int8)[_PAIRS].copy().view(np.int32).ravel()
_FIVE_CODES = (_BYTES // _POWERS % 3 - 1).astype(np.int8)


def packed_size(count: int, encoding: str = "2bit") -> int:
    """Bytes that one base of `count` codes takes in ``2bit`` or ``base3``."""
    return -(-count // CODES_PER_BYTE[encoding])


def encode(codes: Tensor, encoding: str) -> Tensor:
    """Codes to bytes.

    Args:
        codes: int8, ``(bases, n)``, values -1, 0 and +1.
        encoding: One of `ENCODINGS`.

    Returns:
        uint8, 1-D, on the CPU for ``zstd``, else on the device of `codes`.

    Raises:
        ValueError: A code is out of range, the dtype or the number of dimensions is another, the
            encoding is unknown, or Zstandard is missing.
    """
    check_encoding(encoding)
    if codes.dtype != torch.int8 or codes.ndim != 2:
        raise ValueError(
            f"codes must be int8 of shape (bases, n), got {codes.dtype} {tuple(codes.shape)}"
        )
    if codes.numel() and not (-1 <= codes.min() and codes.max() <= 1):
        raise ValueError(
            f"codes must be -1, 0 or +1, got values from {codes.min():d} to {codes.max():d}"
        )
    if encoding == "base3":
        return _pack_base3(codes).flatten()
    packed = pack_2bit(codes).flatten()
    if encoding == "zstd":
        stream = _zstd().compress(packed.cpu().numpy().tobytes(), _ZSTD_LEVEL)
        return torch.frombuffer(bytearray(stream), dtype=torch.uint8)
    return packed


def decode(data: Tensor, encoding: str, bases: int, count: int) -> Tensor:
    """Bytes to codes; the inverse of `encode`.

    Args:
        data: uint8, 1-D.
        encoding: One of `ENCODINGS`.
        bases, count: Shape of the codes.

    Returns:
        int8, ``(bases, count)``.

    Raises:
        ValueError: The size is wrong, a byte is invalid, or the codes beyond `count` are not 0.
    """
    check_encoding(encoding)
    if data.dtype != torch.uint8 or data.ndim != 1:
        raise ValueError(
            f"packed codes must be uint8 and 1-D, got {data.dtype} {tuple(data.shape)}"
        )
    if encoding == "zstd":
        data, encoding = _decompress(data, bases * packed_size(count)), "2bit"
    size = packed_size(count, encoding)
    if data.numel() != bases * size:
        raise ValueError(
            f"{bases} x {count} codes take {bases * size} bytes in {encoding}, got {data.numel()}"
        )
    data = data.view(bases, size)
    if encoding == "2bit":
        _refuse_11(data)
        codes = unpack_2bit(data, size * 4)
    else:
        if data.numel() and int(data.max()) > 242:
            raise ValueError(f"invalid byte {int(data.max())} in base3 (at most 242)")
        codes = _unpack_base3(data)
    if codes[:, count:].any():
        raise ValueError(f"codes beyond the last of {count} are not 0")
    return codes[:, :count]


def detect(data: Tensor, bases: int, count: int) -> str:
    """The encoding of `data`, told from its size and first bytes; see `encode_smallest`.

    Raises:
        ValueError: No encoding has that size.
    """
    if data.dtype == torch.uint8 and data.ndim == 1:
        sizes = {bases * packed_size(count, name): name for name in ("base3", "2bit")}
        if data.numel() in sizes and bytes(data[:4].tolist()) != _ZSTD_MAGIC:
            return sizes[data.numel()]
        if bytes(data[:4].tolist()) == _ZSTD_MAGIC:
            return "zstd"
    expected = " or ".join(f"{bases * packed_size(count, e)} ({e})" for e in CODES_PER_BYTE)
    raise ValueError(
        f"{bases} x {count} codes must be uint8 of {expected} bytes or a Zstandard stream, "
        f"got {data.dtype} of shape {tuple(data.shape)}"
    )


def encode_smallest(codes: Tensor, encoding: str) -> Tensor:
    """`encode`, but in ``2bit`` where that takes no more bytes, as it does for a few codes.

    So the size and the first bytes tell the encoding: a 2bit stream cannot begin like a
    Zstandard one (11 is invalid), nor can base3 (253 is).
    """
    data = encode(codes, encoding)
    bases, count = codes.shape
    return data if data.numel() < bases * packed_size(count) else encode(codes, "2bit")


def check_encoding(encoding: str) -> None:
    """Raise a ValueError that names the nearest encoding unless `encoding` is one."""
    if encoding not in ENCODINGS:
        raise ValueError(unknown("encoding", encoding, ENCODINGS))


def pack_2bit(codes: Tensor) -> Tensor:
    """int8 codes ``(bases, n)`` to uint8 ``(bases, ceil(n / 4))``; values are not checked."""
    bases, count = codes.shape
    size = packed_size(count)
    codes = pad(codes, (0, size * 4 - count)) if count % 4 else codes.contiguous()
    # An empty tensor cannot be viewed in a wider dtype.
    words = codes.view(torch.int32).flatten() if size else codes.new_empty(0, dtype=torch.int32)
    packed = torch.empty(bases * size, dtype=torch.uint8, device=codes.device)
    for word, out in zip(*_chunks(words, packed), strict=True):
        bits = word & 0x03030303  # -1 is 0xFF, which leaves 11 ...
        bits ^= (bits >> 1) & 0x01010101  # ... and becomes 10
        bits *= 0x01041040  # gathers the four pairs in the highest byte (shifts by 24, 18, 12, 6)
        out.copy_((bits >> 24) & 0xFF)
    return packed.view(bases, size)


def unpack_2bit(packed: Tensor, count: int) -> Tensor:
    """uint8 ``(bases, ceil(n / 4))`` to int8 codes ``(bases, n)``; values are not checked."""
    bases, size = packed.shape
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        # No numpy in a graph. (is_compiling is true under torch.export too.)
        pairs = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], -1)
        codes = (pairs & 1).to(torch.int8) - (pairs >> 1).to(torch.int8)
        return codes.view(bases, size * 4)[:, :count]
    words = _look_up(_FOUR_CODES, packed.flatten())
    codes = words.view(torch.int8).view(bases, size * 4) if size else packed.to(torch.int8)
    return codes[:, :count]


def _pack_base3(codes: Tensor) -> Tensor:
    bases, count = codes.shape
    size = packed_size(count, "base3")
    trits = pad(codes, (0, size * 5 - count)).view(-1, 5)
    packed = torch.empty(bases * size, dtype=torch.uint8, device=codes.device)
    for trit, out in zip(*_chunks(trits, packed), strict=True):
        value = torch.full_like(out, int(_POWERS.sum()))
        for place, power in enumerate(_POWERS):
            value += trit[:, place].view(torch.uint8) * int(power)  # modulo 256, as -1 is 255
        out.copy_(value)
    return packed.view(bases, size)


def _unpack_base3(packed: Tensor) -> Tensor:
    bases, size = packed.shape
    return _look_up(_FIVE_CODES, packed.flatten()).view(bases, size * 5)


def _look_up(table: np.ndarray[Any, Any], index: Tensor) -> Tensor:
    """``table[index]`` for uint8 `index`, 1-D; on the device of `index`."""
    if index.device.type != "cpu":
        return torch.from_numpy(table).to(index.device)[index.int()]
    # numpy decodes 2.7 G codes/s on one core, 1.0 into memory of torch.empty, which (unlike
    # numpy.empty) asks for no huge pages; torch's index_select 1.0 (Zen 4, torch 2.15).
    source = index.numpy()
    result = np.empty((source.size, *table.shape[1:]), table.dtype)
    for start in range(0, source.size, _CHUNK):
        piece = slice(start, start + _CHUNK)
        np.take(table, source[piece], axis=0, out=result[piece], mode="clip")
    return torch.from_numpy(result)


def _chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Each tensor in pieces of `_CHUNK` rows, whole on devices other than the CPU."""
    rows = max(tensors[0].shape[0], 1)
    return [t.split(_CHUNK if t.device.type == "cpu" else rows) for t in tensors]


def _refuse_11(packed: Tensor) -> None:
    for byte in _chunks(packed.flatten())[0]:
        bad = byte & (byte >> 1) & 0x55
        if bad.any():
            first = int(byte[bad != 0][0])
            raise ValueError(f"invalid byte {first} in 2bit (the bit pattern 11 has no meaning)")


def _decompress(data: Tensor, size: int) -> Tensor:
    stream = data.cpu().numpy().tobytes()
    zstd = _zstd()
    try:
        plain = zstd.decompress(stream, size)
    except zstd.error as error:
        raise ValueError(f"damaged Zstandard stream ({error})") from None
    if len(plain) != size:
        raise ValueError(f"the Zstandard stream holds {len(plain)} bytes, expected {size}")
    return torch.frombuffer(bytearray(plain), dtype=torch.uint8) if size else data[:0]


class _Zstd:
    """The standard library's Zstandard (Python 3.14), or the package of that name."""

    def __init__(self, module: Any, *, standard: bool) -> None:
        self.module, self.standard = module, standard
        self.error: type[Exception] = module.ZstdError

    def compress(self, data: bytes, level: int) -> bytes:
        if self.standard:
            return bytes(self.module.compress(data, level))
        return bytes(self.module.ZstdCompressor(level=level).compress(data))

    def decompress(self, data: bytes, size: int) -> bytes:
        """At most ``size + 1`` bytes, so that a forged stream cannot fill the memory."""
        if self.standard:
            worker = self.module.ZstdDecompressor()
            plain = worker.decompress(data, max_length=size + 1)
            whole = worker.eof
        else:
            worker = self.module.ZstdDecompressor().decompressobj()
            # Ours always state their content size; one that does not could fill the memory.
            stated = self.module.frame_content_size(data)
            if stated < 0 or stated > size:
                raise self.error(f"more than the {size} bytes expected, or no size stated")
            plain = worker.decompress(data)
            whole = worker.eof
        if not whole or worker.unused_data:
            raise self.error("truncated, or data behind its end")
        return bytes(plain)


def _zstd() -> _Zstd:
    for name in ("compression.zstd", "zstandard"):
        try:
            return _Zstd(importlib.import_module(name), standard=name == "compression.zstd")
        except ImportError:
            continue
    raise ValueError(f"encoding 'zstd' needs a library; type: {extra('zstd')}")
