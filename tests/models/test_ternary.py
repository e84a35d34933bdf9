"""Every `_tern` name, and what `timm.create_model` takes with it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._registry import get_arch_pretrained_cfgs
from torch import Tensor, nn

import timm_ternary
from timm_ternary import TernaryConfig, register_ternary
from timm_ternary.checkpoint.directory import save_packed
from timm_ternary.checkpoint.weights_file import WEIGHTS_NAME
from timm_ternary.nn.convert import config_of, is_packed, pack_, ternary_layers

pytestmark = pytest.mark.canary

BASE, NAME = "test_resnet", "test_resnet_tern"
OURS = ("timm.", "timm_ternary.")


def bases() -> list[str]:
    """Float names of timm and of this package; other tests may register their own."""
    return [
        name
        for name in timm.list_models(exclude_filters="*_tern")
        if timm.model_entrypoint(name).__module__.startswith(OURS)
    ]


def image(channels: int = 3) -> Tensor:
    """A batch of two small images."""
    return torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def outputs(model: nn.Module, channels: int = 3) -> Tensor:
    """Logits in evaluation mode."""
    return model.eval()(image(channels))


@pytest.fixture(scope="module")
def base() -> nn.Module:
    """A float model for 5 classes with statistics of its own."""
    torch.manual_seed(0)
    model = timm.create_model(BASE, num_classes=5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * torch.randn_like(buffer))
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(base: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` as timm's own checkpoints are: one float file."""
    path = tmp_path_factory.mktemp("float") / "float.safetensors"
    safetensors.torch.save_file(base.state_dict(), path)
    return path


def overlay(checkpoint: Path) -> dict[str, Any]:
    """Stands for a download: the pretrained file of a tag."""
    return {"file": str(checkpoint), "num_classes": 5}


class TestNames:
    """timm's registry."""

    def test_every_model_has_its_twin(self) -> None:
        names = bases()
        assert len(names) > 1300
        twins = set(timm.list_models("*_tern"))
        assert {f"{name}_tern" for name in names} <= twins
        assert all(timm.is_model(twin) for twin in twins)
        assert not any(name.endswith("_tern_tern") for name in twins)

    def test_every_tag_passes_through(self) -> None:
        tags = timm.list_models("*", include_tags=True)
        ours = {t for t in tags if t.partition(".")[0].endswith("_tern")}
        known = set(bases())
        theirs = {t for t in set(tags) - ours if t.partition(".")[0] in known}
        twins = {"{}_tern{}{}".format(*t.partition(".")) for t in theirs}
        assert len(theirs) > 1800 and twins <= ours
        float_pretrained = set(timm.list_pretrained(exclude_filters="*_tern*"))
        ours_pretrained = set(timm.list_pretrained("*_tern*"))
        assert {
            "{}_tern{}{}".format(*t.partition(".")) for t in float_pretrained & theirs
        } == ours_pretrained & twins

    def test_one_module_and_filters(self) -> None:
        twins = timm.list_models("*_tern")
        assert set(timm.list_models(module="ternary")) == set(twins)
        assert "ternary" in timm.list_modules()
        assert not any(name.endswith("_tern") for name in bases())

    def test_configurations_are_those_of_the_base(self) -> None:
        for name in bases()[::7]:
            for tag, theirs in get_arch_pretrained_cfgs(name).items():
                ours = timm.get_pretrained_cfg("{}_tern{}{}".format(*tag.partition(".")))
                assert ours is not None, tag
                assert replace(ours, architecture=theirs.architecture) == theirs

    def test_questions_about_one_name(self) -> None:
        assert timm.is_model("resnet18_tern") and timm.is_model_pretrained("resnet18_tern")
        assert not timm.is_model("resnet_18_tern")
        assert not timm.is_model_pretrained("resnet20_cifar_tern")
        ours, theirs = map(timm.get_pretrained_cfg, ("resnet18_tern", "resnet18"))
        assert ours.hf_hub_id == theirs.hf_hub_id == "timm/resnet18.a1_in1k"
        assert timm.get_pretrained_cfg("resnet18_tern.fb_swsl_ig1b_ft_in1k").license
        entry = timm.model_entrypoint("resnet18_tern")
        assert (entry.__name__, entry.__qualname__) == ("resnet18_tern",) * 2
        assert "Ternary resnet18" in entry.__doc__

    def test_unknown_tag(self) -> None:
        with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(no_such\)"):
            timm.create_model(f"{NAME}.no_such")

    def test_our_own_bases_have_twins(self) -> None:
        for name in ("resnet20_cifar", "resnet32_cifar", "resnet44_cifar", "resnet56_cifar"):
            assert timm.is_model(f"{name}_tern")
        assert timm.is_model("alexnet_bn_tern")
        model = timm.create_model("resnet20_cifar_tern", num_classes=10)
        assert len(ternary_layers(model)) == 20 and outputs(model).shape == (2, 10)


