"""AlexNet-BN: layer sizes of DoReFa-Net's program, timm's contract."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from timm_ternary.models.alexnet import AlexNet


def images(count=2, channels=3, size=224):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, size, size, generator=generator)


@pytest.fixture(scope="module")
def shared_model():
    """One network for the tests that do not change it (61 M parameters take a second to draw)."""
    torch.manual_seed(0)
    return timm.create_model("alexnet_bn").eval()


def empty(**kwargs):
    """The network without memory: for shapes and structure."""
    return AlexNet(device="meta", **kwargs)


def test_parameter_count_is_the_layers_sum(shared_model):
    convs = 3 * 96 * 144 + 48 * 256 * 25 + 256 * 384 * 9 + 192 * 384 * 9 + 192 * 256 * 9
    norms = 2 * (256 + 384 + 384 + 256 + 4096 + 4096)
    linears = 256 * 6 * 6 * 4096 + 4096 * 4096 + 4096 * 1000 + 1000
    assert sum(p.numel() for p in shared_model.parameters()) == convs + norms + linears
    assert not [m for m in shared_model.modules() if isinstance(m, nn.Dropout)]


def test_only_the_classifier_has_a_bias_and_every_layer_between_a_batch_norm():
    model = empty()
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert [layer.bias is not None for layer in layers] == [False] * 7 + [True]
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d))]
    assert [norm.num_features for norm in norms] == [256, 384, 384, 256, 4096, 4096]
    assert {norm.eps for norm in norms} == {1e-4}


def test_forward_is_the_published_network(shared_model):
    """The program's order and TensorFlow's SAME padding, written out."""
    m, x = shared_model, images()

    def norm(x, bn):
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-4)

    def pool(x, left, right):
        return F.max_pool2d(F.pad(x, (left, right, left, right), value=-torch.inf), 3, 2)

    with torch.inference_mode():
        y = F.conv2d(x, m.layer1.conv.weight, stride=4).relu()
        assert y.shape == (2, 96, 54, 54)
        y = F.conv2d(y, m.layer2.conv.weight, padding=2, groups=2)
        y = pool(norm(y, m.layer2.bn), 0, 1).relu()
        assert y.shape == (2, 256, 27, 27)
        y = F.conv2d(y, m.layer3.conv.weight, padding=1)
        y = pool(norm(y, m.layer3.bn), 1, 1).relu()
        assert y.shape == (2, 384, 14, 14)
        y = norm(F.conv2d(y, m.layer4.conv.weight, padding=1, groups=2), m.layer4.bn).relu()
        y = F.conv2d(y, m.layer5.conv.weight, padding=1, groups=2)
        y = pool(norm(y, m.layer5.bn), 0, 0).relu()
        assert y.shape == (2, 256, 6, 6)
        y = norm(y.flatten(1) @ m.pre_logits.fc1.weight.T, m.pre_logits.bn1).relu()
        y = norm(y @ m.pre_logits.fc2.weight.T, m.pre_logits.bn2).relu()
        torch.testing.assert_close(m.forward_head(m.forward_features(x), pre_logits=True), y)
        torch.testing.assert_close(m(x), y @ m.fc.weight.T + m.fc.bias)


def test_the_registered_configuration(shared_model):
    cfg = shared_model.pretrained_cfg
    assert (cfg["input_size"], cfg["pool_size"], cfg["num_classes"]) == (
        (3, 224, 224),
        (6, 6),
        1000,
    )
    assert shared_model.get_submodule(cfg["first_conv"]) is shared_model.layer1.conv
    assert shared_model.get_submodule(cfg["classifier"]) is shared_model.get_classifier()
    assert shared_model.get_classifier(name_only=True) == cfg["classifier"]
    assert not timm.is_model_pretrained("alexnet_bn")


def test_num_classes_and_in_chans_reach_the_model_through_timm():
    model = timm.create_model("alexnet_bn", num_classes=3, in_chans=1, device="meta")
    assert model(images(channels=1).to("meta")).shape == (2, 3)


def test_reset_classifier():
    model = empty(num_classes=7).eval()
    x = images().to("meta")
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size) == (2, 4096)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5) and model.num_classes == 5
    assert not model.fc.training and model.fc.weight.device.type == "meta"
    with pytest.raises(ValueError, match=r"no pooling to choose.*got 'avg'"):
        model.reset_classifier(5, "avg")


def test_drop_rate_acts_in_training_only():
    model = empty(drop_rate=0.5)
    model.pre_logits, model.fc = nn.Identity(), nn.Identity()
    features = torch.ones(2, 256, 6, 6)
    assert set(model.forward_head(features).unique().tolist()) == {0.0, 2.0}
    assert torch.equal(model.eval().forward_head(features), features.flatten(1))


def test_features_only_agrees_with_the_model(shared_model):
    x = images(1)
    with torch.inference_mode():
        last, expected = shared_model.forward_intermediates(x)
        assert torch.equal(last, shared_model.forward_features(x))
        early = shared_model.forward_intermediates(
            x, [0, 1], stop_early=True, intermediates_only=True
        )
    assert [torch.equal(a, b) for a, b in zip(early, expected, strict=False)] == [True, True]
    wrapped = timm.create_model("alexnet_bn", features_only=True, out_indices=(0, 2, 3)).eval()
    convs = {k: v for k, v in shared_model.state_dict().items() if k.startswith("layer")}
    wrapped.load_state_dict(convs)
    with torch.inference_mode():
        got = wrapped(x)
    assert wrapped.feature_info.channels() == [f.shape[1] for f in got] == [96, 384, 256]
    assert wrapped.feature_info.reduction() == [4, 16, 32]
    for feature, index in zip(got, (0, 2, 3), strict=True):
        assert torch.equal(feature, expected[index])


def test_forward_intermediates_refuses_other_layouts():
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NHWC'"):
        empty().forward_intermediates(images().to("meta"), output_fmt="NHWC")


def test_gradient_checkpointing_changes_no_gradient():
    plain = empty()
    plain.pre_logits, plain.fc = nn.Identity(), nn.Identity()  # the head is no part of it
    plain.to_empty(device="cpu").init_weights()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model.forward_features(images(size=64)).square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_group_matcher_orders_the_layers():
    model = empty()
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    order = [groups[f"layer{i}.conv.weight"] for i in range(1, 6)]
    assert order == sorted(order) and order[0] == 0 and len(set(order)) == 5


def test_layers_start_kaiming_normal(shared_model):
    for layer, fan_in in ((shared_model.layer4.conv, 192 * 9), (shared_model.pre_logits.fc2, 4096)):
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)


def test_wrong_image_sizes_are_named():
    with pytest.raises(ValueError, match="6 x 6, got 3 x 3; resize them to 224 x 224"):
        empty()(images(size=128).to("meta"))
    with pytest.raises(ValueError, match=r"no pooling to choose.*got 'max'"):
        empty(global_pool="max")
