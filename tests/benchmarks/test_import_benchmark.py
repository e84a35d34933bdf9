"""What the import costs; run with -m benchmark."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

CODE = """
import time, timm
start = time.perf_counter()
import timm_ternary
print(time.perf_counter() - start)
"""


@pytest.mark.benchmark
def test_import_adds_at_most_half_a_second() -> None:
    """The limit, after ``import timm``; the median of five processes."""
    seconds = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
    median = statistics.median(seconds)
    print(f"import timm_ternary adds {median:.3f} s ({min(seconds):.3f} to {max(seconds):.3f})")
    assert median <= 0.5
