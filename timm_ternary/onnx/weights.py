"""Ternary weights in an ONNX graph: inputs that stand for them become codes and scales.

For each weight W the graph gets the nodes of ``W = sum_b scale_b * float(codes_b)``, on which
every runtime agrees and which onnxruntime computes once, at loading. DequantizeLinear would say
the same, but onnxruntime 1.31 decodes it anew at every run and, in front of a MatMul, rounds the
activations to 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from .. import packing
from ..code import TernaryCode, fold_batch_norm

__all__ = ["fold_batch_norms", "insert_codes"]


def insert_codes(model: Any, codes: Mapping[str, TernaryCode], kind: str) -> None:
    """Replace graph inputs by initializers and the nodes that decode them, in place.

    Args:
        model: An onnx.ModelProto.
        codes: By name of the input. Scales must be float32.
        kind: ``"int2"`` (4 codes a byte; opset 25 and IR 12 at least) or ``"int8"``.
    """
    graph = model.graph
    read = _readers(graph)
    nodes: list[Any] = []
    for name, code in codes.items():
        if name in read:  # not a layer that only training uses
            nodes += _decoder(graph, name, code, kind)
    nodes += graph.node
    inputs = [value for value in graph.input if value.name not in codes]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)


def fold_batch_norms(model: Any, codes: Mapping[str, TernaryCode]) -> dict[str, TernaryCode]:
    """Fold each BatchNormalization behind a ternary Conv into its scales and bias, in place.

    The arithmetic is that of `fold_batch_norm` in code.py. Left as it is: a normalization of
    anything else, and one whose Conv, or whose weight, has other readers.

    Args:
        model: An onnx.ModelProto in whose graph the weights are inputs.
        codes: By name of the input.

    Returns:
        The codes with their new scales.
    """
    graph = model.graph
    folded = dict(codes)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(graph)
    for conv in list(graph.node):
        if conv.op_type != "Conv" or conv.input[1] not in codes:
            continue
        weight, after = conv.input[1], readers.get(conv.output[0], [])
        if len(readers[weight]) != 1 or len(after) != 1 or after[0] is None:
            continue
        norm = after[0]
        parts = [*norm.input[1:], *conv.input[2:]]
        if norm.op_type != "BatchNormalization" or not all(part in constants for part in parts):
            continue
        # The norm's inputs are gamma, beta, mean and var; a bias of the Conv comes last.
        gamma, beta, mean, var, *own = (_array(constants[part]) for part in parts)
        folded[weight], bias = fold_batch_norm(
            codes[weight],
            gamma=gamma,
            beta=beta,
            mean=mean,
            var=var,
            eps=next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5),
            bias=own[0] if own else None,
        )
        name = f"{weight}.bias"
        graph.initializer.append(_tensor(name, bias.float().numpy()))
        del conv.input[2:]
        conv.input.append(name)
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    _drop_unread(graph)
    return folded


def _decoder(graph: Any, name: str, code: TernaryCode, kind: str) -> list[Any]:
    """The nodes whose last output is `name`; their constants go into `graph`."""
    from onnx import TensorProto, helper

    shape = (-1,) + (1,) * (len(code.shape) - 1) if code.granularity == "channel" else ()
    nodes: list[Any] = []
    terms = []
    for base, (codes, pos, neg) in enumerate(zip(code.codes, code.pos, code.neg, strict=True)):
        own = name if code.bases == 1 else f"{name}.{base}"
        graph.initializer.append(_code_tensor(f"{own}.codes", codes, kind))
        graph.initializer.append(_tensor(f"{own}.scale", pos.reshape(shape).numpy()))
        cast, scale = f"{own}.float", f"{own}.scale"
        nodes.append(helper.make_node("Cast", [f"{own}.codes"], [cast], to=TensorProto.FLOAT))
        if code.scale_rows == 2:
            graph.initializer.append(_tensor(f"{own}.scale_neg", neg.reshape(shape).numpy()))
            graph.initializer.append(_tensor(f"{own}.zero", np.zeros((), np.float32)))
            signs, scale = f"{own}.negative", f"{own}.scale_of_sign"
            nodes.append(helper.make_node("Less", [cast, f"{own}.zero"], [signs]))
            three = [signs, f"{own}.scale_neg", f"{own}.scale"]
            nodes.append(helper.make_node("Where", three, [scale]))
        terms.append(own if code.bases == 1 else f"{own}.term")
        nodes.append(helper.make_node("Mul", [cast, scale], [terms[-1]]))
    if code.bases > 1:
        nodes.append(helper.make_node("Sum", terms, [name]))
    return nodes


def _code_tensor(name: str, codes: torch.Tensor, kind: str) -> Any:
    from onnx import TensorProto

    if kind == "int8":
        return _tensor(name, codes.contiguous().numpy())
    packed = packing.pack_2bit(codes.reshape(1, -1)).flatten().numpy()
    # -1 is 10 in our 2bit and 11 in ONNX's two's complement; the rest is the same.
    data = packed | (packed & 0b10101010) >> 1
    return TensorProto(
        name=name, data_type=TensorProto.INT2, dims=codes.shape, raw_data=data.tobytes()
    )


def _tensor(name: str, array: np.ndarray[Any, Any]) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(array, name)


def _array(tensor: Any) -> torch.Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float64))


def _readers(graph: Any) -> dict[str, list[Any]]:
    """Nodes that read each value; None stands for what is no node of `graph` itself."""
    readers: dict[str, list[Any]] = {value.name: [None] for value in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
        for name in _read_inside(node):
            readers.setdefault(name, []).append(None)
    return readers


def _read_inside(node: Any) -> Iterator[str]:
    """What the bodies of `node` (If, Loop) read or return."""
    for attribute in node.attribute:
        for body in [attribute.g, *attribute.graphs]:
            yield from (value.name for value in body.output)
            for inner in body.node:
                yield from inner.input
                yield from _read_inside(inner)


def _drop_unread(graph: Any) -> None:
    readers = _readers(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in readers]
    del graph.initializer[:]
    graph.initializer.extend(kept)
