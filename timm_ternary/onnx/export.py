"""ONNX files of models, checked against torch before they take their name.

torch's exporter makes the graph, with the ternary weights as inputs, so that no optimization
mixes them with anything; `weights` then puts codes and scales in their place.
"""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.func import functional_call

from ..checkpoint.rebuild import images_of
from ..code import TernaryCode
from ..errors.wording import extra, flat, unknown
from ..evaluation import label_names
from ..files import atomic_write
from ..nn.convert import checked_code, config_of, ternary_layers
from ..nn.forms import make_plain
from ..version import __version__
from .weights import fold_batch_norms, insert_codes

__all__ = ["RUNTIMES", "WEIGHTS", "OnnxFile", "check_request", "export_onnx", "runtime_knows"]

WEIGHTS = {"int2": (25, 12), "int8": (18, 8), "float": (18, 8)}
"""Opset and IR version of each kind of weights: the lowest that has its types.

onnxruntime 1.31 has INT2 at opset 25 and 26 only; 1.23 has none.
"""

RUNTIMES = {
    "int2": "for ONNX Runtime 1.31 or later; OpenVINO and others refuse INT2: type --weights int8",
    "int8": "for ONNX Runtime, OpenVINO and every other runtime of opset 18",
    "float": "for ONNX Runtime, OpenVINO and every other runtime of opset 18",
}
"""Who loads each kind (OpenVINO 2026.4 was tried: it loads int8 and float, and refuses int2)."""

TOLERANCE = 1e-4
"""Largest difference of the logits from torch's, relative to the largest logit."""

_LIMIT = 2**31 - 1  # of a protobuf file
_INPUT, _OUTPUT = "pixel_values", "logits"


@dataclass(frozen=True)
class OnnxFile:
    """Result of `export_onnx`.

    Attributes:
        path: The file.
        weights: Kind of the weights: int2, int8 or float.
        opset: Version of the operators.
        bytes: Size of the file.
        error: Largest difference of onnxruntime's logits from torch's, relative to the largest
            logit; None without an onnxruntime that knows such weights.
    """

    path: str
    weights: str
    opset: int
    bytes: int
    error: float | None


def check_request(path: str | Path, weights: str) -> None:
    """What can be refused before a model is loaded.

    Raises:
        ValueError: Unknown kind of weights, a path that is no file name in ``.onnx`` in an
            existing directory, or a missing package. One line.
    """
    if weights not in WEIGHTS:
        raise ValueError(unknown("kind of weights", weights, WEIGHTS))
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"{str(path)!r}: the name of an ONNX file ends in .onnx")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a directory; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"{str(path)!r}: there is no directory {str(path.parent)!r}")
    for package in ("onnx", "onnxscript"):
        if _module(package) is None:
            raise ValueError(f"export needs {package}; type: {extra('onnx')}")


def export_onnx(
    model: nn.Module, path: str | Path, weights: str = "int2", *, image_size: int | None = None
) -> OnnxFile:
    """Write `model` as an ONNX file: images ``(batch, channels, height, width)`` to logits.

    The batch is dynamic, the size of the images is fixed. The file is checked by onnx and, where an
    onnxruntime is installed that knows such weights, run on batches of 1 and 3 random images.

    Args:
        model: A ternary model, trainable or packed, or with ``weights="float"`` any; it is not
            changed.
        path: File to write, or to replace at once.
        weights: ``"int2"``, ``"int8"`` (for runtimes without INT2) or ``"float"``.
        image_size: Height and width in pixels (default: that of the model's configuration).

    Raises:
        ValueError: As `check_request`; the model is float and `weights` is not; torch cannot run
            the model on such images or export it; the outputs differ from torch's by more than
            `TOLERANCE`; the file would be larger than 2 GB. Nothing is written then.
        OSError: The file cannot be written. An older one stays whole.
    """
    check_request(path, weights)
    if weights != "float" and config_of(model) is None:
        raise ValueError(
            f"the model is float, its weights cannot be {weights}; "
            "type: weights='float' (--weights float)"
        )
    data = resolve_data_config({}, pretrained_cfg=images_of(model), model=model)
    channels, *sides = data["input_size"]
    size = (channels, *(sides if image_size is None else (image_size, image_size)))
    network = copy.deepcopy(model).float().cpu().eval()
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    expected = _run(network, images, resize=image_size is not None)
    codes = {
        f"{name}.weight": checked_code(name, layer)
        for name, layer in ternary_layers(network).items()
    }
    _make_plain(network, codes)
    kept = {} if weights == "float" else codes
    _check_size(network, kept, weights)
    proto = _graph(network, images[:2], kept, WEIGHTS[weights][0])
    insert_codes(proto, fold_batch_norms(proto, kept), weights)
    data = {**data, "input_size": size, "classes": expected.shape[-1]}
    _describe(proto, model, data, WEIGHTS[weights][1])
    content = _checked(proto)
    error = _compare(content, images, expected) if runtime_knows(weights) else None
    path = Path(path)
    with atomic_write(path, lambda temporary: temporary.write_bytes(content)):
        pass
    return OnnxFile(str(path), weights, WEIGHTS[weights][0], len(content), error)


