"""What is saved is what timm builds from it: recorded where it can be, else refused."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from samples import contents, image, outputs, trained
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from timm_ternary import TernaryConfig, pack_, ternarize_
from timm_ternary.checkpoint import load_packed, save_float, save_packed
from timm_ternary.checkpoint.config_json import read_config
from timm_ternary.nn.convert import config_of, plain_, ternary_layers


def save(model: nn.Module, directory: Path, **kwargs: Any) -> Path:
    """As what it is."""
    return (save_float if config_of(model) is None else save_packed)(model, directory, **kwargs)


def back(directory: Path, **kwargs: Any) -> nn.Module:
    """The stock timm call."""
    return timm.create_model(f"local-dir:{directory}", pretrained=True, **kwargs).eval()


def refused(model: nn.Module, directory: Path, match: str) -> None:
    """Not saved, in one line, and nothing is changed: not even an older version."""
    save(trained("test_resnet"), directory)
    before = contents(directory)
    with pytest.raises(ValueError, match=match) as caught:
        save(model, directory)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert contents(directory) == before


NAMES = pytest.mark.parametrize("name", ["test_resnet", "test_resnet_tern"])


class TestRecorded:
    """Changed by hand, but so that timm can build it again."""

    @NAMES
    def test_a_head_of_other_classes(self, name: str, tmp_path: Path) -> None:
        model = trained(name)
        model.pretrained_cfg["label_names"] = list("abcde")
        model.fc = nn.Linear(model.num_features, 3)
        assert model.num_classes == 5
        loaded = back(save(model, tmp_path))
        assert torch.equal(outputs(loaded), outputs(model)) and loaded.num_classes == 3
        config = read_config(tmp_path / "config.json")
        assert config.num_classes == config.pretrained_cfg["num_classes"] == 3
        assert not config.label_names  # those of the other head
        assert model.num_classes == 5

    @NAMES
    def test_no_head(self, name: str, tmp_path: Path) -> None:
        model = trained(name)
        model.fc = nn.Identity()
        assert torch.equal(outputs(back(save(model, tmp_path))), outputs(model))

    @NAMES
    @pytest.mark.parametrize("channels", [1, 5])
    def test_a_stem_of_other_channels(self, channels: int, name: str, tmp_path: Path) -> None:
        model = trained(name)
        first = model.conv1[0]
        model.conv1[0] = nn.Conv2d(channels, first.out_channels, 3, stride=2, padding=1, bias=False)
        loaded = back(save(model, tmp_path))
        x = image(channels)
        assert torch.equal(outputs(loaded, x), outputs(model, x))
        cfg = read_config(tmp_path / "config.json").pretrained_cfg
        assert cfg["input_size"][0] == len(cfg["mean"]) == len(cfg["std"]) == channels

    def test_a_stem_that_moves_pixels_to_channels(self, tmp_path: Path) -> None:
        model = trained("test_byobnet", in_chans=1)
        assert torch.equal(outputs(back(save(model, tmp_path)), image(1)), outputs(model, image(1)))

    @NAMES
    def test_arguments_of_timm(self, name: str, tmp_path: Path) -> None:
        kwargs: dict[str, Any] = {"in_chans": 2, "global_pool": "max", "drop_rate": 0.3}
        model = trained(name, **kwargs, act_layer="gelu")
        for directory in ("a", "b"):  # and once more, of what was loaded
            loaded = back(save(model, tmp_path / directory))
            assert torch.equal(outputs(loaded, image(2)), outputs(model, image(2)))
            model = loaded

    def test_an_argument_that_is_no_json(self, tmp_path: Path) -> None:
        model = trained("test_resnet", act_layer=timm.layers.GELU)
        refused(model, tmp_path, "'act_layer' is not serializable; provide a model_args")
        save(model, tmp_path, model_args={"act_layer": "gelu"})
        assert torch.equal(outputs(back(tmp_path)), outputs(model))

    @pytest.mark.parametrize("name", ["test_vit", "test_vit_tern"])
    def test_another_image_size(self, name: str, tmp_path: Path) -> None:
        model = trained(name, img_size=96)
        x = image(3, 96)
        assert torch.equal(outputs(back(save(model, tmp_path)), x), outputs(model, x))
        model.set_input_size(img_size=64)
        x = image(3, 64)
        assert torch.equal(outputs(back(save(model, tmp_path)), x), outputs(model, x))

    def test_a_twin_whose_layers_are_plain_is_float(self, tmp_path: Path) -> None:
        model = plain_(pack_(trained(ternary="ttq")))
        loaded = back(save(model, tmp_path))
        assert config_of(loaded) is None
        assert torch.equal(outputs(loaded), outputs(model))

    @NAMES
    def test_a_compiled_model(self, name: str, tmp_path: Path) -> None:
        model = trained(name)
        compiled = torch.compile(model, backend="eager")
        assert torch.equal(outputs(back(save(compiled, tmp_path))), outputs(model))

    @pytest.mark.parametrize("ternary", [False, True])
    def test_fused_where_timm_has_an_argument_for_it(
        self, ternary: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        torch.manual_seed(0)
        model = timm.create_model("lcnetv2_small", num_classes=4).eval()
        if ternary:
            ternarize_(model, "twn")
        fused = reparameterize_model(model)
        loaded = back(save(fused, tmp_path))
        x = image(3, 64)
        assert torch.equal(outputs(loaded, x), outputs(fused, x))
        assert set(ternary_layers(loaded)) == set(ternary_layers(fused))
        if ternary:
            assert "dw_conv" in caplog.text and "fused branches: a sum of ternary" in caplog.text


def gelu(model: Any) -> None:
    """Another activation, at one place, behind a batch norm that is zero in a fresh model."""
    model.layer1[0].act1 = nn.GELU()


def eps(model: Any) -> None:
    model.layer1[0].bn1.eps = 1e-3


def dilation(model: Any) -> None:
    model.layer3[0].conv2.dilation = model.layer3[0].conv2.padding = (2, 2)


def forward(model: Any) -> None:
    real = model.forward
    model.forward = lambda x: 2 * real(x)


def pooling(model: Any) -> None:
    model.global_pool.pool = nn.AdaptiveMaxPool2d(1)


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "activation": (gelu, r"other outputs: layer1\.0\.act1 is GELU\(.*timm builds ReLU.*model_args"),
    "epsilon": (eps, r"other outputs: layer1\.0\.bn1 is .*eps=0\.001"),
    "dilation": (dilation, r"other outputs: layer3\.0\.conv2 is Conv2d\(.*dilation"),
    "forward": (forward, "its forward is not that of the architecture"),
    "pooling": (pooling, r"other outputs: global_pool\.pool is AdaptiveMaxPool2d"),
    "sequential head": (
        lambda m: setattr(m, "fc", nn.Sequential(nn.Dropout(0.1), nn.Linear(m.num_features, 3))),
        r"fc\.weight is missing.*type model\.reset_classifier\(NUM_CLASSES\)",
    ),
    "head without bias": (
        lambda m: setattr(m, "fc", nn.Linear(m.num_features, 3, bias=False)),
        r"fc\.bias is missing.*reset_classifier",
    ),
    "one layer more": (
        lambda m: m.layer1.append(deepcopy(m.layer1[0])),
        r"layer1\.1\.\S+ is too many.*register_model",
    ),
    "one layer less": (lambda m: setattr(m, "layer4", nn.Identity()), r"layer4\.\S+ is missing"),
    "wider": (
        lambda m: setattr(m, "fc", nn.Linear(2 * m.num_features, 5)),
        r"fc\.weight has the shape \(5, 192\), the model needs \(5, 96\)",
    ),
}


class TestRefused:
    """What timm would build otherwise is not saved."""

    @NAMES
    @pytest.mark.parametrize("what", CHANGES)
    def test_a_model_changed_by_hand(self, what: str, name: str, tmp_path: Path) -> None:
        change, match = CHANGES[what]
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=5).eval()
        change(model)
        refused(model, tmp_path, match)

    @pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "fastvit_t8"])
    @pytest.mark.parametrize("ternary", [False, True])
    def test_fused(self, ternary: bool, name: str, tmp_path: Path) -> None:
        model = timm.create_model(name, num_classes=4).eval()
        if ternary:
            ternarize_(model, "twn")
        model = reparameterize_model(model)
        refused(model, tmp_path, "if it is fused .*save it before, and fuse what is loaded")

    def test_a_ternary_model_is_not_saved_as_float(self, tmp_path: Path) -> None:
        for model in (trained(), pack_(trained())):
            with pytest.raises(ValueError, match=r"the model is ternary; type: .*save_packed"):
                save_float(model, tmp_path / "x")
        assert not (tmp_path / "x").exists()

    def test_a_description_that_is_no_json(self, tmp_path: Path) -> None:
        model = trained()
        model.pretrained_cfg["note"] = object()
        refused(model, tmp_path, r"config\.json cannot say what the model is: .*not JSON")

    def test_two_methods(self, tmp_path: Path) -> None:
        model = timm.create_model("test_resnet", num_classes=5)
        ternarize_(model.layer1, "tga")
        ternarize_(model.layer2, "ttq")
        refused(model, tmp_path, "layer 'layer2.0.conv1' is made ternary by .*a file holds one")

    def test_layers_made_ternary_by_their_part(self, tmp_path: Path) -> None:
        """`exclude` of a part means other layers of the whole."""
        model = timm.create_model("test_resnet", num_classes=5)
        ternarize_(model.layer1, TernaryConfig("twn", exclude=("first",)))
        loaded = back(save(model, tmp_path))
        assert set(ternary_layers(loaded)) == set(ternary_layers(model))
        assert torch.equal(outputs(loaded), outputs(model))
        model = timm.create_model("test_resnet", num_classes=5)
        ternarize_(model.conv1, TernaryConfig("twn", exclude=("last",)))
        ternarize_(model.fc, TernaryConfig("twn", exclude=("0",)))
        model.fc.ternary_config = TernaryConfig("twn", exclude=("last",))
        refused(model, tmp_path, "layer 'fc' is ternary, and would be float")


class TestIsQuiet:
    """The comparison leaves no trace in the model, nor in anybody's random numbers."""

    def state(self, model: nn.Module) -> list[Any]:
        tensors = [t.clone() for t in model.state_dict().values()]
        return [
            *tensors,
            *(m.training for m in model.modules()),
            *(p.grad for p in model.parameters()),
        ]

    @NAMES
    def test_nothing_changes(self, name: str, tmp_path: Path) -> None:
        model = trained(name).train()
        model.bn1.eval()  # as those who freeze one
        model(image()).sum().backward()
        before, drawn = self.state(model), (torch.get_rng_state(), random.getstate())
        calls: list[Tensor] = []
        hook = model.register_forward_hook(lambda *_: calls.append(torch.ones(1)))
        save(model, tmp_path)
        hook.remove()
        after = self.state(model)
        for a, b in zip(before, after, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a is b
        assert torch.equal(torch.get_rng_state(), drawn[0]) and random.getstate() == drawn[1]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("name", ["test_resnet_tern", "test_vit3_tern", "test_vit"])
    def test_other_precisions(self, name: str, dtype: torch.dtype, tmp_path: Path) -> None:
        save(trained(name).to(dtype), tmp_path)
        assert back(tmp_path).num_classes == 5

    def test_buffers_that_no_file_holds(self, tmp_path: Path) -> None:
        """Rotary embeddings, rounded with the model, are none of another model."""
        model = trained("vit_tiny_patch16_dinov3_qkvb_tern", depth=1, img_size=64)
        model = model.to(torch.bfloat16)
        assert torch.isfinite(outputs(back(save(model, tmp_path)), image(3, 64))).all()

    @NAMES
    def test_channels_last(self, name: str, tmp_path: Path) -> None:
        model = trained(name).to(memory_format=torch.channels_last)
        loaded = back(save(model, tmp_path))
        assert torch.allclose(outputs(loaded), outputs(model), atol=1e-4)

    @NAMES
    def test_a_model_that_accelerate_has_prepared(self, name: str, tmp_path: Path) -> None:
        """Mixed precision wraps ``forward``; the model that is saved has none of it."""
        from accelerate import Accelerator

        model = trained(name)
        expected = outputs(model)
        prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
        assert not torch.equal(outputs(prepared).float(), expected)
        save(prepared, tmp_path)
        assert torch.equal(outputs(back(tmp_path)), expected)

    def test_where_the_default_device_and_dtype_are_others(self, tmp_path: Path) -> None:
        model = trained()
        with torch.device("meta"):
            save(model, tmp_path)
        assert torch.equal(outputs(load_packed(tmp_path)), outputs(model))

    def test_it_is_said_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        model = trained(ternary=TernaryConfig("twn", exclude=("nothing*",)))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            save(model, tmp_path)
        assert len(caplog.records) <= 2

    @pytest.mark.gpu
    @NAMES
    def test_on_a_gpu(self, name: str, tmp_path: Path) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            model = trained(name).to("cuda", dtype)
            before = torch.cuda.get_rng_state()
            save(model, tmp_path)
            assert torch.equal(torch.cuda.get_rng_state(), before)
            assert back(tmp_path).num_classes == 5
