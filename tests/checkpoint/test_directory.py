"""Packed directories: what is written, that it is written whole, and what loads back."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from samples import MATRIX, config, contents, image, outputs, rewrite, trained
from torch import nn

import timm_ternary
from timm_ternary import TernaryConfig, packing, quantizers
from timm_ternary.checkpoint.directory import CONFIG_NAME, load_packed, save_packed
from timm_ternary.checkpoint.weights_file import (
    WEIGHTS_NAME,
    is_packed_file,
    read_weights,
)
from timm_ternary.nn.convert import is_packed, ternary_layers
from timm_ternary.nn.forms import layer_code


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A trained model; tests do not change it."""
    return trained()


@pytest.fixture(scope="module")
def saved(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model` in 2bit; tests do not change it."""
    return save_packed(model, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    """ResNet-18 for 1000 classes, half of its codes 0."""
    torch.manual_seed(0)
    half = config("ttq", options={"sparsity": 0.5})
    return timm.create_model("resnet18_tern", ternary=half, packed=True)


def reload(directory: Path, **kwargs: object) -> nn.Module:
    """The stock timm call."""
    return timm.create_model(f"local-dir:{directory}", pretrained=True, **kwargs).eval()


class TestWhatIsWritten:
    """Two files, readable by others, and nothing else."""

    def test_two_files(self, saved: Path) -> None:
        assert set(contents(saved)) == {WEIGHTS_NAME, CONFIG_NAME}
        assert is_packed_file(saved / WEIGHTS_NAME)
        mask = os.umask(0o022)
        os.umask(mask)
        for path in saved.iterdir():
            assert path.stat().st_mode & 0o777 == 0o666 & ~mask

    def test_config_is_what_stock_timm_reads(self, saved: Path) -> None:
        values = json.loads((saved / CONFIG_NAME).read_text())
        assert values["architecture"] == "test_resnet_tern" and values["num_classes"] == 5
        assert values["model_args"]["ternary"] == TernaryConfig().to_dict()
        assert values["model_args"]["packed"] == "2bit"
        assert "num_classes" not in values["model_args"]  # TimmWrapper gives it a second time
        assert values["pretrained_cfg"]["input_size"] == [3, 160, 160]

    def test_tensors_are_named_as_documented(self, model: nn.Module, saved: Path) -> None:
        stored = read_weights(saved / WEIGHTS_NAME)
        assert (stored.encoding, stored.architecture) == ("2bit", "test_resnet_tern")
        assert stored.config == TernaryConfig()
        base = timm.create_model("test_resnet", num_classes=5)
        assert stored.dense.keys() == base.state_dict().keys()
        layers = ternary_layers(model)
        assert stored.codes.keys() == layers.keys()
        for name, layer in layers.items():
            assert torch.equal(stored.codes[name].codes, layer_code(layer).codes)
            assert torch.equal(stored.dense[f"{name}.weight"], layer.weight)

    @pytest.mark.parametrize("encoding", packing.ENCODINGS)
    def test_trainable_and_packed_models_write_the_same_bytes(
        self, encoding: str, tmp_path: Path
    ) -> None:
        for method, granularity in MATRIX[1::2]:
            model = trained(ternary=config(method, granularity))
            first = contents(save_packed(model, tmp_path / "a", encoding))
            second = contents(save_packed(timm_ternary.pack_(model), tmp_path / "b", encoding))
            again = contents(save_packed(reload(tmp_path / "b"), tmp_path / "c", encoding))
            assert first == second
            assert first[WEIGHTS_NAME] == again[WEIGHTS_NAME], (method, granularity)

    def test_saving_leaves_the_model_as_it_is(self, tmp_path: Path) -> None:
        model = trained().train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        save_packed(model, tmp_path)
        after = model.state_dict()
        assert before.keys() == after.keys() and model.training and not is_packed(model)
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert all(p.requires_grad for p in model.fc.parameters())

    def test_makes_the_directory_and_its_parents(self, model: nn.Module, tmp_path: Path) -> None:
        directory = save_packed(model, str(tmp_path / "a" / "b c"))
        assert torch.equal(outputs(reload(directory)), outputs(model))

    def test_label_names_travel(self, tmp_path: Path) -> None:
        model = trained()
        names = ["a", "b", "c", "d", "e"]
        model.pretrained_cfg["label_names"] = names
        loaded = reload(save_packed(model, tmp_path))
        assert list(loaded.pretrained_cfg["label_names"]) == names


class TestIsWhole:
    """Whatever stops the writing, the older files stay as they were, and no others appear."""

    @staticmethod
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @staticmethod
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def stopped(self, directory: Path, monkeypatch: pytest.MonkeyPatch, error: type) -> None:
        """Save another model over `directory`; it must fail and change nothing."""
        before = contents(directory)
        assert set(before) == {WEIGHTS_NAME, CONFIG_NAME}
        with pytest.raises(error):
            save_packed(trained(seed=9, ternary="ttq"), directory)
        monkeypatch.undo()
        assert contents(directory) == before

    @pytest.mark.parametrize("error", ["full", "interrupt"])
    @pytest.mark.parametrize("name", [WEIGHTS_NAME, CONFIG_NAME])
    def test_in_the_middle_of_writing(
        self, name: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_packed(trained(), tmp_path)
        stop = getattr(self, error)
        method = "write_bytes" if name == WEIGHTS_NAME else "write_text"
        real: Callable[..., int] = getattr(Path, method)

        def half(path: Path, data: bytes | str, *rest: object, **kwargs: object) -> int:
            if path.parent != tmp_path:
                return real(path, data, *rest, **kwargs)
            assert name in path.name
            real(path, data[: len(data) // 2])
            stop()
            raise AssertionError

        monkeypatch.setattr(Path, method, half)
        self.stopped(tmp_path, monkeypatch, OSError if error == "full" else KeyboardInterrupt)

    @pytest.mark.parametrize("error", ["full", "interrupt"])
    @pytest.mark.parametrize("count", [1, 2])
    def test_when_the_disk_is_synchronized(
        self, count: int, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_packed(trained(), tmp_path)
        calls = []

        def fsync(handle: int) -> None:
            calls.append(handle)
            if len(calls) == count:
                getattr(self, error)()

        monkeypatch.setattr(os, "fsync", fsync)
        self.stopped(tmp_path, monkeypatch, OSError if error == "full" else KeyboardInterrupt)
        assert len(calls) == count

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_when_a_file_takes_its_name(
        self, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The new version loads as soon as config.json is in place, and no third one ever."""
        save_packed(trained(), tmp_path)
        new = trained(seed=9, ternary="ttq")
        real, calls = os.replace, []

        def replace(path: Path, target: Path) -> None:
            calls.append(target)
            self.full() if len(calls) == count else real(path, target)

        monkeypatch.setattr(os, "replace", replace)
        if count < 3:
            self.stopped(tmp_path, monkeypatch, OSError)
            return
        with pytest.raises(OSError):
            save_packed(new, tmp_path)
        monkeypatch.undo()
        assert torch.equal(outputs(load_packed(tmp_path)), outputs(new))

    def test_no_directory_can_be_made(self, model: nn.Module, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OSError):
            save_packed(model, tmp_path / "file" / "out")
        with pytest.raises(OSError):
            save_packed(model, tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"


LOAD = """
import sys, timm, torch, timm_ternary
directory, x = sys.argv[1:]
given = torch.load(x)
for kwargs in ({}, {"packed": False}):
    model = timm.create_model(f"local-dir:{directory}", pretrained=True, **kwargs).eval()
    assert torch.equal(model(given["x"]), given["y"]), (model(given["x"]) - given["y"]).abs().max()
    print(type(model.fc).__name__)
"""


class TestLoadsBack:
    """With the stock timm call, the same logits to the last bit."""

    @pytest.mark.parametrize("encoding", packing.ENCODINGS)
    @pytest.mark.parametrize(("method", "granularity"), MATRIX)
    def test_identical_logits(
        self, method: str, granularity: str, encoding: str, tmp_path: Path
    ) -> None:
        model = trained(ternary=config(method, granularity))
        expected = outputs(model)
        save_packed(model, tmp_path, encoding)
        packed, trainable = reload(tmp_path), reload(tmp_path, packed=False)
        assert is_packed(packed) and not is_packed(trainable)
        assert torch.equal(outputs(packed), expected)
        assert torch.equal(outputs(trainable), expected)
        assert packed.pretrained_cfg["architecture"] == "test_resnet_tern"

    def test_load_packed(self, model: nn.Module, saved: Path) -> None:
        for packed in (True, False):
            loaded = load_packed(saved, packed)
            assert is_packed(loaded) is packed
            assert torch.equal(outputs(loaded), outputs(model))

    @pytest.mark.multi_process
    def test_in_a_fresh_process(self, tmp_path: Path) -> None:
        model = trained(ternary=config("ttq", "channel"))
        save_packed(model, tmp_path / "out", "zstd")
        torch.save({"x": image(), "y": outputs(model)}, tmp_path / "x.pt")
        command = [sys.executable, "-c", LOAD, str(tmp_path / "out"), str(tmp_path / "x.pt")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["PackedLinear", "ParametrizedLinear"]

    @pytest.mark.parametrize("packed", [True, False])
    def test_other_classes(self, model: nn.Module, saved: Path, packed: bool) -> None:
        loaded = reload(saved, num_classes=7, packed=packed)
        assert outputs(loaded).shape == (2, 7) and loaded.num_classes == 7
        with torch.no_grad():
            features = model.forward_features(image())
            assert torch.equal(loaded.forward_features(image()), features)
            assert torch.equal(reload(saved, num_classes=0)(image()), features.mean((2, 3)))

    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize("channels", [1, 4])
    def test_other_channels(
        self, model: nn.Module, saved: Path, channels: int, packed: bool
    ) -> None:
        loaded = reload(saved, in_chans=channels, packed=packed)
        assert outputs(loaded, image(channels)).shape == (2, 5)
        first = loaded.pretrained_cfg["first_conv"]
        for name, layer in ternary_layers(loaded).items():
            if name != first:
                code = layer_code(model.get_submodule(name))
                assert torch.equal(layer_code(layer).codes, code.codes), name
                assert torch.equal(layer_code(layer).decode(), code.decode()), name
        assert loaded.get_submodule(first).weight.unique().numel() <= 3

    @pytest.mark.parametrize("packed", [True, False])
    def test_features_only(self, model: nn.Module, saved: Path, packed: bool) -> None:
        loaded = reload(saved, features_only=True, out_indices=(1, 3), packed=packed)
        assert is_packed(loaded) is packed
        with torch.no_grad():
            found = loaded(image())
            expected = model.forward_intermediates(image(), indices=[1, 3], intermediates_only=True)
        assert len(found) == 2
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)

    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize("exclude", [(), ("first",)])
    def test_a_layer_replaced_in_float_stays_float(
        self, exclude: tuple[str, ...], packed: bool, tmp_path: Path
    ) -> None:
        model = trained(ternary=TernaryConfig(exclude=exclude))
        model.reset_classifier(3)
        save_packed(model, tmp_path)
        loaded = reload(tmp_path, packed=packed)
        assert timm_ternary.nn.convert.config_of(loaded).exclude == (*exclude, "fc")
        assert torch.equal(outputs(loaded), outputs(model))

    @pytest.mark.parametrize("packed", [True, False])
    def test_features_only_keeps_excluded_layers_float(self, packed: bool, tmp_path: Path) -> None:
        exclude = TernaryConfig(exclude=("first", "last", "blocks.0.*"))
        model = trained("test_vit_tern", ternary=exclude)
        save_packed(model, tmp_path)
        loaded = reload(tmp_path, features_only=True, packed=packed)
        assert set(ternary_layers(loaded)) == {f"model.{name}" for name in ternary_layers(model)}
        first = loaded.model.patch_embed.proj.weight
        assert torch.equal(first, model.patch_embed.proj.weight)

    def test_ternary_argument_overrides(self, model: nn.Module, saved: Path) -> None:
        for packed in (True, False):
            loaded = reload(saved, ternary="twn", packed=packed)
            assert timm_ternary.nn.convert.config_of(loaded).method == "twn"
            for name, layer in ternary_layers(loaded).items():
                assert layer.weight.unique().numel() <= 3, name

    @pytest.mark.parametrize("packed", [True, False])
    def test_the_default_granularity_by_name_is_the_same(
        self, packed: bool, tmp_path: Path
    ) -> None:
        for stored, asked in ((None, "layer"), ("layer", None)):
            model = trained(ternary=TernaryConfig("tga", stored))
            save_packed(model, tmp_path)
            loaded = reload(tmp_path, ternary=TernaryConfig("tga", asked), packed=packed)
            assert torch.equal(outputs(loaded), outputs(model))

    def test_other_encodings_as_argument(self, model: nn.Module, saved: Path) -> None:
        assert torch.equal(outputs(reload(saved, packed="base3")), outputs(model))

    def test_without_pretrained_it_is_a_fresh_packed_model(self, saved: Path) -> None:
        fresh = timm.create_model(f"local-dir:{saved}")
        assert is_packed(fresh) and fresh.num_classes == 5

    def test_half_precision_models(self, tmp_path: Path) -> None:
        for dtype in (torch.bfloat16, torch.float16):
            model = trained().to(dtype)
            save_packed(model, tmp_path)
            loaded = reload(tmp_path)
            for name, layer in ternary_layers(loaded).items():
                weight = model.get_submodule(name).weight
                assert torch.equal(layer.weight.to(dtype), weight), name

    def test_tied_layers(self, tmp_path: Path) -> None:
        """A checkpoint of a model whose tensors share memory."""
        model = trained()
        model.bn1.bias = model.bn1.weight
        model.bn1.running_mean = model.bn1.running_var
        save_packed(model, tmp_path)
        assert torch.equal(outputs(reload(tmp_path)), outputs(model))

    def test_transformers_wrapper(self, model: nn.Module, saved: Path) -> None:
        from transformers import AutoModelForImageClassification

        wrapped = AutoModelForImageClassification.from_pretrained(saved).eval()
        with torch.no_grad():
            logits = wrapped(pixel_values=image()).logits
        assert is_packed(wrapped)
        assert torch.equal(logits, outputs(model))


class TestTrainableDirectory:
    """What stock ``timm.models.save_for_hf`` writes of a trainable model."""

    @pytest.mark.parametrize(("method", "granularity"), MATRIX)
    def test_loads_back(self, method: str, granularity: str, tmp_path: Path) -> None:
        model = trained(ternary=config(method, granularity).to_dict())
        timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
        loaded = reload(tmp_path)
        assert torch.equal(outputs(loaded), outputs(model))
        assert torch.equal(outputs(reload(tmp_path, packed=True)), outputs(model))
        ours, theirs = loaded.state_dict(), model.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)  # latent weights too

    @pytest.mark.parametrize("packed", [True, False])
    def test_adapts(self, packed: bool, tmp_path: Path) -> None:
        model = trained(ternary="ttq")
        timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
        kwargs = {"packed": packed}
        assert outputs(reload(tmp_path, num_classes=3, **kwargs)).shape == (2, 3)
        with torch.no_grad():
            features = model.forward_features(image())
            found = reload(tmp_path, features_only=True, out_indices=(4,), **kwargs)(image())[0]
            pooled = reload(tmp_path, num_classes=0, **kwargs)(image())
        assert torch.equal(found, features)
        assert torch.equal(pooled, features.mean((2, 3)))

    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize("other", [config("twn"), config("tga"), config("ttq", "channel")])
    def test_another_method(self, other: TernaryConfig, packed: bool, tmp_path: Path) -> None:
        """`ternary` starts that method from the latent weights in the file."""
        model = trained(ternary="ttq")
        timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
        loaded = reload(tmp_path, ternary=other, packed=packed)
        assert timm_ternary.nn.convert.config_of(loaded) == other
        for name, layer in ternary_layers(loaded).items():
            latent = model.get_submodule(name).parametrizations.weight.original
            fresh = quantizers.create(other, latent)
            assert torch.equal(layer.weight, fresh(latent)), name


class TestSizes:
    """ResNet-18 with 1000 classes; the issue's limits."""

    @pytest.mark.parametrize(
        ("encoding", "megabytes"), [("2bit", 3.05), ("base3", 2.5), ("zstd", 2.35)]
    )
    def test_packed(
        self, encoding: str, megabytes: float, resnet18: nn.Module, tmp_path: Path
    ) -> None:
        summary = timm_ternary.summarize(resnet18)
        assert abs(summary.zeros - 0.5) < 0.001
        size = (save_packed(resnet18, tmp_path, encoding) / WEIGHTS_NAME).stat().st_size
        print(f"resnet18_tern in {encoding}: {size / 1e6:.3f} MB")
        assert size <= megabytes * 1e6
        if encoding == "2bit":  # summarize counts tensors; the rest is the header
            assert 0 <= size - summary.packed_bytes < 40_000

    def test_float(self, resnet18: nn.Module) -> None:
        assert timm_ternary.summarize(resnet18).float_bytes / 1e6 == pytest.approx(46.8, abs=0.05)


class TestNotSaved:
    """What cannot be loaded back is refused, and nothing is written."""

    def refused(self, model: nn.Module, directory: Path, match: str, **kwargs: str) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            save_packed(model, directory, **kwargs)
        assert "\n" not in str(caught.value)
        assert not directory.exists()

    def test_float_model(self, tmp_path: Path) -> None:
        model = timm.create_model("test_resnet")
        self.refused(model, tmp_path / "x", "the model is not ternary; type: .*ternarize_")

    def test_module_that_timm_does_not_know(self, tmp_path: Path) -> None:
        model = timm_ternary.ternarize_(nn.Sequential(nn.Linear(4, 4)))
        self.refused(model, tmp_path / "x", "Sequential is no timm classification model")

    def test_features_only_model(self, tmp_path: Path) -> None:
        model = timm.create_model("test_resnet_tern", features_only=True)
        self.refused(model, tmp_path / "x", "is no timm classification model")

    def test_unknown_encoding(self, model: nn.Module, tmp_path: Path) -> None:
        self.refused(model, tmp_path / "x", "did you mean 'base3'", encoding="base-3")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("fc.parametrizations.weight.original", float("nan")),
            ("fc.parametrizations.weight.original", float("inf")),
            ("bn1.running_var", float("nan")),
            ("fc.bias", float("nan")),
        ],
    )
    def test_values_that_are_not_finite(self, key: str, value: float, tmp_path: Path) -> None:
        old = contents(save_packed(trained(), tmp_path))
        model = trained()
        model.state_dict()[key].view(-1)[1] = value
        name = key.removesuffix(".parametrizations.weight.original")
        with pytest.raises(ValueError, match=f"{name}'? holds (NaN|.*not finite)"):
            save_packed(model, tmp_path)
        assert contents(tmp_path) == old

    @pytest.mark.parametrize("packed", [True, False])
    def test_scale_that_is_not_finite(self, packed: bool, tmp_path: Path) -> None:
        model = trained(ternary="ttq")
        key = "fc.parametrizations.weight.0.scale_pos"
        if packed:
            timm_ternary.pack_(model)
            key = "fc.weight_scale"
        model.state_dict()[key].fill_(float("nan"))
        self.refused(model, tmp_path / "x", "'fc' holds weights or scales that are not finite")

    def test_float_timm_model_made_ternary_saves_under_its_twin(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = timm_ternary.ternarize_(timm.create_model("test_resnet", num_classes=5), "twn")
        loaded = reload(save_packed(model, tmp_path))
        assert torch.equal(outputs(loaded), outputs(model))
        assert loaded.pretrained_cfg["architecture"] == "test_resnet_tern"


def test_rewrite_keeps_a_file_loadable(tmp_path: Path) -> None:
    """The forger of test_bad_files is careful enough."""
    model = trained()
    save_packed(model, tmp_path)
    rewrite(tmp_path, lambda tensors: None, lambda header: None)
    assert torch.equal(outputs(load_packed(tmp_path)), outputs(model))
