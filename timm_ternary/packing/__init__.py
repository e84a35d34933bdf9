"""Ternary codes as bytes, and back: ``packing.encode``, ``packing.decode`` and their parts."""

from .encodings import (
    CODES_PER_BYTE,
    ENCODINGS,
    check_encoding,
    decode,
    detect,
    encode,
    encode_smallest,
    pack_2bit,
    packed_size,
    unpack_2bit,
)

__all__ = [
    "CODES_PER_BYTE",
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
