"""For several files: a good packed directory, and a copy of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from samples import config, trained
from torch import nn

from timm_ternary.checkpoint.directory import save_packed


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A trained model; tests do not change it."""
    return trained(ternary=config("ttq"))


@pytest.fixture(scope="module")
def whole(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good directory."""
    return save_packed(model, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def directory(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "out"))
