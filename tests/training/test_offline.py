"""Training reaches for the network only where it is told to."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from trainer_models import trainer

from timm_ternary import train


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that were looked up or connected to; each attempt fails."""
    found: list[Any] = []

    def refuse(*args: Any, **_: Any) -> Any:
        found.append(args)
        raise socket.gaierror(socket.EAI_NONAME, "a test has no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return found


def test_a_run_stays_on_this_machine(tmp_path: Path, attempts: list[Any]) -> None:
    recipe = {
        "model": "resnet8_cifar_tern",
        "dataset": "digits",
        "max_train_samples": 32,
        "max_eval_samples": 16,
        "padding": 1,
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    train.main([str(tmp_path / "recipe.yaml")])
    assert (tmp_path / "out" / "checkpoint-2").is_dir() and attempts == []


def test_push_to_hub_is_what_would_contact_the_hub(tmp_path: Path, attempts: list[Any]) -> None:
    """That the test above can fail."""
    with pytest.raises(Exception, match="a test has no network"):
        trainer(tmp_path, push_to_hub=True, hub_model_id="nobody/nothing", hub_token="none")
    assert attempts