class TestTernaryArgument:
    """`ternary=` and `packed=`."""

    def test_default(self) -> None:
        model = timm.create_model(NAME)
        assert config_of(model) == TernaryConfig() and not is_packed(model)
        assert model.pretrained_cfg["architecture"] == NAME
        assert model.default_cfg is model.pretrained_cfg

    @pytest.mark.parametrize(
        "given",
        ["ttq", {"method": "ttq"}, TernaryConfig(method="ttq")],
        ids=["name", "dict", "config"],
    )
    def test_what_users_type(self, given: Any) -> None:
        assert config_of(timm.create_model(NAME, ternary=given)).method == "ttq"

    def test_options_reach_the_layers(self) -> None:
        given = {"method": "ttq", "granularity": "channel", "options": {"sparsity": 0.75}}
        model = timm.create_model(NAME, ternary=given, packed=True)
        assert timm_ternary.summarize(model).zeros == pytest.approx(0.75, abs=0.05)
        assert model.layer1[0].conv1.weight_scale.shape == (1, 2, 32)

    @pytest.mark.parametrize("packed", [True, "2bit", "base3", "zstd"])
    def test_packed(self, packed: bool | str, checkpoint: Path) -> None:
        source = {"pretrained_cfg_overlay": overlay(checkpoint), "pretrained": True}
        model = timm.create_model(NAME, packed=packed, **source)
        assert is_packed(model)
        assert torch.equal(outputs(model), outputs(timm.create_model(NAME, **source)))

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"ternary": "tgaa"}, "unknown method 'tgaa'; did you mean 'tga'"),
            ({"ternary": {"metod": "tga"}}, "'metod'; did you mean 'method'"),
            (
                {"ternary": {"options": {"init_factr": 1}}},
                "unknown option of method 'tga' 'init_factr'; did you mean 'init_factor'",
            ),
            ({"ternary": {"granularity": "chanel"}}, "did you mean 'channel'"),
            ({"ternary": 3}, "ternary must be a method's name"),
            ({"packed": "2bits"}, "unknown encoding '2bits'; did you mean '2bit'"),
        ],
    )
    def test_errors_name_the_nearest(self, kwargs: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            timm.create_model(NAME, **kwargs)
        assert "\n" not in str(caught.value)


class TestPretrained:
    """From a float checkpoint: step 1 of a method."""

    def create(self, checkpoint: Path, **kwargs: Any) -> nn.Module:
        source = overlay(checkpoint)
        return timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=source, **kwargs)

    def latent(self, model: nn.Module, name: str) -> Tensor:
        return model.get_submodule(name).parametrizations.weight.original

    def test_latent_weights(self, base: nn.Module, checkpoint: Path) -> None:
        model = self.create(checkpoint)
        for name, layer in ternary_layers(model).items():
            assert torch.equal(self.latent(model, name), base.get_submodule(name).weight)
            assert layer.weight.unique().numel() <= 3
        assert torch.equal(model.bn1.running_mean, base.bn1.running_mean)

    def test_is_told_in_the_log(self, checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", "timm_ternary"):
            self.create(checkpoint)
        assert f"{NAME} starts from the float checkpoint of {BASE}" in caplog.text

    def test_with_a_tag(self, base: nn.Module, checkpoint: Path) -> None:
        model = timm.create_model(
            f"{NAME}.r160_in1k", pretrained=True, pretrained_cfg_overlay=overlay(checkpoint)
        )
        assert model.pretrained_cfg["tag"] == "r160_in1k"
        assert torch.equal(self.latent(model, "fc"), base.fc.weight)

    def test_classes_and_channels(self, base: nn.Module, checkpoint: Path) -> None:
        model = self.create(checkpoint, num_classes=7, in_chans=1)
        theirs = timm.create_model(
            BASE,
            pretrained=True,
            pretrained_cfg_overlay=overlay(checkpoint),
            num_classes=7,
            in_chans=1,
        )
        assert model.num_classes == 7 and outputs(model, 1).shape == (2, 7)
        for name in ("conv1.0", "layer4.0.conv1"):
            assert torch.equal(self.latent(model, name), theirs.get_submodule(name).weight)

    @pytest.mark.parametrize("packed", [True, False])
    def test_features_only(self, checkpoint: Path, packed: bool) -> None:
        features = self.create(checkpoint, features_only=True, out_indices=(1, 4), packed=packed)
        assert features.feature_info.channels() == [32, 96]
        with torch.no_grad():
            found = features.eval()(image())
            expected = self.create(checkpoint).eval().forward_features(image())
        assert len(found) == 2 and torch.equal(found[-1], expected)

    def test_configuration_keeps_no_tensors(self, checkpoint: Path) -> None:
        model = self.create(checkpoint)
        assert "state_dict" not in model.pretrained_cfg
        assert model.pretrained_cfg["file"] == str(checkpoint)
        assert model.pretrained_cfg["architecture"] == NAME


class TestOtherArguments:
    """All of timm's."""

    def test_model_arguments(self) -> None:
        model = timm.create_model(
            NAME, drop_rate=0.25, drop_path_rate=0.1, global_pool="max", act_layer="gelu"
        )
        assert model.drop_rate == 0.25 and model.global_pool.pool_type == "max"
        assert any(type(m).__name__ == "DropPath" for m in model.modules())
        assert any("GELU" in type(m).__name__ for m in model.modules())
        vit = timm.create_model("test_vit_tern", img_size=64, num_classes=3)
        assert vit.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)

    def test_unknown_model_argument(self) -> None:
        with pytest.raises(TypeError, match="no_such_argument"):
            timm.create_model(NAME, no_such_argument=1)

    def test_overlay(self) -> None:
        model = timm.create_model(NAME, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
        assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
        assert timm.data.resolve_data_config(model=model)["mean"] == (0.1, 0.2, 0.3)

    def test_device_and_dtype(self) -> None:
        model = timm.create_model(NAME, dtype=torch.bfloat16, device="cpu").eval()
        assert model.fc.weight.dtype == model.bn1.weight.dtype == torch.bfloat16
        assert model(image().bfloat16()).dtype == torch.bfloat16
        meta = timm.create_model(NAME, device="meta", packed=True)
        assert all(tensor.is_meta for tensor in meta.state_dict().values())

    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize("form", ["float", "trained", "packed"])
    def test_checkpoint_path(
        self, form: str, packed: bool, base: nn.Module, checkpoint: Path, tmp_path: Path
    ) -> None:
        source = {"pretrained": True, "pretrained_cfg_overlay": overlay(checkpoint)}
        expected = timm.create_model(NAME, ternary="ttq", **source)
        path = checkpoint
        if form == "trained":
            with torch.no_grad():
                for layer in ternary_layers(expected).values():
                    layer.parametrizations.weight[0].scale_pos.mul_(1.5)
            path = tmp_path / "trained.safetensors"
            safetensors.torch.save_file(expected.state_dict(), path)
        elif form == "packed":
            path = save_packed(expected, tmp_path) / WEIGHTS_NAME
        model = timm.create_model(
            NAME, num_classes=5, checkpoint_path=str(path), packed=packed, ternary="ttq"
        )
        assert is_packed(model) is packed
        assert torch.equal(outputs(model), outputs(expected))

    def test_packed_file_as_pretrained(self, checkpoint: Path, tmp_path: Path) -> None:
        source = {"pretrained": True, "pretrained_cfg_overlay": overlay(checkpoint)}
        expected = timm.create_model(NAME, ternary="twn", **source)
        path = save_packed(expected, tmp_path, "base3") / WEIGHTS_NAME
        for packed in (True, False):
            model = timm.create_model(
                NAME, pretrained=True, pretrained_cfg_overlay=overlay(path), packed=packed
            )
            assert config_of(model).method == "twn"
            assert torch.equal(outputs(model), outputs(expected))

    @pytest.mark.parametrize("kwargs", [{"scriptable": True}, {"exportable": True}])
    def test_scriptable_and_exportable(self, kwargs: dict[str, bool]) -> None:
        model = timm.create_model("test_efficientnet_tern", **kwargs).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(pack_(model), image())
        assert torch.equal(traced(image()), outputs(model))


class TinyNet(nn.Module):
    """A user's own model."""

    def __init__(self, num_classes: int = 4, in_chans: int = 3, width: int = 8, **_: Any) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = width
        self.stem = nn.Conv2d(in_chans, width, 3)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.fc(self.stem(x).mean((2, 3)))


default_cfgs = generate_default_cfgs(
    {
        "users_tiny_net.mine": {
            "num_classes": 4,
            "input_size": (3, 16, 16),
            "first_conv": "stem",
            "classifier": "fc",
        }
    }
)


def users_tiny_net(pretrained: bool = False, **kwargs: Any) -> TinyNet:
    """timm's way to write an entry point."""
    return build_model_with_cfg(TinyNet, "users_tiny_net", pretrained, **kwargs)


class TestRegisterTernary:
    """Models of one's own."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def registered(cls) -> Iterator[str]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            register_model(users_tiny_net)
        yield register_ternary("users_tiny_net")
        registry = sys.modules["timm.models._registry"]
        for name in ("users_tiny_net", "users_tiny_net_tern"):
            for table in (registry._model_entrypoints, registry._model_to_module):
                table.pop(name, None)
            for names in registry._module_to_models.values():
                names.discard(name)

    def test_name(self) -> None:
        assert timm.is_model("users_tiny_net_tern")
        assert "users_tiny_net_tern" in timm.list_models(module="ternary")
        assert timm.get_pretrained_cfg("users_tiny_net_tern.mine").input_size == (3, 16, 16)

    def test_create_save_and_load(self, tmp_path: Path) -> None:
        exclude = {"method": "ttq", "exclude": ["first"]}
        model = timm.create_model("users_tiny_net_tern", width=12, num_classes=6, ternary=exclude)
        assert list(ternary_layers(model)) == ["fc"]
        loaded = timm.create_model(f"local-dir:{save_packed(model, tmp_path)}", pretrained=True)
        assert isinstance(loaded, TinyNet) and loaded.num_features == 12
        assert torch.equal(outputs(loaded), outputs(model))

    def test_twice(self) -> None:
        with pytest.raises(ValueError, match="'users_tiny_net_tern' is registered already"):
            register_ternary("users_tiny_net")
        with pytest.raises(ValueError, match="'resnet18_tern' is registered already"):
            register_ternary("resnet18")

    def test_ternary_base(self) -> None:
        with pytest.raises(ValueError, match="'resnet18_tern' names a ternary model"):
            register_ternary("resnet18_tern")

    def test_unknown_base(self) -> None:
        with pytest.raises(ValueError, match="unknown model 'resnet_18'; did you mean 'resnet18'"):
            register_ternary("resnet_18")
        with pytest.raises(ValueError, match="did you mean 'users_tiny_net'"):
            register_ternary("user_tiny_net")

    def test_saving_a_model_without_a_twin_says_what_to_type(self, tmp_path: Path) -> None:
        model = timm_ternary.ternarize_(TinyNet())
        model.pretrained_cfg = {"architecture": "never_registered"}
        with pytest.raises(ValueError, match=r"register_ternary\('never_registered'\)"):
            save_packed(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()
