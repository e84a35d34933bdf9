"""What timm tests of every model (its tests/test_models.py), here of `_tern` names.

Each check runs on the float model first, which shows that it checks something, and then on both
forms of the ternary one.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import (
    convert_splitbn_model,
    convert_sync_batchnorm,
    create_feature_extractor,
    get_graph_node_names,
)
from timm.models import FeatureGraphNet
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.utils import AttentionExtract, ModelEmaV3, freeze, reparameterize_model, unfreeze
from torch import Tensor, nn

import timm_ternary  # noqa: F401  (registers the models)
from timm_ternary.nn.convert import quantizers_of
from timm_ternary.nn.state_dict import readable_name

NAMES = ("test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_byobnet")
SIZE = 64
Make = Callable[..., nn.Module]


def _images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def _maker(name: str, **form: Any) -> Make:
    def make(**options: Any) -> nn.Module:
        torch.manual_seed(0)
        if "vit" in name:
            options.setdefault("img_size", SIZE)
        return timm.create_model(name, **form, **options).eval()

    return make


def _config(make: Make) -> dict[str, Any]:
    config: Any = make().pretrained_cfg
    return dict(config)


def _trains(model: nn.Module, output: Tensor) -> None:
    output.mean().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without and all(p.grad.isfinite().all() for p in model.parameters())


def forward(make: Make) -> None:
    """test_model_forward."""
    output = make()(_images())
    assert output.shape == (2, 1000) and not output.isnan().any()


def backward(make: Make) -> None:
    """test_model_backward: every parameter gets a gradient."""
    model = make(num_classes=42).train()
    output = model(_images())
    assert output.shape[-1] == 42
    _trains(model, output)


def default_cfg(make: Make) -> None:
    """test_model_default_cfgs: the names it states are layers, and have weights."""
    model, config = make(), _config(make)
    # The state dict calls a latent weight by another name than ``<layer>.weight`` (FORMAT.md).
    names = {readable_name(name) for name in model.state_dict()}
    names |= {name.replace("weight_packed", "weight") for name in names}
    for key in ("classifier", "first_conv"):
        stated = config[key]
        for name in (stated,) if isinstance(stated, str) else stated:
            assert f"{name}.weight" in names
            assert model.get_submodule(name).weight.ndim > 1
    assert model.num_classes == config["num_classes"] == 1000
    assert model.num_features and model.head_hidden_size


def features_then_head(make: Make) -> None:
    """test_model_default_cfgs: forward_features, forward_head."""
    model = make()
    features = model.forward_features(_images())
    assert torch.equal(model.forward_head(features), model(_images()))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)


def classifier(make: Make) -> None:
    """test_model_default_cfgs: get_classifier, reset_classifier, num_classes=0, global_pool=''."""
    model = make()
    assert model.get_classifier().weight.shape[0] == 1000
    model.reset_classifier(9)
    assert model(_images()).shape == (2, 9)
    assert model.get_classifier().out_features == model.num_classes == 9
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    pooled = model(_images())
    assert pooled.shape == (2, model.head_hidden_size)
    assert make(num_classes=0)(_images()).shape == pooled.shape
    model.reset_classifier(0, "")
    assert model(_images()).ndim > 2
    bare = make(num_classes=0, global_pool="")
    assert bare(_images()).shape == model(_images()).shape


def feature_pyramid(make: Make) -> None:
    """test_model_forward_features."""
    model = make(features_only=True)
    found = model(_images())
    channels = model.feature_info.channels()
    assert [len(map_[0]) for map_ in found] == channels and len(channels) > 1
    picked = make(features_only=True, out_indices=(0, -2))(_images())
    assert [map_.shape for map_ in picked] == [found[0].shape, found[-2].shape]


def intermediates(make: Make) -> None:
    """test_model_forward_intermediates."""
    model = make()
    final, found = model.forward_intermediates(_images())
    assert torch.equal(final, model.forward_features(_images())) and len(found) > 1
    some = model.forward_intermediates(_images(), indices=[1], intermediates_only=True)
    assert torch.equal(some[0], found[1])
    model.prune_intermediate_layers([1], prune_norm=False, prune_head=True)
    kept = model.forward_intermediates(_images(), intermediates_only=True)
    assert torch.equal(kept[1], found[1])


def other_channels(make: Make) -> None:
    """test_model_default_cfgs_non_std: in_chans."""
    assert make(in_chans=1)(_images(1)).shape == (2, 1000)


def traced(make: Make) -> None:
    """test_model_forward_torchscript, by trace; for script see `test_scripting_is_refused`."""
    model = make(exportable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; constants of shapes
        script = torch.jit.trace(model, _images(), check_trace=False)
    torch.testing.assert_close(script(_images() * 2), model(_images() * 2))


def graph(make: Make) -> None:
    """test_model_forward_fx, test_model_backward_fx, FeatureGraphNet."""
    model = make()
    nodes = get_graph_node_names(model)
    made = create_feature_extractor(model, [nodes[1][-1]])
    assert torch.equal(next(iter(made(_images()).values())), model(_images()))
    assert len(FeatureGraphNet(model, (0, 1))(_images())) == 2


def graph_backward(make: Make) -> None:
    """test_model_backward_fx."""
    model = make().train()
    nodes = get_graph_node_names(model)
    made = create_feature_extractor(model, [nodes[0][-1]]).train()
    _trains(made, next(iter(made(_images()).values())))


def checkpointed(make: Make) -> None:
    """set_grad_checkpointing gives the same gradients."""
    gradients = []
    for enable in (False, True):
        model = make(num_classes=5).train()
        if "drop_path" in str(model):
            model.eval()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        model(_images()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def restored(make: Make) -> None:
    """The state dict round trip, strict."""
    model, other = make(), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    result = other.load_state_dict(torch.load(file, weights_only=True))
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(other(_images()), model(_images()))


def copied(make: Make) -> None:
    """copy.deepcopy, pickle, torch.save of the whole model, ModelEmaV3."""
    model, expected = make(), make()(_images())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
        ModelEmaV3(model).module,
    ):
        assert twin is not model and torch.equal(twin.eval()(_images()), expected)
        assert twin.pretrained_cfg == model.pretrained_cfg


def moved(make: Make) -> None:
    """create_model(dtype=..., device=...), .to, .half, channels_last."""
    assert make(dtype=torch.bfloat16)(_images().bfloat16()).dtype == torch.bfloat16
    assert make().bfloat16()(_images().bfloat16()).dtype == torch.bfloat16
    with torch.device("meta"):
        assert make()(_images().to("meta")).shape == (2, 1000)
    model = make()
    expected = model(_images())
    last = model.to(memory_format=torch.channels_last)(
        _images().to(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(last, expected, rtol=1e-3, atol=1e-4)


def frozen(make: Make) -> None:
    """timm.utils.freeze, unfreeze."""
    model = make()
    freeze(model)
    assert not any(p.requires_grad for p in model.parameters())
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())


def grouped(make: Make) -> None:
    """create_optimizer_v2 with and without layer decay holds every parameter once."""
    model = make()
    names = {id(p) for p in model.parameters()}
    for groups in (
        param_groups_weight_decay(model, 0.1),
        param_groups_layer_decay(model, 0.1),
        create_optimizer_v2(model, "adamw", lr=0.1, layer_decay=0.5).param_groups,
    ):
        held = [id(p) for group in groups for p in group["params"]]
        assert sorted(held) == sorted(names)
    if hasattr(model, "group_matcher"):
        assert model.group_matcher(coarse=True) is not None


def converted(make: Make) -> None:
    """convert_sync_batchnorm, convert_splitbn_model, reparameterize_model, init_weights."""
    expected = make()(_images())
    assert torch.equal(convert_sync_batchnorm(make()).eval()(_images()), expected)
    assert torch.equal(convert_splitbn_model(make()).eval()(_images()), expected)
    assert reparameterize_model(make()).eval()(_images()).shape == expected.shape
    make(drop_rate=0.1, drop_path_rate=0.1).train()(_images())


def watched(make: Make) -> None:
    """AttentionExtract: hooks on layers by name."""
    model = make()
    hosts = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    found = AttentionExtract(model, names=hosts[:2], method="hook")(_images())
    assert list(found) == hosts[:2]


CHECKS = (
    forward, backward, default_cfg, features_then_head, classifier, feature_pyramid, intermediates,
    other_channels, traced, graph, graph_backward, checkpointed, restored, copied, moved,
    frozen, grouped, converted, watched,
)  # fmt: skip
TRAINS = (backward, graph_backward, checkpointed, frozen, grouped)
HEAVY = (traced, graph, graph_backward, moved)


def _cases() -> list[Any]:
    """Two models, and the others where a check is quick or somebody has asked for -m slow."""
    return [
        pytest.param(
            check,
            name,
            id=f"{check.__name__}-{name}",
            marks=[pytest.mark.slow] if name not in NAMES[: 1 if check in HEAVY else 2] else [],
        )
        for check in CHECKS
        for name in NAMES
    ]


@pytest.mark.parametrize(("check", "base"), _cases())
def test_as_the_float_model(check: Callable[[Make], None], base: str) -> None:
    check(_maker(base))
    check(_maker(f"{base}_tern"))
    if check not in TRAINS:  # a packed model is for inference
        check(_maker(f"{base}_tern", packed=True))


@pytest.mark.parametrize("form", [{}, {"packed": True}])
def test_scripting_is_refused_in_one_line(form: dict[str, Any]) -> None:
    """Deprecated by torch, and README says so: no compiled form of a property."""
    model = _maker("test_resnet_tern", **form)(scriptable=True)
    with pytest.raises(ValueError, match=r"torch\.jit\.trace\(model, images\)") as error:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(model)
    assert "\n" not in str(error.value)
    assert torch.equal(model(_images()), _maker("test_resnet_tern", **form)()(_images()))


def test_the_modules_are_those_of_the_float_model() -> None:
    for base in NAMES:
        plain = {name for name, _ in _maker(base)().named_modules()}
        ternary = _maker(f"{base}_tern")()
        names = {name for name, _ in ternary.named_modules() if "parametrizations" not in name}
        assert names == plain and quantizers_of(ternary).keys() <= plain
        assert {name for name, _ in _maker(f"{base}_tern", packed=True)().named_modules()} == plain
