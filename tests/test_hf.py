"""Packed directories in transformers, with timm_ternary.hf imported (here) and without (a process).

Directories are loaded and saved by either and by timm, and the logits are those of the model that
was packed. Not to the last bit: transformers maps files into memory, where a float weight may
begin at an address for which torch takes other instructions.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open
from samples import config, edit_config, image, outputs, rewrite, trained
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BertConfig,
    BertModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

import timm_ternary
from timm_ternary.checkpoint.directory import (
    CONFIG_NAME,
    load_packed,
    save_float,
    save_packed,
)
from timm_ternary.checkpoint.weights_file import (
    WEIGHTS_NAME,
    is_packed_file,
    read_file,
    read_weights,
)
from timm_ternary.hf import TernaryQuantizationConfig
from timm_ternary.models.names import load_model
from timm_ternary.nn.convert import is_packed, ternary_layers
from timm_ternary.nn.forms import layer_code
from timm_ternary.packing.encodings import ENCODINGS
from timm_ternary.training import TernaryTrainer, TernaryTrainingArguments

pytestmark = pytest.mark.canary

MODELS = {
    "plain": ("test_resnet_tern", config("ttq"), "2bit"),
    "base3": ("test_resnet_tern", config("tga", exclude=("last",)), "base3"),
    "zstd": ("resnet8_cifar_tern", config("twn", "channel"), "zstd"),
    "bases": ("test_vit_tern", config("rel", options={"expansions": 2}), "base3"),
    "cifar": ("resnet8_cifar_tern", config("bwn", "channel"), "2bit"),
}
"""Model, method and encoding of the directories that the tests load."""

# What a user types who never heard of timm_ternary.hf; argv: the directory of directories.
WITHOUT = """
import json, sys
from pathlib import Path
import torch
import timm_ternary
from transformers import AutoModelForImageClassification
root, found = Path(sys.argv[1]), {}
x = torch.load(root / "image.pt")
for name in json.loads(sys.argv[2]):
    try:
        model = AutoModelForImageClassification.from_pretrained(root / name)
    except ValueError as error:
        found[name] = str(error)
        continue
    with torch.no_grad():
        found[name] = model(x[name]).logits
    model.save_pretrained(root / f"{name}-bare")
    timm_ternary.unpack_(model).save_pretrained(root / f"{name}-unpacked")
assert "timm_ternary.hf" not in sys.modules
torch.save(found, root / "without.pt")
"""


def from_pretrained(directory: Path, **kwargs: Any) -> Any:
    """A classifier of transformers, in evaluation mode."""
    return AutoModelForImageClassification.from_pretrained(directory, **kwargs)


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Of a model of timm or transformers."""
    found = model.eval()(x)
    return found if isinstance(found, Tensor) else found.logits


def assert_same(model: nn.Module, x: Tensor, expected: Tensor) -> None:
    """`model` gives the logits `expected`."""
    torch.testing.assert_close(logits(model, x), expected, rtol=1e-5, atol=1e-6)


def batch(model: str) -> Tensor:
    """Images of the size that `model` takes."""
    return image(size=160 if "vit" in model else 32)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """The trainable models; tests do not change them."""
    return {key: trained(name, ternary=ternary) for key, (name, ternary, _) in MODELS.items()}


