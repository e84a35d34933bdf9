"""The latent weights of a packed model in the checkpoints of its training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import trained
from torch import Tensor, nn

import timm_ternary
from timm_ternary.nn.convert import quantizers_of, ternary_layers
from timm_ternary.nn.trainable import latent_weight
from timm_ternary.report.latent import Latent, find_latent


def _checkpoint(run: Path, step: int, state: dict[str, Tensor], name: str = "model") -> Path:
    directory = run / f"checkpoint-{step}"
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: t.contiguous().clone() for k, t in state.items()}, directory / f"{name}.safetensors"
    )
    (directory / "trainer_state.json").write_text("{}")
    return directory


def _nearby(model: nn.Module, size: float) -> dict[str, Tensor]:
    """The state of an earlier step: each latent weight somewhere else."""
    torch.manual_seed(1)
    state = dict(model.state_dict())
    for name, value in state.items():
        if name.endswith("original"):
            state[name] = value + size * value.std() * torch.randn_like(value)
    return state


@pytest.fixture(params=["tga", "ttq"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return trained("resnet8_cifar_tern", ternary=request.param)


def _packed(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(state)
    return timm_ternary.pack_(model)


def test_the_last_checkpoint(model: nn.Module, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    layers = {name: latent_weight(m).clone() for name, m in ternary_layers(model).items()}
    _checkpoint(tmp_path, 9, _nearby(model, 0.1))
    _checkpoint(tmp_path, 10, state)
    packed = _packed(model, state)
    found = find_latent(packed, [tmp_path])
    assert isinstance(found, Latent)
    assert found.agreement == 1 and found.source == f"checkpoint-10 of {tmp_path.name}"
    for name, latent in layers.items():
        assert torch.equal(latent_weight(found.model.get_submodule(name)), latent)
    assert quantizers_of(found.model).keys() == layers.keys() and not quantizers_of(packed)


def test_the_moving_average_and_the_best_checkpoint(model: nn.Module, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    early = _nearby(model, 0.2)
    _checkpoint(tmp_path / "ema", 10, early)
    _checkpoint(tmp_path / "ema", 10, state, "ema")
    _checkpoint(tmp_path / "best", 10, state)
    last = _checkpoint(tmp_path / "best", 20, early)
    # Where the run lay when it was trained.
    said = {"best_model_checkpoint": "/gone/best/checkpoint-10"}
    (last / "trainer_state.json").write_text(json.dumps(said))
    packed = _packed(model, state)
    for name in ("ema", "best"):
        found = find_latent(packed, [tmp_path / name])
        assert isinstance(found, Latent) and found.agreement == 1
        assert found.source == f"checkpoint-10 of {name}"


def test_another_run_is_not_taken_for_its_own(model: nn.Module, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    other = trained("resnet8_cifar_tern", seed=5, ternary=model.conv1.ternary_config)
    _checkpoint(tmp_path / "other", 30, dict(other.state_dict()))
    early = _nearby(model, 0.1)
    packed = _packed(model, state)
    reason = find_latent(packed, [tmp_path / "other"])
    assert isinstance(reason, str) and "the output_dir of its own training" in reason
    _checkpoint(tmp_path / "own", 10, early)
    found = find_latent(packed, [tmp_path / "other", tmp_path / "own"])
    assert isinstance(found, Latent) and found.source == "checkpoint-10 of own"
    assert 0.75 < found.agreement < 1


def test_why_there_are_none(model: nn.Module, tmp_path: Path) -> None:
    small = trained("test_resnet_tern").state_dict()
    packed = _packed(model, dict(model.state_dict()))
    reasons = [find_latent(packed, []), find_latent(packed, [tmp_path])]
    _checkpoint(tmp_path, 10, dict(small))
    reasons.append(find_latent(packed, [tmp_path]))
    weights = tmp_path / "checkpoint-10" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    reasons.append(find_latent(packed, [tmp_path]))
    save_file({"a": torch.ones(1)}, weights)
    reasons.append(find_latent(packed, [tmp_path]))
    words = (
        "--run DIR",
        "--save_strategy epoch",
        "no checkpoint could",
        "not a whole",
        "no latent",
    )
    for reason, part in zip(reasons, words, strict=True):
        assert isinstance(reason, str) and part in reason and "\n" not in reason
        assert len(reason) < 300
