"""ONNX files: outputs as torch's in onnxruntime, what is in them, and what is refused."""

from __future__ import annotations

import copy
import importlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import TensorProto
from samples import config, contents, outputs, trained
from torch import Tensor, nn

from timm_ternary import pack_, ternarize_
from timm_ternary.code import TernaryCode
from timm_ternary.nn.convert import float_state, ternary_layers
from timm_ternary.nn.forms import layer_code
from timm_ternary.nn.trainable import latent_weight
from timm_ternary.onnx import export
from timm_ternary.onnx.export import (
    TOLERANCE,
    WEIGHTS,
    check_request,
    export_onnx,
    runtime_knows,
)
from timm_ternary.onnx.weights import insert_codes

pytestmark = [
    pytest.mark.canary,
    pytest.mark.skipif(
        not runtime_knows("int2"), reason=f"onnxruntime {onnxruntime.__version__} has no INT2"
    ),
]

SMALL = "resnet8_cifar_tern"
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "int2": (SMALL, "int2", {}),
    "int8": (SMALL, "int8", {}),
    "float": (SMALL, "float", {}),
    "two scales a channel": (SMALL, "int2", {"ternary": config("ttq", "channel")}),
    "bases and float layers": (
        SMALL,
        "int2",
        {"ternary": config("rel", exclude=("first", "last"))},
    ),
    "resnet": ("test_resnet_tern", "int2", {}),
    "vit int2": ("test_vit_tern", "int2", {"ternary": "ttq"}),
    "vit int8": ("test_vit_tern", "int8", {}),
    "vit float": ("test_vit_tern", "float", {}),
    "mobilenet": ("mobilenetv3_small_050_tern", "int2", {}),
    "convnext": ("test_convnext_tern", "int2", {}),
}

SLOW = ("vit int8", "vit float")
"""How weights are stored is the small model's to show; these show it once more."""


def draw(network: Any, batch: int) -> Tensor:
    size = network.pretrained_cfg["input_size"]
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(7))


def onnx_outputs(path: Path, images: Tensor) -> np.ndarray[Any, Any]:
    """Of onnxruntime with its default options."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(["logits"], {"pixel_values": images.numpy()})[0]
    return found


def assert_same(path: Path, network: nn.Module, images: Tensor) -> None:
    want = outputs(network, images).numpy()
    found = onnx_outputs(path, images)
    assert found.shape == want.shape
    assert np.abs(found - want).max() <= 1e-4 * np.abs(want).max()


def assert_codes(proto: onnx.ModelProto, network: nn.Module, kind: str) -> None:
    """Every ternary weight is there as codes, with its shape, and none as floats too."""
    dtype = TensorProto.INT2 if kind == "int2" else TensorProto.INT8
    held = [tuple(t.dims) for t in proto.graph.initializer if t.data_type == dtype]
    layers = ternary_layers(network).values()
    want = [tuple(layer.weight.shape) for layer in layers for _ in range(layer_code(layer).bases)]
    assert Counter(held) == Counter(want)
    floats = [t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT]
    kept = max((p.numel() for p in float_state(network).values()), default=0)
    assert all(np.prod(tensor.dims) <= kept for tensor in floats)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in CASES],
)
def test_outputs_and_contents(case: str, tmp_path: Path) -> None:
    name, kind, kwargs = CASES[case]
    network = trained(name, **kwargs)
    path = tmp_path / "model.onnx"
    result = export_onnx(network, path, kind)
    assert result.bytes == path.stat().st_size
    assert result.error is not None and result.error <= TOLERANCE
    for batch in (1, 4):
        assert_same(path, network, draw(network, batch))
    proto = onnx.load(path)
    assert (proto.opset_import[0].version, proto.ir_version) == WEIGHTS[kind]
    assert [value.name for value in proto.graph.input] == ["pixel_values"]
    if kind != "float":
        assert_codes(proto, network, kind)
    if "vit" not in name and "convnext" not in name:
        assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}


class Twice(nn.Module):
    """A layer under two names, called twice, with a normalization behind each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.again = nn.Conv2d(3, 3, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x))
        return self.norm2(self.again(x)).mean((2, 3))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    model = ternarize_(Twice().eval())
    with torch.no_grad():
        model.norm1.weight.add_(torch.rand(3))
    return model