@pytest.fixture(scope="module")
def root(models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each of `models`, and what a process without timm_ternary.hf made of it."""
    root = tmp_path_factory.mktemp("hf")
    for key, model in models.items():
        save_packed(model, root / key, MODELS[key][2])
    torch.save({key: batch(name) for key, (name, *_) in MODELS.items()}, root / "image.pt")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(root), json.dumps(list(MODELS))],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def wrapped(root: Path) -> Any:
    """The packed ResNet in transformers."""
    return from_pretrained(root / "plain")


class TestWithoutImport:
    """The same directories where only timm_ternary was imported."""

    def test_2bit_loads(self, models: dict[str, nn.Module], root: Path) -> None:
        found = torch.load(root / "without.pt")
        for key in ("plain", "cifar"):
            expected = outputs(models[key], batch(MODELS[key][0]))
            torch.testing.assert_close(found[key], expected, rtol=1e-5, atol=1e-6)

    def test_other_encodings_say_what_to_type(self, root: Path) -> None:
        found = torch.load(root / "without.pt")
        for key in ("base3", "zstd", "bases"):
            line = found[key]
            assert "\n" not in line and f"codes in {MODELS[key][2]} " in line
            assert "import timm_ternary.hf" in line
            assert "timm-ternary pack DIR OUT --encoding 2bit" in line

    def test_what_it_saves_loads_everywhere(
        self,
        models: dict[str, nn.Module],
        root: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for key in ("plain", "cifar"):
            saved, x = root / f"{key}-bare", batch(MODELS[key][0])
            expected = outputs(models[key], x)
            assert read_file(saved / WEIGHTS_NAME).is_bare
            for model in (
                timm.create_model(f"local-dir:{saved}", pretrained=True),
                load_packed(saved),
                load_packed(saved, packed=False),
                from_pretrained(saved),
            ):
                assert_same(model, x, expected)
            assert "holds no digests" in caplog.text
            packed = load_packed(saved)
            assert is_packed(packed) and not is_packed(load_packed(saved, packed=False))
            # Packed anew it holds the tensors that it came from, of the same digests;
            # transformers has put labels into config.json.
            again, first = read_file(save_packed(packed, tmp_path / key) / WEIGHTS_NAME), root / key
            assert (
                again.metadata["timm_ternary"]
                == read_file(first / WEIGHTS_NAME).metadata["timm_ternary"]
            )

    @pytest.mark.parametrize("form", ["packed", "bare", "unpacked", "float"])
    def test_saved_in_shards(
        self, form: str, models: dict[str, nn.Module], root: Path, tmp_path: Path
    ) -> None:
        """max_shard_size splits the file; it loads in every way that one file does."""
        x = batch(MODELS["plain"][0])
        if form == "float":
            model = trained("test_resnet")
            save_float(model, tmp_path / "from")
            expected = logits(model, x)
        else:
            expected = outputs(models["plain"], x)
        source = {"float": tmp_path / "from", "bare": root / "plain-bare"}.get(form, root / "plain")
        wrapped = from_pretrained(source)
        if form == "unpacked":
            timm_ternary.unpack_(wrapped)
        if form == "bare":
            wrapped.hf_quantizer = None
        for _ in range(2):
            saved = tmp_path / "shards"
            wrapped.save_pretrained(saved, max_shard_size="60KB")
            assert len(list(saved.glob("model-*.safetensors"))) > 1
            assert not (saved / WEIGHTS_NAME).exists()
            assert_same(load_model(str(saved)), x, expected)
            if form != "float":
                assert_same(timm.create_model(f"local-dir:{saved}", pretrained=True), x, expected)
            wrapped = from_pretrained(saved)
            assert_same(wrapped, x, expected)
        if form == "packed":
            shard = max(saved.glob("model-*.safetensors"), key=lambda path: path.stat().st_size)
            data = bytearray(shard.read_bytes())
            data[-3] ^= 1
            shard.write_bytes(data)
            for load in (load_packed, from_pretrained):
                with pytest.raises(ValueError, match="is damaged"):
                    load(saved)
            shard.unlink()
            with pytest.raises(ValueError, match=f"{shard.name}: no such file"):
                load_packed(saved)

    def test_an_index_that_names_files_elsewhere(self, root: Path, tmp_path: Path) -> None:
        shutil.copy(root / "plain" / CONFIG_NAME, tmp_path)
        index = tmp_path / f"{WEIGHTS_NAME}.index.json"
        for text, match in (
            ('{"weight_map": {"a": "../model.safetensors"}}', "names no .safetensors file"),
            ('{"weight_map": {"a": ".model.safetensors"}}', "names no .safetensors file"),
            ('{"weight_map": {"a": 3}}', "names no .safetensors file"),
            ('{"weight_map": []}', "it has no weight_map"),
            ("[]", "not a JSON object"),
        ):
            index.write_text(text)
            with pytest.raises(ValueError, match=match):
                load_packed(tmp_path)

    def test_a_bare_file_with_other_classes(self, root: Path) -> None:
        model = timm.create_model(
            f"local-dir:{root / 'plain-bare'}", pretrained=True, num_classes=7
        )
        layers = ternary_layers(model)
        stored = timm.create_model(f"local-dir:{root / 'plain'}", pretrained=True)
        assert layers["fc"].weight.shape == (7, 96)
        for name, layer in ternary_layers(stored).items():
            if name != "fc":
                assert torch.equal(layer_code(layer).codes, layer_code(layers[name]).codes)

    def test_unpacked_it_saves_a_trainable_directory(
        self, models: dict[str, nn.Module], root: Path
    ) -> None:
        for key in ("plain", "cifar"):
            saved, x = root / f"{key}-unpacked", batch(MODELS[key][0])
            assert "quantization_config" not in json.loads((saved / CONFIG_NAME).read_text())
            expected = outputs(models[key], x)
            for model in (
                from_pretrained(saved),
                timm.create_model(f"local-dir:{saved}", pretrained=True),
            ):
                assert not is_packed(model) and ternary_layers(model)
                assert_same(model, x, expected)


class TestLoading:
    """With the quantization registered."""

    @pytest.mark.parametrize("key", MODELS)
    def test_every_encoding(self, key: str, models: dict[str, nn.Module], root: Path) -> None:
        model = from_pretrained(root / key)
        x = batch(MODELS[key][0])
        assert_same(model, x, outputs(models[key], x))
        assert is_packed(model)

    def test_the_directory_states_it(self, root: Path) -> None:
        for key, (_, ternary, encoding) in MODELS.items():
            values = json.loads((root / key / CONFIG_NAME).read_text())
            stated = {"quant_method": "ternary", **ternary.to_dict(), "encoding": encoding}
            assert values["quantization_config"] == stated
            assert values["model_args"]["packed"] == encoding

    def test_is_quantized(self, wrapped: Any) -> None:
        assert wrapped.is_quantized
        assert wrapped.quantization_method == "ternary"
        assert wrapped.config.quantization_config.to_dict()["method"] == "ttq"

    @pytest.mark.parametrize("key", ["plain", "base3", "bases"])
    def test_counts(self, key: str, models: dict[str, nn.Module], root: Path) -> None:
        model = from_pretrained(root / key)
        base = timm.create_model(MODELS[key][0].removesuffix("_tern"), num_classes=5)
        held = [*model.parameters(), *model.buffers()]
        assert model.num_parameters() == sum(p.numel() for p in base.parameters())
        assert model.num_parameters(only_trainable=True) == sum(
            p.numel() for p in model.parameters() if p.requires_grad
        )
        assert model.get_memory_footprint() == sum(t.numel() * t.element_size() for t in held)
        # A quarter of a byte a code and base, whatever the file's encoding.
        packed = sum(t.numel() for t in held if t.dtype == torch.uint8)
        weights = [layer.weight_shape.numel() for layer in ternary_layers(model).values()]
        assert packed == sum(-(-n // 4) for n in weights) * (2 if key == "bases" else 1)

    def test_half_precision(self, root: Path) -> None:
        model = from_pretrained(root / "base3", dtype=torch.bfloat16)
        assert all(p.dtype == torch.bfloat16 for p in model.parameters())
        assert all(m.weight.dtype == torch.bfloat16 for m in ternary_layers(model).values())
        assert torch.isfinite(logits(model, image())).all()

    def test_without_a_head(self, models: dict[str, nn.Module], root: Path) -> None:
        model = AutoModel.from_pretrained(root / "base3").eval()
        with torch.no_grad():
            found = model(image()).last_hidden_state
            expected = models["base3"].forward_features(image())
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert model.is_quantized

    def test_copies(self, wrapped: Any) -> None:
        for other in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
            assert_same(other, image(), logits(wrapped, image()))
            assert other.num_parameters() == wrapped.num_parameters()
        timm_ternary.unpack_(other)
        assert other.hf_quantizer.is_trainable  # it looks at its own model
        with pytest.raises(ValueError, match="packed model"):
            _ = wrapped.hf_quantizer.is_trainable

    def test_processor_and_pipeline(self, root: Path) -> None:
        processor = AutoImageProcessor.from_pretrained(root / "zstd")
        classify = pipeline(
            "image-classification", model=str(root / "zstd"), image_processor=processor
        )
        assert classify.model.is_quantized
        from PIL import Image

        found = classify(Image.new("RGB", (40, 40), "red"), top_k=5)
        assert len({row["label"] for row in found}) == 5
        assert sum(row["score"] for row in found) == pytest.approx(1)


class TestDamage:
    """What transformers itself would not notice."""

    @pytest.fixture
    def directory(self, root: Path, tmp_path: Path) -> Path:
        """A copy to damage."""
        return Path(shutil.copytree(root / "plain", tmp_path / "out"))

    def test_a_flipped_bit(self, directory: Path) -> None:
        path = directory / WEIGHTS_NAME
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"tensor .* is damaged"):
            from_pretrained(directory)

    @pytest.mark.parametrize("bare", [False, True])
    def test_an_invalid_code(self, bare: bool, directory: Path) -> None:
        def spoil(tensors: dict[str, Tensor]) -> None:
            tensors["fc.weight_packed"][0] = 0b11

        rewrite(directory, spoil)
        if bare:
            path = directory / WEIGHTS_NAME
            safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"format": "pt"})
        with pytest.raises(ValueError, match=r"tensor .*fc\.weight_packed: invalid byte 3"):
            from_pretrained(directory)

    @pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "bias"])
    def test_a_missing_tensor(self, part: str, directory: Path) -> None:
        rewrite(directory, lambda tensors: tensors.pop(f"fc.{part}"))
        with pytest.raises(ValueError, match=rf"tensor .*fc\.{part} is missing"):
            from_pretrained(directory)

    def test_floats_under_a_stated_quantization(self, directory: Path) -> None:
        edit_config(directory, lambda values: values["model_args"].pop("packed"))
        with pytest.raises(ValueError, match="model_args lack 'packed'"):
            from_pretrained(directory)

    def test_two_methods(self, directory: Path) -> None:
        edit_config(directory, lambda values: values["quantization_config"].update(method="tga"))
        with pytest.raises(ValueError, match=r"quantization_config says .*'tga'.* 'ttq'"):
            from_pretrained(directory)

    def test_an_unknown_key(self, directory: Path) -> None:
        edit_config(directory, lambda values: values["quantization_config"].update(metod="tga"))
        with pytest.raises(ValueError, match="'metod'; did you mean 'method'"):
            from_pretrained(directory)


class TestSaving:
    """``save_pretrained``, and back."""

    @pytest.mark.parametrize("key", MODELS)
    def test_round_trip(
        self, key: str, models: dict[str, nn.Module], root: Path, tmp_path: Path
    ) -> None:
        from_pretrained(root / key).save_pretrained(tmp_path)
        stored = read_weights(tmp_path / WEIGHTS_NAME)  # digests and all
        assert is_packed_file(tmp_path / WEIGHTS_NAME)
        assert (stored.architecture, stored.config, stored.encoding) == MODELS[key]
        x = batch(MODELS[key][0])
        expected = outputs(models[key], x)
        for model in (
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
            load_packed(tmp_path),
            load_packed(tmp_path, packed=False),
            from_pretrained(tmp_path),
        ):
            assert_same(model, x, expected)
        ours, theirs = ((d / WEIGHTS_NAME).stat().st_size for d in (root / key, tmp_path))
        assert ours == theirs

    def test_a_bare_file_gets_its_digests_back(self, root: Path, tmp_path: Path) -> None:
        from_pretrained(root / "plain-bare").save_pretrained(tmp_path)
        with safe_open(str(tmp_path / WEIGHTS_NAME), framework="pt") as file:
            assert "timm_ternary" in file.metadata()

    def test_a_head_replaced_in_float(self, wrapped: Any, tmp_path: Path) -> None:
        wrapped.timm_model.reset_classifier(5)
        wrapped.save_pretrained(tmp_path)
        model = from_pretrained(tmp_path)
        assert not hasattr(model.timm_model.fc, "weight_packed")
        assert_same(model, image(), logits(wrapped, image()))

    def test_ternarized_in_transformers(self, tmp_path: Path) -> None:
        """A float model of transformers, made ternary there: saved as what it is by then."""
        save_float(trained("test_resnet"), tmp_path / "float")
        model = from_pretrained(tmp_path / "float")
        timm_ternary.ternarize_(model, "ttq")
        expected = logits(model, image())
        model.save_pretrained(tmp_path / "trainable")
        timm_ternary.pack_(model).save_pretrained(tmp_path / "packed")
        for name in ("trainable", "packed"):
            again = from_pretrained(tmp_path / name)
            assert_same(again, image(), expected)
            assert is_packed(again) == (name == "packed")
        assert_same(load_packed(tmp_path / "packed"), image(), expected)


class TestFloats:
    """``dequantize``, at loading and later."""

    @pytest.mark.parametrize("key", ["plain", "zstd", "bases"])
    def test_on_loading(
        self, key: str, models: dict[str, nn.Module], root: Path, tmp_path: Path
    ) -> None:
        with pytest.warns(UserWarning, match="dequantize"):
            model = from_pretrained(
                root / key, quantization_config=TernaryQuantizationConfig(dequantize=True)
            )
        x = batch(MODELS[key][0])
        expected = outputs(models[key], x)
        self.check(model, x, expected)
        model.save_pretrained(tmp_path)
        self.check(from_pretrained(tmp_path), x, expected)
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        assert_same(again, x, expected)

    def test_later(self, wrapped: Any) -> None:
        expected = logits(wrapped, image())
        wrapped.dequantize()
        self.check(wrapped, image(), expected)
        Trainer(wrapped, TrainingArguments(use_cpu=True))

    def test_of_the_trainable_form(self, wrapped: Any) -> None:
        expected = logits(wrapped, image())
        timm_ternary.unpack_(wrapped).dequantize()
        self.check(wrapped, image(), expected)

    def check(self, model: Any, x: Tensor, expected: Tensor) -> None:
        """It is a plain float model with these outputs."""
        assert not ternary_layers(model) and not getattr(model, "is_quantized", False)
        assert not hasattr(model.config, "quantization_config")
        assert not model.config.architecture.endswith("_tern")
        assert model.num_parameters() == sum(p.numel() for p in model.parameters())
        assert_same(model, x, expected)


class TestNamesInFiles:
    """timm loads what transformers saves, also where the names are those within the wrapper."""

    @pytest.mark.parametrize("packed", [False, True])
    def test_of_a_wrapper_that_from_pretrained_did_not_make(
        self, packed: bool, tmp_path: Path
    ) -> None:
        save_float(trained("test_resnet"), tmp_path / "float")
        made_of = TimmWrapperConfig.from_pretrained(tmp_path / "float")
        wrapped = timm_ternary.ternarize_(TimmWrapperForImageClassification(made_of), "ttq")
        if packed:
            timm_ternary.pack_(wrapped)
        wrapped.save_pretrained(tmp_path / "saved")
        loaded = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True)
        assert is_packed(loaded) == packed
        assert_same(loaded, image(), logits(wrapped, image()))


class TestOnTheFly:
    """A float directory, packed as it is loaded."""

    def test_as_packed_by_hand(self, tmp_path: Path) -> None:
        model = trained("test_resnet")
        save_float(model, tmp_path / "float")
        ternary = config("ttq", exclude=("first",))
        asked = TernaryQuantizationConfig("ttq", exclude=("first",), encoding="zstd")
        loaded = from_pretrained(tmp_path / "float", quantization_config=asked)
        timm_ternary.pack_(timm_ternary.ternarize_(model, ternary))
        assert loaded.is_quantized and loaded.num_parameters() == 373_173
        assert_same(loaded, image(), outputs(model))
        loaded.save_pretrained(tmp_path / "packed")
        assert read_weights(tmp_path / "packed" / WEIGHTS_NAME).encoding == "zstd"
        for again in (from_pretrained(tmp_path / "packed"), load_packed(tmp_path / "packed")):
            assert_same(again, image(), outputs(model))

    def test_what_is_ternary_already(self, root: Path) -> None:
        with pytest.raises(ValueError, match="ternary already"):
            from_pretrained(
                root / "plain-unpacked", quantization_config=TernaryQuantizationConfig()
            )

    def test_models_that_are_not_timms(self, tmp_path: Path) -> None:
        small = BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
        BertModel(small).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="BertModel is no wrapper of a timm model"):
            BertModel.from_pretrained(tmp_path, quantization_config=TernaryQuantizationConfig())


class TestConfiguration:
    """What users can pass."""

    @pytest.mark.parametrize(
        ("values", "match"),
        [
            ({"method": "tgaa"}, "'tgaa'; did you mean 'tga'"),
            ({"encoding": "3bit"}, "'3bit'; did you mean '2bit'"),
            ({"granularity": "chanel"}, "'chanel'; did you mean 'channel'"),
            ({"dequantise": True}, "'dequantise'; did you mean 'dequantize'"),
            ({"options": {"sparsty": 1}}, "'sparsty'"),
            ({"quant_method": "gptq"}, "unknown quant_method 'gptq'"),
        ],
    )
    def test_refused(self, values: dict[str, Any], match: str) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            TernaryQuantizationConfig(**values)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_dict_and_back(self, encoding: str) -> None:
        given = TernaryQuantizationConfig(
            "ttq", exclude=["last"], options={"sparsity": 0.5}, encoding=encoding, dequantize=True
        )
        values = json.loads(given.to_json_string())
        again = TernaryQuantizationConfig.from_dict(values)
        assert again.to_dict() == given.to_dict() == values
        assert again.ternary == config("ttq", None, exclude=("last",), options={"sparsity": 0.5})
        assert given.dequantize and not again.dequantize  # asked for anew each time


class TestTrainer:
    """Packed: refused with what to type; and typing it helps."""

    def test_refuses(self, wrapped: Any, tmp_path: Path) -> None:
        arguments = TrainingArguments(str(tmp_path), use_cpu=True)
        ours = TernaryTrainingArguments(str(tmp_path), use_cpu=True)
        for make in (lambda: Trainer(wrapped, arguments), lambda: TernaryTrainer(wrapped, ours)):
            with pytest.raises(ValueError, match=r"type timm_ternary\.unpack_\(model\)") as caught:
                make()
            assert "\n" not in str(caught.value) and "model.dequantize()" in str(caught.value)

    def test_trains_unpacked_and_saves(self, wrapped: Any, tmp_path: Path) -> None:
        before = logits(wrapped, image())
        timm_ternary.unpack_(wrapped)
        data = [{"pixel_values": x, "labels": i} for i, x in enumerate(image())]
        arguments = TernaryTrainingArguments(
            str(tmp_path), use_cpu=True, max_steps=1, learning_rate=0.1, report_to=[],
            disable_tqdm=True, save_strategy="steps", save_steps=1,
        )  # fmt: skip
        TernaryTrainer(wrapped, arguments, train_dataset=data).train()
        after = logits(wrapped, image())
        assert not torch.equal(after, before)
        again = from_pretrained(tmp_path / "checkpoint-1")
        assert_same(again, image(), after)
        timm_ternary.pack_(wrapped).save_pretrained(tmp_path / "packed")
        assert_same(from_pretrained(tmp_path / "packed"), image(), after)
        assert_same(load_packed(tmp_path / "packed"), image(), after)
