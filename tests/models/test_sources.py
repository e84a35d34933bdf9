"""Tensors against the model that config.json describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from samples import edit_config, rewrite, trained
from torch import nn

from timm_ternary.checkpoint.directory import save_packed


@pytest.mark.parametrize("asked", [{}, {"num_classes": 3}, {"in_chans": 1}])
def test_what_timm_adapts_is_no_difference(asked: dict[str, Any], tmp_path: Path) -> None:
    directory = save_packed(trained(), tmp_path)
    rewrite(directory, lambda tensors: tensors.update({"bn1.bias": torch.zeros(9)}))
    with pytest.raises(ValueError, match=r"disagrees with the tensors: bn1\.bias has the shape"):
        timm.create_model(f"local-dir:{directory}", pretrained=True, **asked)


@pytest.mark.parametrize("features", [True, False])
def test_features_of_a_file_that_does_not_fit(features: bool, tmp_path: Path) -> None:
    directory = save_packed(trained(), tmp_path)
    rewrite(directory, lambda tensors: tensors.update({"bn1.bias": torch.zeros(9)}))
    kwargs: dict[str, Any] = {"features_only": True, "out_indices": (1, 3)} if features else {}
    with pytest.raises(ValueError, match=f"{directory}: config.json disagrees .*: bn1.bias") as e:
        timm.create_model(f"local-dir:{directory}", pretrained=True, **kwargs)
    assert "missing" not in str(e.value) and "too many" not in str(e.value)


def test_another_error_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = save_packed(trained(), tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error(s) in loading state_dict: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            timm.create_model(f"local-dir:{directory}", pretrained=True)
    edit_config(directory, lambda values: values["model_args"].update(block_args={"x": 1}))
    with pytest.raises(ValueError, match=r"timm cannot build the model of config.json: TypeError"):
        timm.create_model(f"local-dir:{directory}", pretrained=True)
