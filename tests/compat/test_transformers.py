"""Canaries: each fails by the name of what it is about when transformers moves."""

from __future__ import annotations

import dataclasses
import inspect
from argparse import ArgumentParser
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer

import timm_ternary.hf as hf
from timm_ternary.compat import transformers as compat
from timm_ternary.training import TernaryTrainer

pytestmark = pytest.mark.canary


@pytest.mark.parametrize("name", compat.TRAINER_HOOKS)
def test_trainer_hooks(name: str) -> None:
    assert callable(getattr(Trainer, name))


def test_trainer_hooks_are_all_that_training_overrides() -> None:
    own = {
        name
        for cls in TernaryTrainer.__mro__[: TernaryTrainer.__mro__.index(Trainer)]
        for name in vars(cls)
        if name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name)
    }
    assert own == set(compat.TRAINER_HOOKS)


@pytest.mark.parametrize(
    "name",
    [
        "_process_model_before_weight_loading",
        "_process_model_after_weight_loading",
        "get_state_dict_and_metadata",
        "param_needs_quantization",
        "remove_quantization_config",
    ],
)
def test_quantizer_hooks(name: str) -> None:
    """What transformers calls on a quantizer, and ours overrides; some releases lack the last."""
    assert name in vars(hf.TernaryHfQuantizer)
    if name != "remove_quantization_config":
        assert callable(getattr(HfQuantizer, name))


def test_mark_loaded_spares_a_module_from_initialization() -> None:
    source = inspect.getsource(PreTrainedModel)
    assert "_is_hf_initialized" in source
    layer = nn.Linear(2, 2)
    compat.mark_loaded(layer)
    assert layer._is_hf_initialized is True
    assert not compat.is_loaded(torch.zeros(1))


def test_overridable_when_loading() -> None:
    assert hf.TernaryQuantizationConfig in auto.LOADING_ATTRIBUTES_CONFIG_TYPES
    assert isinstance(auto.LOADING_ATTRIBUTES_CONFIG_TYPES, tuple)


def test_keeping_renamings() -> None:
    model = SimpleNamespace(_weight_conversions=["one"])
    with compat.keeping_renamings(model):  # type: ignore[arg-type]
        del model._weight_conversions
    assert model._weight_conversions == ["one"]
    bare = SimpleNamespace()
    with compat.keeping_renamings(bare):  # type: ignore[arg-type]
        pass
    assert not vars(bare)


def test_add_parser_field() -> None:
    @dataclasses.dataclass
    class Fields:
        rate: float = 0.5

    parser = ArgumentParser()
    field = dataclasses.fields(Fields)[0]
    field.type = float
    compat.add_parser_field(parser, field)
    assert parser.parse_args(["--rate", "2"]).rate == 2.0
