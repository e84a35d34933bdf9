"""ResNets for CIFAR (He et al., CVPR 2016, section 4.2), which timm lacks, in timm's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import create_classifier, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..compat.timm import take_indices

__all__ = ["ResNetCifar"]

STAGES = ("layer1", "layer2", "layer3")


class PadShortcut(nn.Module):
    """The shortcut without parameters (the paper's option A).

    Every `stride`-th pixel, and zero channels up to `out_chs`, half of them before the input's and
    half after (as in the published CIFAR checkpoints): ``(B, in, H, W) -> (B, out, H/s, W/s)``.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_chs - in_chs) // 2
        self.pad = (0, 0, 0, 0, before, out_chs - in_chs - before)

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.pad)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``(B, in, H, W) -> (B, out, H/stride, W/stride)``."""

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(out_chs, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False, **dd)
        self.bn2 = nn.BatchNorm2d(out_chs, **dd)
        same = stride == 1 and in_chs == out_chs
        self.shortcut = nn.Identity() if same else PadShortcut(in_chs, out_chs, stride)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act2(y + self.shortcut(x))


class ResNetCifar(nn.Module):
    """CIFAR ResNet of depth ``2 * sum(layers) + 2`` (He et al. 2016, section 4.2).

    Three stages of basic blocks at strides 1, 2 and 4, shortcuts without parameters, global
    average pooling, one linear layer. Input ``(B, in_chans, H, W)``, output ``(B, num_classes)``.

    Args:
        layers: Blocks in each stage; n, n, n makes depth 6n + 2.
        channels: Channels of each stage.
        num_classes: 0 removes the classifier.
        in_chans: Channels of the input.
        global_pool: timm's pool type; ``""`` (with ``num_classes=0``) keeps the feature map.
        drop_rate: Dropout before the classifier.
        device: Where the parameters are made.
        dtype: Of the parameters.

    Raises:
        ValueError: `layers` or `channels` does not have three entries, or channels shrink.
    """

    def __init__(
        self,
        layers: Sequence[int] = (3, 3, 3),
        channels: Sequence[int] = (16, 32, 64),
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(layers) != 3 or len(channels) != 3:
            raise ValueError(
                f"layers and channels need three entries, one a stage, e.g. (3, 3, 3) and "
                f"(16, 32, 64); got {tuple(layers)} and {tuple(channels)}"
            )
        if list(channels) != sorted(channels):
            raise ValueError(f"channels must not shrink (zeros pad them); got {tuple(channels)}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(channels[0], **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info = [{"num_chs": channels[0], "reduction": 1, "module": "act1"}]
        in_chs, reduction = channels[0], 1
        for stage, (name, depth, out_chs) in enumerate(zip(STAGES, layers, channels, strict=True)):
            stride = 1 if stage == 0 else 2
            blocks = [BasicBlock(in_chs, out_chs, stride, **dd)]
            blocks += [BasicBlock(out_chs, out_chs, **dd) for _ in range(depth - 1)]
            self.add_module(name, nn.Sequential(*blocks))
            in_chs, reduction = out_chs, reduction * stride
            self.feature_info.append({"num_chs": out_chs, "reduction": reduction, "module": name})

        self.num_features = in_chs
        self.global_pool, self.fc = create_classifier(
            in_chs, num_classes, pool_type=global_pool, **dd
        )
        self.head_hidden_size = in_chs * self.global_pool.feat_mult()
        self.register_load_state_dict_pre_hook(_rename_linear)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Kaiming normal over fan-in for the convolutions (He et al. 2015, equation 10)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of the parameters' groups, for layer-wise learning rates."""
        return {
            "stem": r"^(?:conv1|bn1)",
            "blocks": r"^layer(\d+)" + ("" if coarse else r"\.(\d+)"),
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier of `num_classes` outputs; None keeps the pooling."""
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=pool_type, **get_device_dtype(self)
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def _stage(self, name: str, x: Tensor) -> Tensor:
        stage = self.get_submodule(name)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(stage, x)
        return stage(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last feature map and those of the stem (index 0) and the stages (1 to 3).

        Args:
            x: Images, ``(B, in_chans, H, W)``.
            indices: The last n if int, all if None.
            norm: Without effect: there is no final norm.
            stop_early: Stop at the last index that was asked for.
            output_fmt: ``"NCHW"``.
            intermediates_only: Return the list alone.

        Raises:
            ValueError: `output_fmt` is not ``"NCHW"``.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = take_indices(len(self.feature_info), indices)
        x = self.act1(self.bn1(self.conv1(x)))
        intermediates = [x] if 0 in take else []
        for index, name in enumerate(STAGES[:last] if stop_early else STAGES, start=1):
            x = self._stage(name, x)
            if index in take:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Empty the stages behind the last of `indices`, and the head; returns the kept indices."""
        take, last = take_indices(len(self.feature_info), indices)
        for name in STAGES[last:]:
            setattr(self, name, nn.Sequential())
        if last < len(STAGES):
            self.num_features = int(str(self.feature_info[last]["num_chs"]))
        if prune_head or last < len(STAGES):
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature map ``(B, num_features, H/4, W/4)``."""
        x = self.act1(self.bn1(self.conv1(x)))
        for name in STAGES:
            x = self._stage(name, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or the pooled features where `pre_logits`."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))


def _rename_linear(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *unused: Any
) -> None:
    """``linear.*`` to ``fc.*``: timm loads `checkpoint_path` strictly, with no filter function."""
    for key in [k for k in state_dict if k.startswith(prefix + "linear.")]:
        state_dict[f"{prefix}fc.{key.removeprefix(prefix + 'linear.')}"] = state_dict.pop(key)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Keys of github.com/akamaster/pytorch_resnet_cifar10 to this module's; others stay.

    That layout calls the classifier ``linear`` and, in its own files, puts ``module.`` before all.
    """
    renamed = {key.removeprefix("module."): value for key, value in state_dict.items()}
    _rename_linear(model, renamed, "")
    return renamed


def _cfg() -> dict[str, Any]:
    # ImageNet's statistics, not CIFAR's: the published checkpoints of this layout were trained so.
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1",
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs(
    {f"resnet{depth}_cifar": _cfg() for depth in (8, 14, 20, 32, 44, 56)}
)


def _create(variant: str, blocks: int, pretrained: bool, **kwargs: Any) -> ResNetCifar:
    kwargs.setdefault("layers", (blocks,) * 3)
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        ResNetCifar,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices},
        **kwargs,
    )


@register_model
def resnet8_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """One block a stage: 8 layers, 75,290 parameters."""
    return _create("resnet8_cifar", 1, pretrained, **kwargs)


@register_model
def resnet14_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """Two blocks a stage: 14 layers, 172,506 parameters."""
    return _create("resnet14_cifar", 2, pretrained, **kwargs)


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-20 for CIFAR (He et al. 2016, table 6): 0.27 M parameters."""
    return _create("resnet20_cifar", 3, pretrained, **kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-32 for CIFAR (He et al. 2016, table 6): 0.46 M parameters."""
    return _create("resnet32_cifar", 5, pretrained, **kwargs)


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-44 for CIFAR (He et al. 2016, table 6): 0.66 M parameters."""
    return _create("resnet44_cifar", 7, pretrained, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-56 for CIFAR (He et al. 2016, table 6): 0.85 M parameters."""
    return _create("resnet56_cifar", 9, pretrained, **kwargs)