def test_the_model_is_not_changed(network: nn.Module, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    export_onnx(network, tmp_path / "a.onnx", image_size=8)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_packed_model_gives_the_same_file(network: nn.Module, tmp_path: Path) -> None:
    export_onnx(network, tmp_path / "a.onnx", image_size=8)
    export_onnx(pack_(copy.deepcopy(network)), tmp_path / "b.onnx", image_size=8)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_what_the_file_says(tmp_path: Path) -> None:
    network: Any = trained(SMALL)
    export_onnx(network, tmp_path / "a.onnx", image_size=24)
    proto = onnx.load(tmp_path / "a.onnx")
    held = {entry.key: entry.value for entry in proto.metadata_props}
    assert held["architecture"] == SMALL
    assert json.loads(held["ternary"])["method"] == "tga"
    assert json.loads(held["label_names"]) == ["0", "1", "2", "3", "4"]
    assert json.loads(held["input_size"]) == [3, 24, 24]
    assert json.loads(held["mean"]) == list(network.pretrained_cfg["mean"])
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, 24, 24]
    # torch's exporter notes the source files of the machine it ran on.
    assert b"site-packages" not in (tmp_path / "a.onnx").read_bytes()


def test_a_head_and_a_stem_that_were_replaced_by_hand(tmp_path: Path) -> None:
    """The file says what its graph takes and gives, not what the model was built with."""
    model = trained("test_resnet_tern")
    model.pretrained_cfg["label_names"] = list("abcde")
    model.fc = nn.Linear(model.num_features, 3)
    first = model.conv1[0]
    model.conv1[0] = nn.Conv2d(1, first.out_channels, 3, stride=2, padding=1, bias=False)
    found = export_onnx(model.eval(), tmp_path / "x.onnx")
    assert found.error is not None and found.error <= TOLERANCE
    said = {
        entry.key: json.loads(entry.value)
        for entry in onnx.load(found.path).metadata_props
        if entry.key != "architecture"
    }
    assert said["input_size"][0] == len(said["mean"]) == len(said["std"]) == 1
    assert said["label_names"] == ["0", "1", "2"]


def test_images_of_another_size_on_a_fixed_grid(tmp_path: Path) -> None:
    network = trained("test_vit_tern")
    export_onnx(network, tmp_path / "a.onnx", image_size=96)
    network.set_input_size(img_size=96)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    assert_same(tmp_path / "a.onnx", network, torch.randn(2, 3, 96, 96, generator=generator))


def test_a_layer_that_is_called_twice(network: nn.Module, tmp_path: Path) -> None:
    export_onnx(network, tmp_path / "a.onnx", image_size=8)
    assert_same(tmp_path / "a.onnx", network, torch.randn(2, 3, 8, 8))
    assert_codes(onnx.load(tmp_path / "a.onnx"), network, "int2")


def test_wrong_outputs_are_not_written(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"older")

    def mirrored(proto: Any, codes: dict[str, TernaryCode], kind: str) -> None:
        codes = {n: TernaryCode(-c.codes, c.pos, c.neg) for n, c in codes.items()}
        insert_codes(proto, codes, kind)

    monkeypatch.setattr(export, "insert_codes", mirrored)
    with pytest.raises(ValueError, match=r"outputs differ from torch's by .* nothing is written"):
        export_onnx(network, path, image_size=8)
    assert contents(tmp_path) == {"a.onnx": b"older"}
    monkeypatch.undo()
    export_onnx(network, path, image_size=8)  # and a right one takes its place
    assert list(contents(tmp_path)) == ["a.onnx"] and path.read_bytes() != b"older"


