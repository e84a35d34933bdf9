"""CIFAR ResNets: the paper's sizes, timm's contract, checkpoints of the published layout."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.data import resolve_data_config

from timm_ternary.models.resnet_cifar import PadShortcut, ResNetCifar, checkpoint_filter_fn

DEPTHS = (8, 14, 20, 32, 44, 56)
ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").exists())
SHARED = ROOT.parent / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "weights").is_dir() or not (SHARED / "data" / "cifar10").is_dir(),
    reason=f"needs the CIFAR-10 files and weights in {SHARED}",
)


def images(count=2, channels=3, size=32, seed=0):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def published_layout(model):
    """The model's weights under the key names of the published checkpoints."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    return {k.replace("fc.", "linear."): v for k, v in state.items()}


def trained(name="resnet8_cifar"):
    """A model whose batch norms and classifier differ from a fresh one's."""
    model = timm.create_model(name)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return model.eval()


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (8, None), (14, None)]
)
def test_parameter_counts_are_the_layers_sums(depth, millions):
    n = (depth - 2) // 6
    stem = 3 * 16 * 9 + 2 * 16
    total = stem + 64 * 10 + 10
    for stage, width in enumerate((16, 32, 64)):
        first = (width // 2 if stage else width) * width * 9
        total += first + (2 * n - 1) * width * width * 9 + 2 * n * 2 * width
    model = timm.create_model(f"resnet{depth}_cifar")
    assert sum(p.numel() for p in model.parameters()) == total
    if millions is not None:  # He et al. 2016, table 6
        assert round(total / 1e6, 2) == millions
    weighted = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(weighted) == depth


def test_the_shortcut_subsamples_and_pads_with_zero_channels():
    x = images(channels=4, size=6)
    y = PadShortcut(4, 10, 2)(x)
    assert y.shape == (2, 10, 3, 3)
    assert torch.equal(y[:, 3:7], x[:, :, ::2, ::2])
    assert torch.count_nonzero(y[:, :3]) == torch.count_nonzero(y[:, 7:]) == 0


def test_forward_is_the_papers_network():
    model = trained()
    x = images()

    def conv_bn(x, conv, bn, stride=1):
        x = F.conv2d(x, conv.weight, stride=stride, padding=1)
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    y = conv_bn(x, model.conv1, model.bn1).relu()
    for stage, width in ((model.layer1, 16), (model.layer2, 32), (model.layer3, 64)):
        block, stride = stage[0], 1 if width == 16 else 2
        branch = conv_bn(y, block.conv1, block.bn1, stride).relu()
        branch = conv_bn(branch, block.conv2, block.bn2)
        if stride == 2:
            quarter = torch.zeros(2, width // 4, *branch.shape[-2:])
            y = torch.cat([quarter, y[:, :, ::2, ::2], quarter], 1)
        y = (branch + y).relu()
    expected = y.mean((2, 3)) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_registered_configuration(depth):
    name = f"resnet{depth}_cifar"
    assert timm.is_model(name) and not timm.is_model_pretrained(name)
    model = timm.create_model(name)
    config = resolve_data_config({}, model=model)
    assert config["input_size"] == (3, 32, 32) and config["crop_pct"] == 1.0
    assert config["mean"] == (0.485, 0.456, 0.406) and config["std"] == (0.229, 0.224, 0.225)
    cfg = model.pretrained_cfg
    assert (cfg["first_conv"], cfg["classifier"], cfg["num_classes"]) == ("conv1", "fc", 10)
    assert model.get_classifier(name_only=True) == "fc" and model.get_classifier() is model.fc
    with torch.inference_mode():
        features = model.eval().forward_features(images())
    assert features.shape == (2, 64, *cfg["pool_size"])


def test_heads():
    model = trained()
    x = images()
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model(x), model.fc(pooled))
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(7, "catavgmax")
    assert model(x).shape == (2, 7)
    assert model.head_hidden_size == 2 * model.num_features == 128
    assert not model.fc.training


def test_num_classes_in_chans_and_small_images():
    model = timm.create_model("resnet8_cifar", num_classes=4, in_chans=1)
    assert model(images(channels=1, size=8)).shape == (2, 4)
    assert model.conv1.weight.shape == (16, 1, 3, 3)


def test_drop_rate_acts_in_training_only():
    model = trained()
    model.drop_rate = 0.5
    x = images()
    assert torch.equal(model(x), model(x))
    features = model.forward_features(x)
    model.train()
    dropped = model.forward_head(features, pre_logits=True)
    kept = dropped != 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(dropped[kept], 2 * features.mean((2, 3))[kept])


@pytest.mark.parametrize("feature_cls", ["list", "hook", "getter"])
def test_features_only_agrees_with_the_model(feature_cls):
    model = trained()
    x = images()
    last, expected = model.forward_intermediates(x)
    assert torch.equal(last, expected[-1])
    assert torch.equal(last, model.forward_features(x))
    wrapped = timm.create_model(
        "resnet8_cifar",
        features_only=True,
        feature_cls=feature_cls,
        out_indices=(0, 2, 3),
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": model.state_dict()},
    ).eval()
    got = wrapped(x)
    assert wrapped.feature_info.channels() == [f.shape[1] for f in got] == [16, 32, 64]
    assert wrapped.feature_info.reduction() == [32 // f.shape[-1] for f in got] == [1, 2, 4]
    for feature, index in zip(got, (0, 2, 3), strict=True):
        torch.testing.assert_close(feature, expected[index])


def test_intermediates_stop_early_and_prune():
    model = trained()
    x = images()
    _, every = model.forward_intermediates(x)
    (early,) = model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True)
    assert torch.equal(early, every[1])
    assert model.prune_intermediate_layers([2]) == [2]
    assert torch.equal(model(x), every[2]) and model.num_features == 32
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_gradient_checkpointing_changes_no_gradient():
    plain = timm.create_model("resnet8_cifar")
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(images()).square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_group_matcher_covers_the_network():
    model = timm.create_model("resnet14_cifar")
    groups = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert groups["conv1.weight"] == groups["bn1.bias"] == 0
    blocks = [groups[f"layer{s}.{b}.conv1.weight"] for s in (1, 2, 3) for b in (0, 1)]
    assert blocks == [1, 2, 3, 4, 5, 6]
    coarse = timm.models.group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert [coarse[f"layer{s}.1.conv1.weight"] for s in (1, 2, 3)] == [1, 2, 3]


def test_convolutions_start_kaiming_normal():
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar")
    for conv in (model.layer2[1].conv1, model.layer3[1].conv2):
        fan_in = conv.in_channels * 9
        assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_filter_renames_the_published_layout(prefix):
    model = trained()
    state = {prefix + k: v for k, v in published_layout(model).items()}
    assert f"{prefix}linear.weight" in state
    renamed = checkpoint_filter_fn(state, model)
    assert renamed.keys() == model.state_dict().keys()
    assert f"{prefix}linear.weight" in state  # the argument is left as it was


@pytest.mark.parametrize("how", ["overlay", "checkpoint_path"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_of_the_published_layout_load(tmp_path, prefix, how):
    model = trained()
    file = str(tmp_path / "weights.safetensors")
    save_file({prefix + k: v for k, v in published_layout(model).items()}, file)
    if how == "overlay":
        kwargs = {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}
    else:
        kwargs = {"checkpoint_path": file}
    loaded = timm.create_model("resnet8_cifar", **kwargs).eval()
    assert torch.equal(loaded(images()), model(images()))


def test_loading_adapts_classes_and_channels(tmp_path):
    model = trained()
    file = str(tmp_path / "weights.safetensors")
    save_file(published_layout(model), file)
    overlay = {"file": file}
    loaded = timm.create_model(
        "resnet8_cifar",
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        num_classes=3,
        in_chans=1,
    )
    assert torch.equal(loaded.layer3[0].conv2.weight, model.layer3[0].conv2.weight)
    expected = model.conv1.weight.sum(1, keepdim=True)
    torch.testing.assert_close(loaded.conv1.weight, expected)
    assert loaded.fc.weight.shape == (3, 64)


def test_a_strict_load_still_refuses_foreign_keys_and_copies_load_too():
    model = trained()
    state = published_layout(model)
    twin = copy.deepcopy(timm.create_model("resnet8_cifar"))
    twin.load_state_dict(state)
    assert torch.equal(twin.fc.weight, model.fc.weight) and "linear.weight" in state
    with pytest.raises(RuntimeError, match=r"linear2\.weight"):
        twin.load_state_dict({**state, "linear2.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"fc\.bias"):
        twin.load_state_dict({k: v for k, v in state.items() if k != "linear.bias"})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layers": (3, 3)}, r"three entries.*got \(3, 3\) and \(16, 32, 64\)"),
        ({"channels": (16, 32)}, r"three entries.*got \(3, 3, 3\) and \(16, 32\)"),
        ({"channels": (64, 32, 16)}, r"must not shrink.*got \(64, 32, 16\)"),
    ],
)
def test_wrong_stages_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ResNetCifar(**kwargs)


def accuracy(depth, rows):
    """Fraction of right answers of the published weights on the first test images."""
    parquet = pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    table = parquet.read_table(SHARED / "data" / "cifar10" / "test.parquet").slice(0, rows)
    decoded = [image.open(io.BytesIO(entry["bytes"])) for entry in table["img"].to_pylist()]
    pixels = np.stack([np.asarray(entry.convert("RGB")) for entry in decoded])
    file = str(SHARED / "weights" / f"resnet{depth}_cifar10_fp.safetensors")
    model = timm.create_model(
        f"resnet{depth}_cifar", pretrained=True, pretrained_cfg_overlay={"file": file}
    ).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        predicted = torch.cat([model(batch).argmax(1) for batch in x.split(250)])
    return (predicted == torch.tensor(table["label"].to_pylist())).float().mean().item()


@pytest.mark.shared_data
@needs_shared
def test_published_weights_reach_their_accuracy_on_a_tenth_of_the_test_split():
    # Measured: 913 of the first 1000, 9173 of all 10000.
    assert accuracy(20, 1000) == pytest.approx(0.913, abs=0.003)


@pytest.mark.slow
@pytest.mark.shared_data
@needs_shared
@pytest.mark.parametrize(
    ("depth", "expected"), [(20, 0.9173), (32, 0.9263), (44, 0.9310), (56, 0.9339)]
)
def test_published_weights_reach_their_accuracy(depth, expected):
    assert accuracy(depth, 10_000) == pytest.approx(expected, abs=0.001)
