"""The one reader of config.json, on files of timm, of transformers and of nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from samples import trained
from transformers import TimmWrapperConfig

from timm_ternary.checkpoint.config_json import CONFIG_NAME, ModelConfig, read_config
from timm_ternary.checkpoint.directory import save_float, save_packed
from timm_ternary.config import TernaryConfig
from timm_ternary.errors.foreign import FileError
from timm_ternary.models.names import load_model
from timm_ternary.nn.timm_wrapper import quantization_dict


def written(path: Path, values: Any) -> Path:
    path = path / CONFIG_NAME
    path.write_text(json.dumps(values))
    return path


def test_of_a_packed_directory(tmp_path: Path) -> None:
    model = trained()
    model.pretrained_cfg["label_names"] = list("abcde")
    config = read_config(save_packed(model, tmp_path, "zstd") / CONFIG_NAME)
    assert config.architecture == "test_resnet_tern" and config.num_classes == 5
    assert config.label_names == tuple("abcde") and config.input_size == (3, 160, 160)
    assert config.model_args["packed"] == "zstd"
    assert config.quantization_config == quantization_dict(TernaryConfig(), "zstd")


def test_of_a_float_directory_and_of_timm_alone(tmp_path: Path) -> None:
    model = trained("test_resnet")
    ours = read_config(save_float(model, tmp_path) / CONFIG_NAME)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    theirs = read_config(tmp_path / CONFIG_NAME)
    for config in (ours, theirs):
        assert (config.architecture, config.num_classes) == ("test_resnet", 5)
        assert config.quantization_config is None and config.input_size == (3, 160, 160)


def test_of_transformers(tmp_path: Path) -> None:
    TimmWrapperConfig(architecture="test_resnet", num_labels=5).save_pretrained(tmp_path)
    config = read_config(tmp_path / CONFIG_NAME)
    assert (config.architecture, config.num_classes) == ("test_resnet", 5)
    assert config.model_args == {} and "model_args" in config.nulls
    # timm, which reads the file on its own, would end in an AttributeError.
    for load in (lambda: load_model(str(tmp_path)), config.check_timm_reads):
        with pytest.raises(FileError, match=r"config\.json: .* is null, and timm needs an object"):
            load()


def test_what_is_not_said(tmp_path: Path) -> None:
    path = written(tmp_path, {"architectures": ["ResNet"], "id2label": {}})
    assert read_config(path) == ModelConfig(path)
    with pytest.raises(ValueError, match=r"config\.json: it names no architecture; let timm"):
        read_config(path).check_architecture()


def test_another_architecture(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, {"architecture": "a"}))
    config.check_architecture()
    config.check_architecture("a")
    with pytest.raises(ValueError, match="the weights are those of 'b', not of 'a'"):
        config.check_architecture("b")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("architecture", ["a"], "must be a text, got list"),
        ("num_classes", "5", "must be a whole number, got str"),
        ("num_classes", True, "must be a whole number, got bool"),
        ("model_args", [1], "must be an object, got list"),
        ("pretrained_cfg", "x", "must be an object, got str"),
        ("quantization_config", 1, "must be an object, got int"),
    ],
)
def test_an_entry_of_another_type(tmp_path: Path, key: str, value: Any, words: str) -> None:
    path = written(tmp_path, {"architecture": "a", key: value})
    with pytest.raises(ValueError, match=f"{key} {words}; let timm or timm_ternary") as error:
        read_config(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00"])
def test_no_object(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / CONFIG_NAME
    path.write_bytes(data)
    with pytest.raises(ValueError, match="timm-ternary pack MODEL DIR") as error:
        read_config(path)
    assert str(error.value).startswith(f"{path}: not ") and "\n" not in str(error.value)
