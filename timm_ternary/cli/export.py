"""export: a model as an ONNX file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .common import (
    Channels,
    Checkpoint,
    Classes,
    Json,
    Model,
    Ternary,
    app,
    load,
    load_ternary,
    out,
    print_json,
)

__all__ = ["export"]


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Argument(help="File to write, in .onnx.")],
    weights: Annotated[
        str, typer.Option(help="int2 (ONNX Runtime), int8 (others, e.g. OpenVINO) or float.")
    ] = "int2",
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels (default: the model's own).")
    ] = None,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    in_chans: Channels = None,
    ternary: Ternary = None,
    as_json: Json = False,
) -> None:
    """Write a model as an ONNX file. It is checked against torch in onnxruntime."""
    from ..onnx.export import RUNTIMES, check_request, export_onnx

    check_request(output, weights)  # before minutes of loading
    loader = load if weights == "float" else load_ternary
    network = loader(model, checkpoint, num_classes, in_chans, ternary, weights=True)
    result = export_onnx(network, output, weights, image_size=image_size)
    if as_json:
        print_json(asdict(result))
        return
    how = (
        "not run: no onnxruntime that knows such weights"
        if result.error is None
        else f"off torch by {result.error:.1e}"
    )
    out.print(
        f"{result.path}: {result.bytes:,} bytes, {result.weights}, opset {result.opset}, {how}",
        highlight=False,
        soft_wrap=True,
    )
    out.print(f"{result.weights}: {RUNTIMES[result.weights]}", highlight=False, soft_wrap=True)
