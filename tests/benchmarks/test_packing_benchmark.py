"""Speed and memory of 2bit on one core, 100 M codes; run with -m benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

COUNT = 100_000_000
# In a process of its own, on one core.
CODE = """
import json, sys, time
import torch
from timm_ternary import packing

def high():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

torch.set_num_threads(1)
work, encoding, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
codes = torch.empty(1, count, dtype=torch.int8)
for piece in codes.split(1 << 20, 1):  # in pieces, so that making the input leaves no peak
    piece.copy_(torch.randint(-1, 2, piece.shape, dtype=torch.int8))
packing.decode(packing.encode(codes[:, :1000], encoding), encoding, 1, 1000)  # warm up
if work == "decode":
    data = packing.encode(codes, encoding)
    want, codes = codes[:, :1000].clone(), None
# A fresh high-water mark: what is alive now. (getrusage keeps that of the whole process.)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before, best = high(), float("inf")
for repeat in range(5):
    result = None
    start = time.perf_counter()
    if work == "encode":
        result = packing.encode(codes, encoding)
    else:
        result = packing.decode(data, encoding, 1, count)
    best = min(best, time.perf_counter() - start)
if work == "decode":
    assert torch.equal(result[:, :1000], want)
print(json.dumps({"rate": count / best / 1e9, "bytes": (high() - before) / count}))
"""


def measure(work: str, encoding: str) -> dict[str, float]:
    """G codes/s (best of five) and peak extra bytes a code, the result included."""
    command = [sys.executable, "-c", CODE, work, encoding, str(COUNT)]
    one_core = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=one_core)
    assert done.returncode == 0, done.stderr
    values: dict[str, float] = json.loads(done.stdout)
    print(
        f"{work} {encoding}: {values['rate']:.2f} G codes/s, "
        f"{values['bytes']:.2f} bytes a code at the peak"
    )
    return values


@pytest.mark.benchmark
@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is reset through /proc")
@pytest.mark.parametrize(("work", "rate"), [("decode", 0.8), ("encode", 0.3)])
def test_2bit(work: str, rate: float) -> None:
    """The limits."""
    values = measure(work, "2bit")
    assert values["rate"] >= rate
    assert values["bytes"] <= 2


@pytest.mark.benchmark
@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is reset through /proc")
@pytest.mark.parametrize("encoding", ["base3", "zstd"])
@pytest.mark.parametrize("work", ["decode", "encode"])
def test_other_encodings(work: str, encoding: str) -> None:
    """No limit is set for their speed; the memory is bounded all the same."""
    assert measure(work, encoding)["bytes"] <= 4
