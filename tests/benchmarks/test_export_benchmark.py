"""Models of real sizes as ONNX: outputs, bytes and time; run with -m benchmark -s."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch

from timm_ternary.checkpoint.directory import save_packed
from timm_ternary.checkpoint.weights_file import WEIGHTS_NAME
from timm_ternary.onnx.export import TOLERANCE, export_onnx

MODELS = [
    "resnet18_tern",
    "mobilenetv3_large_100_tern",
    "vit_small_patch16_224_tern",
    "convnext_atto_tern",
]
KINDS = ("int2", "int8", "float")
RUNS = 15


def milliseconds(paths: list[str], batch: int) -> list[float]:
    """Median time of a run of each file on one thread, the files in turn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for path in paths
    ]
    size = sessions[0].get_inputs()[0].shape[1:]
    images = np.random.default_rng(0).standard_normal((batch, *size)).astype(np.float32)
    seconds: list[list[float]] = [[] for _ in paths]
    for _ in range(RUNS):
        for session, taken in zip(sessions, seconds, strict=True):
            start = time.perf_counter()
            session.run(None, {"pixel_values": images})
            taken.append(time.perf_counter() - start)
    return [1000 * statistics.median(taken) for taken in seconds]


@pytest.mark.benchmark
@pytest.mark.parametrize("name", MODELS)
def test_real_sizes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    packed = (save_packed(model, tmp_path / "packed") / WEIGHTS_NAME).stat().st_size
    files = {kind: export_onnx(model, tmp_path / f"{kind}.onnx", kind) for kind in KINDS}
    times = milliseconds([file.path for file in files.values()], batch=1)
    print(f"\n{name}: packed safetensors {packed:,} bytes")
    for file, taken in zip(files.values(), times, strict=True):
        assert file.error is not None and file.error <= TOLERANCE
        print(
            f"  {file.weights:5} {file.bytes:>11,} bytes ({file.bytes / packed:.3f} of packed), "
            f"error {file.error:.1e}, {taken:.1f} ms an image"
        )
    assert files["int2"].bytes <= 1.1 * packed