def test_logits_that_are_not_finite_are_not_written(network: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        network.get_parameter("norm2.bias").fill_(torch.nan)
    with pytest.raises(ValueError, match="outputs differ"):
        export_onnx(network, tmp_path / "a.onnx", image_size=8)
    assert not contents(tmp_path)


def test_a_graph_that_onnx_or_onnxruntime_refuses(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown_operator(proto: Any, *rest: Any) -> None:
        insert_codes(proto, *rest)
        proto.graph.node[0].op_type = "NoSuchOperator"

    with monkeypatch.context() as patch:
        patch.setattr(export, "insert_codes", unknown_operator)
        with pytest.raises(ValueError, match=r"onnx refuses the .*NoSuchOperator"):
            export_onnx(network, tmp_path / "a.onnx", image_size=8)

    def refuse(*_: Any, **__: Any) -> None:
        raise onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented("no INT2\nhere")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ValueError, match=r"onnxruntime .* cannot load the file: no INT2 here"):
        export_onnx(network, tmp_path / "a.onnx", "int8", image_size=8)
    assert not contents(tmp_path)
    # Without INT2 at all, the file is not the fault: it is written, and said not to have been run.
    assert not runtime_knows("int2")
    assert export_onnx(network, tmp_path / "a.onnx", "int2", image_size=8).error is None


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x.mean((2, 3)))
        return x if x.sum() > 0 else -x


def test_a_model_that_torch_cannot_export(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torch cannot export Branches: ") as caught:
        export_onnx(ternarize_(Branches()), tmp_path / "a.onnx", image_size=8)
    assert "\n" not in str(caught.value) and not contents(tmp_path)


def test_bad_requests(tmp_path: Path) -> None:
    (tmp_path / "directory.onnx").mkdir()
    for name, weights, line in (
        ("a.onnx", "int4", r"unknown kind of weights 'int4'; did you mean 'int.'\?"),
        ("a.safetensors", "int2", "ends in .onnx"),
        ("no/a.onnx", "int2", "there is no directory '.*no'"),
        ("directory.onnx", "int2", "is a directory; name a file in it"),
    ):
        with pytest.raises(ValueError, match=line):
            check_request(tmp_path / name, weights)


def test_float_models_have_float_files(tmp_path: Path) -> None:
    network = timm.create_model("resnet8_cifar").eval()
    with pytest.raises(ValueError, match=r"the model is float, .*--weights float"):
        export_onnx(network, tmp_path / "a.onnx")
    assert not contents(tmp_path)
    export_onnx(network, tmp_path / "a.onnx", "float")
    assert_same(tmp_path / "a.onnx", network, draw(network, 2))


def test_models_that_do_not_fit(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(ValueError, match="does not take 3x97x97 images: Input height"):
        export_onnx(trained("test_vit_tern"), path, image_size=97)
    lists = timm.create_model("test_resnet_tern", features_only=True).eval()
    with pytest.raises(ValueError, match="returns list; only models that return one tensor"):
        export_onnx(lists, path)
    with torch.no_grad():
        latent_weight(network.get_submodule("first"))[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer 'first' holds weights .* not finite"):
        export_onnx(network, path, image_size=8)
    assert not contents(tmp_path)


def test_larger_than_a_file_may_be(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_LIMIT", 600)
    with pytest.raises(ValueError, match="bytes of float weights; an ONNX file holds 600"):
        export_onnx(network, tmp_path / "a.onnx", "float", image_size=8)
    export_onnx(network, tmp_path / "a.onnx", "int2", image_size=8)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a package absent."""
    real = importlib.import_module

    def remove(package: str) -> None:
        def absent(name: str, *rest: Any) -> Any:
            if name == package:
                raise ImportError(name)
            return real(name, *rest)

        monkeypatch.setattr(importlib, "import_module", absent)

    return remove


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_package_says_what_to_type(
    package: str, without: Callable[[str], None], tmp_path: Path
) -> None:
    without(package)
    with pytest.raises(ValueError, match=rf'needs {package}; type: pip install -e "\.\[onnx\]"'):
        check_request(tmp_path / "a.onnx", "int2")


def test_without_onnxruntime_nothing_is_run(
    network: nn.Module, without: Callable[[str], None], tmp_path: Path
) -> None:
    without("onnxruntime")
    assert export_onnx(network, tmp_path / "a.onnx", image_size=8).error is None