class _Call(nn.Module):
    """A model whose ternary weights are arguments."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, images: Tensor, weights: list[Tensor]) -> Any:
        return functional_call(self.model, dict(zip(self.names, weights, strict=True)), (images,))


@torch.no_grad()
def _run(network: nn.Module, images: Tensor, *, resize: bool) -> Tensor:
    """The logits; with `resize`, timm's models with a fixed grid are first set to these images."""
    adapt = getattr(network, "set_input_size", None)
    try:
        if resize and callable(adapt):
            adapt(img_size=tuple(images.shape[2:]))
        logits: Any = network(images)
    except (AssertionError, RuntimeError) as error:
        # What timm and torch raise for images that do not fit.
        size = "x".join(map(str, images.shape[1:]))
        raise ValueError(
            f"{type(network).__name__} does not take {size} images: {_line(error)}"
        ) from error
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{type(network).__name__} returns {type(logits).__name__}; only models that return "
            "one tensor can be exported"
        )
    return logits


def _make_plain(network: nn.Module, codes: Mapping[str, TernaryCode]) -> None:
    """Replace ternary layers by their host layers with the decoded weights, in place."""
    for name, layer in ternary_layers(network).items():
        make_plain(layer)
        layer.weight = nn.Parameter(codes[f"{name}.weight"].decode(), requires_grad=False)


def _check_size(network: nn.Module, codes: Mapping[str, TernaryCode], weights: str) -> None:
    total = sum(tensor.nbytes for tensor in network.state_dict().values())
    bits = {"int2": 2, "int8": 8, "float": 32}[weights]
    for code in codes.values():
        total += code.codes.numel() * bits // 8 - code.codes[0].numel() * 4
    if total > _LIMIT:
        raise ValueError(f"{total:,} bytes of {weights} weights; an ONNX file holds {_LIMIT:,}")


def _graph(network: nn.Module, images: Tensor, codes: Mapping[str, TernaryCode], opset: int) -> Any:
    """An onnx.ModelProto whose inputs are the images and the weights that `codes` names."""
    parameters = dict(network.named_parameters())
    weights = [parameters[name] for name in codes]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own working
            program: Any = torch.onnx.export(
                _Call(network, list(codes)).eval(),
                (images, weights),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[_INPUT, *codes],
                output_names=[_OUTPUT],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC}, [None] * len(weights)),
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(
            f"torch cannot export {type(network).__name__}: {_line(error.__cause__ or error)}"
        ) from error
    return program.model_proto


def _describe(proto: Any, model: nn.Module, data: Mapping[str, Any], ir_version: int) -> None:
    """Say what the file holds, and remove what the exporter says about this machine."""
    from onnx import helper

    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]  # shapes in the exporter's symbols; runtimes infer them
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    graph.name = str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", "model"))
    proto.ir_version = ir_version
    proto.producer_name, proto.producer_version = "timm_ternary", __version__
    names = list(label_names(model))
    if len(names) != data["classes"]:  # of a head that was replaced since
        names = [str(index) for index in range(data["classes"])]
    properties = {"architecture": graph.name, "label_names": json.dumps(names)}
    if (config := config_of(model)) is not None:
        properties["ternary"] = json.dumps(config.to_dict())
    for key in ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"):
        properties[key] = json.dumps(data[key])
    helper.set_model_props(proto, properties)


def _checked(proto: Any) -> bytes:
    """The content of the file, after onnx's checks of every node, type and shape."""
    import onnx

    content: bytes = proto.SerializeToString()
    errors = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
    try:
        onnx.checker.check_model(content, full_check=True)
    except errors as error:
        raise ValueError(f"onnx refuses the exported graph: {_line(error)}") from error
    return content


def runtime_knows(weights: str) -> bool:
    """Whether an onnxruntime is installed that loads such weights: the last one for Python 3.10,
    1.23, has no INT2.

    Args:
        weights: A kind of `WEIGHTS`.
    """
    if _module("onnxruntime") is None:
        return False
    if weights != "int2":
        return True
    from onnx import TensorProto, helper

    codes = TensorProto(name="codes", data_type=TensorProto.INT2, dims=[4], raw_data=b"\x01")
    nodes = [helper.make_node("Cast", ["codes"], ["values"], to=TensorProto.FLOAT)]
    values = helper.make_tensor_value_info("values", TensorProto.FLOAT, [4])
    opset, ir_version = WEIGHTS[weights]
    proto = helper.make_model(
        helper.make_graph(nodes, "probe", [], [values], [codes]),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
    )
    try:
        _session(proto.SerializeToString())
    except _refusals():
        return False
    return True


def _session(content: bytes) -> Any:
    runtime: Any = _module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _refusals() -> tuple[type[Exception], ...]:
    """What onnxruntime raises for a file that it does not load."""
    state: Any = _module("onnxruntime.capi.onnxruntime_pybind11_state")
    return (state.Fail, state.InvalidGraph, state.InvalidArgument, state.NotImplemented)


def _compare(content: bytes, images: Tensor, expected: Tensor) -> float:
    """Largest relative difference of onnxruntime's outputs, on a batch of 1 and on the whole."""
    runtime: Any = _module("onnxruntime")
    try:
        session = _session(content)
    except _refusals() as error:
        raise ValueError(
            f"onnxruntime {runtime.__version__} cannot load the file: {_line(error)}"
        ) from error
    errors = []
    for count in (1, len(images)):
        logits, want = session.run(None, {_INPUT: images[:count].numpy()})[0], expected[:count]
        scale = max(float(want.abs().max()), torch.finfo(want.dtype).tiny)
        errors.append(float(np.abs(logits - want.numpy()).max()) / scale)
    worst = float(np.max(errors))
    if not worst <= TOLERANCE:  # NaN is refused too
        raise ValueError(
            f"onnxruntime's outputs differ from torch's by {worst:.1e} of the largest, "
            f"more than {TOLERANCE:.0e}; nothing is written"
        )
    return worst


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _line(error: BaseException) -> str:
    return (flat(error) or type(error).__name__)[:500]
