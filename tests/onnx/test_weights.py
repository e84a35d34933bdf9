"""Codes in an ONNX graph: their bytes, what decodes them, and what normalizations are folded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from timm_ternary.code import TernaryCode
from timm_ternary.onnx.export import runtime_knows
from timm_ternary.onnx.weights import fold_batch_norms, insert_codes

pytestmark = pytest.mark.skipif(
    not runtime_knows("int2"), reason=f"onnxruntime {onnxruntime.__version__} has no INT2"
)

OUT, IN = 5, 3


def code(bases: int = 1, *, channel: bool = False, signs: int = 1) -> TernaryCode:
    """A 5x3x3x3 weight, whose 135 codes do not fill their last byte."""
    generator = torch.Generator().manual_seed(bases + 2 * channel + 4 * signs)
    codes = torch.randint(-1, 2, (bases, OUT, IN, 3, 3), generator=generator, dtype=torch.int8)
    pos = torch.rand(bases, OUT if channel else 1, generator=generator) + 0.1
    neg = pos if signs == 1 else pos + torch.rand(pos.shape, generator=generator)
    return TernaryCode(codes, pos, neg)


def norm_parameters() -> list[TensorProto]:
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(OUT) for name in ("gamma", "beta", "mean", "bias")}
    values["var"] = rng.random(OUT) + 0.5
    assert (values["gamma"] < 0).any()  # such a channel changes the sign of its scales
    return [numpy_helper.from_array(v.astype(np.float32), name) for name, v in values.items()]


def graph(*nodes: tuple[str, str, str], outputs: str = "y") -> onnx.ModelProto:
    """A model of x, W and nodes given as ``(type, inputs, output)``."""
    made = [helper.make_node(kind, reads.split(), [out]) for kind, reads, out in nodes]
    shapes = {"x": ["batch", IN, 8, 8], "W": [OUT, IN, 3, 3]}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    results = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4) for n in outputs.split()
    ]
    body = helper.make_graph(made, "test", inputs, results, norm_parameters())
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 25)], ir_version=12)


def run(model: onnx.ModelProto, **feeds: Tensor) -> list[np.ndarray]:
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in feeds.items()})


def pixels() -> Tensor:
    return torch.randn(2, IN, 8, 8, generator=torch.Generator().manual_seed(0))


def types(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("kind", ["int2", "int8"])
@pytest.mark.parametrize("signs", [1, 2])
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("bases", [1, 3])
def test_the_graph_decodes_the_weight(bases: int, channel: bool, signs: int, kind: str) -> None:
    given = code(bases, channel=channel, signs=signs)
    model = graph(("Identity", "W", "y"))
    insert_codes(model, {"W": given}, kind)
    assert [value.name for value in model.graph.input] == ["x"]
    onnx.checker.check_model(model, full_check=True)
    (found,) = run(model, x=pixels())
    assert np.array_equal(found, given.decode().numpy())


def test_int2_has_the_bytes_that_onnx_documents() -> None:
    given, model = code(2), graph(("Identity", "W", "y"))
    insert_codes(model, {"W": given}, "int2")
    tensors = [t for t in model.graph.initializer if t.data_type == TensorProto.INT2]
    assert [len(tensor.raw_data) for tensor in tensors] == [34, 34]  # 135 codes, 4 a byte
    for tensor, codes in zip(tensors, given.codes, strict=True):
        assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes.numpy())


def test_a_weight_that_nothing_reads_is_left_out() -> None:
    model = graph(("Identity", "x", "y"))
    insert_codes(model, {"W": code()}, "int2")
    assert [value.name for value in model.graph.input] == ["x"]
    assert types(model) == {"Identity": 1}


@pytest.mark.parametrize("signs", [1, 2])
@pytest.mark.parametrize("conv", ["x W", "x W bias"])
def test_a_normalization_is_folded(conv: str, signs: int) -> None:
    model = graph(("Conv", conv, "c"), ("BatchNormalization", "c gamma beta mean var", "y"))
    given = code(signs=signs)
    (want,) = run(model, x=pixels(), W=given.decode())
    folded = fold_batch_norms(model, {"W": given})
    assert types(model) == {"Conv": 1}
    assert [tensor.name for tensor in model.graph.initializer] == ["W.bias"]
    assert torch.equal(folded["W"].codes, given.codes)
    assert folded["W"].pos.shape == (1, OUT)
    assert given.pos.shape == (1, 1)  # the argument is as before
    insert_codes(model, folded, "int2")
    (found,) = run(model, x=pixels())
    assert np.abs(found - want).max() <= 1e-5 * np.abs(want).max()


NORM = ("BatchNormalization", "c gamma beta mean var", "y")


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([("Conv", "x W", "c"), NORM], "y c"),
        ([("Conv", "x W", "c"), NORM, ("Relu", "c", "z")], "y z"),
        ([("Conv", "x W", "c"), NORM, ("Conv", "x W", "z")], "y z"),
        ([("Abs", "W", "V"), ("Conv", "x V", "c"), NORM], "y"),
        ([("Conv", "x W", "a"), ("Relu", "a", "c"), NORM], "y"),
    ],
    ids=["output", "read twice", "shared weight", "changed weight", "not behind it"],
)
def test_a_normalization_is_left(nodes: list[tuple[str, str, str]], outputs: str) -> None:
    model = graph(*nodes, outputs=outputs)
    given = code()
    want = run(model, x=pixels(), W=given.decode())
    folded = fold_batch_norms(model, {"W": given})
    assert folded == {"W": given} and types(model)["BatchNormalization"] == 1
    insert_codes(model, folded, "int2")
    for found, expected in zip(run(model, x=pixels()), want, strict=True):
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
