"""Both files of a model come from one commit of the Hub, however many are made meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import Hub
from huggingface_hub import CommitOperationAdd, HfApi
from samples import edit_config, outputs, trained
from torch import nn

from timm_ternary.checkpoint import save_packed
from timm_ternary.checkpoint.config_json import CONFIG_NAME
from timm_ternary.checkpoint.pair import WAITING_NAME
from timm_ternary.checkpoint.weights_file import WEIGHTS_NAME
from timm_ternary.hub import push
from timm_ternary.hub.push import push_to_hub
from timm_ternary.models import names, sources
from timm_ternary.models.names import load_model
from timm_ternary.models.starting_weights import find_weights

REPO = "me/model"


def versions(name: str) -> tuple[nn.Module, nn.Module]:
    """Two models of one architecture with other weights, classes and preprocessing."""
    old, new = trained(name), trained(name, seed=4, num_classes=7)
    new.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    return old, new


def stock(name: str) -> nn.Module:
    return timm.create_model(name, pretrained=True)


@pytest.mark.parametrize("load", [stock, load_model])
def test_a_branch_that_moves_between_the_two_requests(
    load: Callable[[str], nn.Module], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = versions("test_resnet_tern")
    push_to_hub(old, REPO)
    real: Any = sources.weights_path

    def moved(*args: Any) -> Path:
        """Somebody publishes after config.json was read, before the weights are."""
        monkeypatch.setattr("timm_ternary.models.ternary.weights_path", real)
        push_to_hub(new, REPO)
        return real(*args)

    monkeypatch.setattr("timm_ternary.models.ternary.weights_path", moved)
    loaded = load(f"hf-hub:{REPO}")
    assert torch.equal(outputs(loaded), outputs(old)) and loaded.num_classes == 5
    loaded = load(f"hf-hub:{REPO}")
    assert torch.equal(outputs(loaded), outputs(new)) and loaded.num_classes == 7
    assert loaded.pretrained_cfg["hf_hub_id"] == REPO


def test_of_a_float_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm asks for the files itself, of the commit that we tell it."""
    old, new = versions("test_resnet")
    push_to_hub(old, REPO)
    real = names.one_commit

    def moved(*args: Any) -> str:
        found = real(*args)
        push_to_hub(new, REPO)
        return found

    monkeypatch.setattr(names, "one_commit", moved)
    loaded = load_model(f"hf-hub:{REPO}")
    assert torch.equal(outputs(loaded), outputs(old))
    assert loaded.pretrained_cfg["hf_hub_id"] == REPO


def test_weights_to_start_from(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = versions("test_resnet_tern")
    push_to_hub(old, REPO)
    first = find_weights(f"hf-hub:{REPO}")
    push_to_hub(new, REPO)
    assert len(first._read().tensors["fc.bias"]) == 5
    assert len(find_weights(f"hf-hub:{REPO}")._read().tensors["fc.bias"]) == 7


def test_a_commit_that_mixes_two_versions_is_refused(hub: Hub, tmp_path: Path) -> None:
    """As of an upload that changes one file alone."""
    push_to_hub(versions("test_resnet_tern")[0], REPO)
    save_packed(versions("test_resnet_tern")[1], tmp_path)
    HfApi().create_commit(
        REPO,
        [CommitOperationAdd(WEIGHTS_NAME, tmp_path / WEIGHTS_NAME)],
        commit_message="one file",
    )
    for load in (stock, load_model):
        with pytest.raises(ValueError, match=rf"another config\.json.*hf-hub:{REPO}@COMMIT"):
            load(f"hf-hub:{REPO}")


def test_a_revision_that_is_asked_for(hub: Hub) -> None:
    old, new = versions("test_resnet_tern")
    for model in (old, new):
        push_to_hub(model, REPO)
    first = list(hub.repositories[REPO].commits)[1]
    for load in (stock, load_model):
        assert torch.equal(outputs(load(f"hf-hub:{REPO}@{first}")), outputs(old))
        assert torch.equal(outputs(load(f"hf-hub:{REPO}@main")), outputs(new))


def test_shards(hub: Hub, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    model = trained()
    load = AutoModelForImageClassification.from_pretrained
    load(save_packed(model, tmp_path / "one")).save_pretrained(
        tmp_path / "shards", max_shard_size="60KB"
    )
    HfApi().create_repo(REPO)
    files = sorted((tmp_path / "shards").iterdir())
    assert len(files) > 3
    HfApi().create_commit(
        REPO, [CommitOperationAdd(path.name, path) for path in files], commit_message="shards"
    )
    for loaded in (stock(f"hf-hub:{REPO}"), load_model(f"hf-hub:{REPO}")):
        torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-5, atol=1e-6)


def test_what_a_killed_save_left_is_published_under_its_name(hub: Hub, tmp_path: Path) -> None:
    old, new = versions("test_resnet_tern")
    save_packed(old, tmp_path / "run")
    save_packed(new, tmp_path / "new")
    shutil.copy(tmp_path / "new" / CONFIG_NAME, tmp_path / "run")
    shutil.copy(tmp_path / "new" / WEIGHTS_NAME, tmp_path / "run" / WAITING_NAME)
    push.push_directory(tmp_path / "run", REPO)
    found = hub.repositories[REPO].files()
    assert found[WEIGHTS_NAME] == (tmp_path / "new" / WEIGHTS_NAME).read_bytes()
    assert WAITING_NAME not in found
    edit_config(tmp_path / "run", lambda values: values.update(num_classes=9), signed=False)
    with pytest.raises(ValueError, match=r"config\.json"):
        push.push_directory(tmp_path / "run", REPO)
