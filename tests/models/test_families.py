"""The contract of a `_tern` model, over the families of timm: one small model of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._registry import _model_to_module
from torch import Tensor, nn

import timm_ternary  # noqa: F401  (registers the models)
from timm_ternary import quantizers
from timm_ternary.checkpoint.directory import save_packed
from timm_ternary.nn.convert import quantizers_of, ternary_layers
from timm_ternary.nn.packed import PackedWeight
from timm_ternary.nn.trainable import latent_weight

# Constructor arguments that make a model small where timm's smallest of the family is not.
_VIT = dict(embed_dim=96, depth=2, num_heads=3)
_SWIN = dict(embed_dim=48, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
SHRUNK: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": _VIT,
    "cait_xxs24_224": dict(depth=2),
    "deepseek_vit_412m": _VIT,
    "gemma4_vit_167m": _VIT,
    "hiera_tiny_224": dict(stages=(1, 1, 1, 1)),
    "naflexvit_base_patch16_parfac_gap": _VIT,
    "qwen3_vit_88m": _VIT,
    "samvit_base_patch16_224": _VIT,
    "swin_tiny_patch4_window7_224": _SWIN,
    "swinv2_tiny_window8_256": _SWIN,
}
# With the methods: depthwise, grouped and weight-standardized layers, and read but never called.
ODD = """
test_byobnet test_resnet test_vit test_efficientnet test_nfnet beit_base_patch16_224
""".split()
METHODS: dict[str, Any] = {
    **{name: name for name in quantizers.names() if name != "tga"},  # tga: all of FAST
    "tga of two bases": {"method": "tga", "options": {"init_factor": [0.05, 0.2]}},
}
# timm's models for tests; layers that are read but never called; a dozen that differ most.
FAST = """
test_byobnet test_convnext test_convnext2 test_convnext3 test_efficientnet test_efficientnet_evos
test_efficientnet_gn test_efficientnet_ln test_mambaout test_coatnet test_maxvit test_nfnet
test_resnet test_vit test_vit2 test_vit3 test_vit4 test_vit_relpos
beit_base_patch16_224 swinv2_tiny_window8_256 vit_tiny_patch16_dinov3_qkvb
cait_xxs24_224 cspnext_tiny deit_tiny_distilled_patch16_224 dla46x_c edgenext_xx_small
mobilenetv3_small_050 mobilevit_xxs pvt_v2_b0 regnetx_002 resnet8_cifar starnet_s050
swin_tiny_patch4_window7_224
""".split()
SLOW = """
alexnet_bn coat_tiny convit_tiny convmixer_768_32 cpubone_nano crossvit_tiny_240 cs3darknet_focus_s
csatv2 davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet121 dpn48b efficientformer_l1
efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw
fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 gmlp_ti16_224
halonet_h1 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small legacy_seresnet18 legacy_xception
levit_128s lowformer_b0 mobilenetv5_base mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge
nest_tiny nextvit_small pit_ti_224 pnasnet5large poolformerv2_s12 qwen3_vit_88m rdnet_tiny
repghostnet_050 repvit_m1 res2next50 resnest14d resnetv2_18 resnetv2_50x1_bit rexnet_100
sam2_hiera_tiny samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18 swiftformer_xs
swinv2_cr_tiny_ns_224 tf_mobilenetv3_small_minimal_100 tiny_vit_5m_224 tnt_s_legacy_patch16_224
tresnet_m twins_svt_small vgg11_bn visformer_tiny vit_tiny_r_s16_p8_224 vitamin_small_224
volo_d1_224 xception41p xcit_nano_12_p16_224
""".split()


def _input(model: nn.Module) -> Tensor:
    """Two images, as small as the model takes them."""
    config: Any = model.pretrained_cfg
    size = tuple(config["input_size"])
    if not config.get("fixed_input_size") and config["architecture"] != "alexnet_bn_tern":
        size = min(size, tuple(config.get("min_input_size") or (3, 96, 96)))
    return torch.randn(2, *size)


def _decoded(model: nn.Module) -> dict[str, Tensor]:
    """State of the float model whose weights are the quantized ones."""
    state = {k: v for k, v in model.state_dict().items() if ".parametrizations." not in k}
    layers = ternary_layers(model, every_name=True)
    return state | {f"{name}.weight": layer.weight.detach() for name, layer in layers.items()}


def _check(base: str, directory: Path, ternary: Any = None) -> None:
    kwargs = SHRUNK.get(base, {})
    torch.manual_seed(0)
    model = timm.create_model(f"{base}_tern", num_classes=10, ternary=ternary, **kwargs)
    layers = ternary_layers(model)
    hosts = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    assert len(layers) == sum(isinstance(module, hosts) for module in model.modules())
    found = quantizers_of(model)
    for name, layer in layers.items():
        quantizer = found[name]
        # In evaluation mode: admm trains in float.
        rows = quantizer.eval()(latent_weight(layer)).view(quantizer.groups, -1)
        assert max(len(row.unique()) for row in rows) <= 3**quantizer.bases, name

    images = _input(model)
    output = model.train()(images)
    logits = output if isinstance(output, Tensor) else sum(output)  # distilled models return two
    logits.square().sum().backward()
    for name, quantizer in found.items():
        latent = latent_weight(model.get_submodule(name))
        for parameter in (latent, *quantizer.parameters()):
            assert parameter.grad is not None, f"{name}: no gradient: its weight is not used"
            assert torch.isfinite(parameter.grad).all(), name

    # A layer that is read but never called must not compute with its latent weight: the float
    # model with the quantized weights gives the same logits.
    model.eval()
    twin = timm.create_model(base, num_classes=10, **kwargs).eval()
    twin.load_state_dict(_decoded(model))
    with torch.inference_mode():
        expected = model(images)
        assert torch.isfinite(expected).all()
        # Not equal to the last bit: kernels may choose by the alignment of a weight's memory.
        torch.testing.assert_close(twin(images), expected, rtol=1e-4, atol=1e-5)
        save_packed(model, directory)
        reloaded = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
        kinds = {type(layer) for layer in ternary_layers(reloaded).values()}
        assert all(issubclass(kind, PackedWeight) for kind in kinds)
        assert len(ternary_layers(reloaded)) == len(layers)
        assert torch.equal(reloaded(images), expected)


@pytest.mark.parametrize("base", FAST)
def test_contract(base: str, tmp_path: Path) -> None:
    _check(base, tmp_path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", ODD)
def test_contract_of_every_method(base: str, method: str, tmp_path: Path) -> None:
    _check(base, tmp_path, METHODS[method])


@pytest.mark.slow
@pytest.mark.parametrize("base", SLOW)
def test_contract_of_other_families(base: str, tmp_path: Path) -> None:
    _check(base, tmp_path)


def test_every_family_is_covered() -> None:
    assert len({_model_to_module[base] for base in FAST}) >= 20
    covered = {_model_to_module[base] for base in (*FAST, *SLOW)}
    assert covered == set(timm.list_modules()) - {"ternary"}
    tests = set(timm.list_models("test_*", exclude_filters="*_tern"))
    assert tests <= set(FAST), "each test_* model of timm is in the contract test"
