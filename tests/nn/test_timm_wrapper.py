"""transformers' wrapper of a timm model, and what is none."""

from __future__ import annotations

import timm
from torch import nn
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TimmWrapperModel

from timm_ternary.nn.timm_wrapper import is_wrapper, unwrap, wrapper_prefix


def test_both_wrappers() -> None:
    config = TimmWrapperConfig(architecture="test_resnet")
    for cls in (TimmWrapperForImageClassification, TimmWrapperModel):
        wrapper = cls(config)
        inner = unwrap(wrapper)
        assert is_wrapper(wrapper) and inner is wrapper.timm_model
        prefix = wrapper_prefix(wrapper)
        names = {prefix + name for name, _ in inner.named_parameters()}
        assert names == {name for name, _ in wrapper.named_parameters()}


def test_other_models_are_their_own() -> None:
    for model in (timm.create_model("test_resnet"), nn.Linear(2, 2)):
        assert unwrap(model) is model and not is_wrapper(model) and wrapper_prefix(model) == ""
