"""Layer decay of a ternary model is that of the float one."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn

import timm_ternary
from timm_ternary.nn.convert import install_, ternarize_
from timm_ternary.nn.state_dict import quantizer_parameter, readable_name, weight_key


def _rates(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Rate and decay of every parameter by its readable name; quantizers' beside their weight's."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(model, 0.05, layer_decay=0.7)
        for p in group["params"]
    }
    for name in list(found):
        if (own := quantizer_parameter(name)) is not None:
            scale, decay = found.pop(name)
            latent = f"{own[0]}.parametrizations.weight.original"
            assert decay == 0.0 and scale == found[latent][0], name
    return {readable_name(name): value for name, value in found.items()}


# Those without group_matcher, and, as a check, two of those that have one.
@pytest.mark.parametrize(
    "name",
    "pit_ti_distilled_224 poolformerv2_s12 csatv2 caformer_s18 mobilenetv5_base".split()
    + "test_resnet test_vit".split(),
)
def test_the_rates_of_layers_are_the_float_models(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        expected = _rates(model)
        assert len({scale for scale, _ in expected.values()}) > 1
        assert _rates(timm.create_model(f"{name}_tern")) == expected
        assert _rates(ternarize_(model, {"method": "ttq", "exclude": ["first"]})) == expected


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_know_their_groups(copied: object) -> None:
    model = timm.create_model("pit_ti_224_tern", num_classes=3)
    assert _rates(copied(model)) == _rates(timm.create_model("pit_ti_224", num_classes=3))


def test_a_new_head_is_in_the_last_group() -> None:
    model = timm.create_model("pit_ti_224_tern", num_classes=3)
    model.late = nn.Linear(2, 2)
    rates = _rates(model)
    assert rates["late.weight"] == (1.0, 0.05) and rates["late.bias"] == (1.0, 0.0)


def test_timms_optimizers_take_the_groups() -> None:
    rates = []
    for name in ("pit_ti_224", "pit_ti_224_tern"):
        model = timm.create_model(name, num_classes=3)
        optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
        rates.append(sorted({group["lr_scale"] for group in optimizer.param_groups}))
    assert rates[0] == rates[1] and len(rates[0]) > 3


def test_models_that_say_their_groups_and_modules_without_any_are_left_alone() -> None:
    model = timm.create_model("test_resnet_tern")
    assert "group_matcher" not in vars(model)
    assert not hasattr(ternarize_(nn.Sequential(nn.Linear(3, 3))), "group_matcher")


def test_a_packed_model_has_the_groups_of_what_is_left() -> None:
    with torch.device("meta"):
        model = timm.create_model("pit_ti_224")
        expected = _rates(model)
        found = _rates(install_(model, timm_ternary.TernaryConfig(), packed=True))
    assert found == {name: expected[name] for name in found} and found
    assert weight_key("patch_embed.conv") not in found
