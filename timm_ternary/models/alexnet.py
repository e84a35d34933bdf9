"""AlexNet with batch norm and without dropout, the network of the TTQ paper's section 5.2."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_device_dtype
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..compat.timm import take_indices

__all__ = ["AlexNet"]

STAGES = ("layer1", "layer2", "layer3", "layer4", "layer5")
FINAL_SIZE = 6
"""Side of the last feature map of a 224 x 224 image, which the first linear layer flattens."""


def _norm_args(dd: dict[str, Any]) -> dict[str, Any]:
    # DoReFa-Net's program: epsilon 1e-4, momentum 0.9 of the old value (torch counts the new one).
    return {"eps": 1e-4, "momentum": 0.1, **dd}


def _stage(conv: nn.Conv2d, pool: nn.Module | None, dd: dict[str, Any]) -> nn.Sequential:
    """Convolution, batch norm, max pooling, ReLU, in the order of DoReFa-Net's program."""
    layers: dict[str, nn.Module] = {
        "conv": conv,
        "bn": nn.BatchNorm2d(conv.out_channels, **_norm_args(dd)),
    }
    if pool is not None:
        layers["pool"] = pool
    layers["act"] = nn.ReLU(inplace=True)
    return nn.Sequential(OrderedDict(layers))


class AlexNet(nn.Module):
    """AlexNet-BN of DoReFa-Net (Zhou et al. 2016), which TTQ (Zhu et al. 2017) trained on ImageNet.

    Layer sizes follow the program that DoReFa-Net's authors published (tensorpack,
    ``examples/DoReFa-Net/alexnet-dorefa.py``), which reports 41.4 % top-1 error in float and
    42.3 % for TTQ::

        conv  96, 12x12, stride 4, no padding (54 x 54)            relu
        conv 256, 5x5, 2 groups       batch norm, max pool (27)    relu
        conv 384, 3x3                 batch norm, max pool (14)    relu
        conv 384, 3x3, 2 groups       batch norm                   relu
        conv 256, 3x3, 2 groups       batch norm, max pool (6)     relu
        linear 4096, linear 4096      batch norm                   relu
        linear num_classes, the only layer with a bias

    The first kernel has 12 x 12 weights there, 11 x 11 in Krizhevsky et al. 2012; its first
    linear layer has a bias, left out here because the batch norm behind it subtracts it again.

    Input ``(B, in_chans, 224, 224)``, output ``(B, num_classes)``.

    Args:
        num_classes: 0 removes the classifier.
        in_chans: Channels of the input.
        global_pool: ``""`` only: the feature map is flattened, not pooled.
        drop_rate: Dropout before the classifier (the papers use none).
        device: Where the parameters are made.
        dtype: Of the parameters.

    Raises:
        ValueError: `global_pool` asks for pooling.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        kw: dict[str, Any] = {"bias": False, **dd}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        stem = {"conv": nn.Conv2d(in_chans, 96, 12, stride=4, **kw), "act": nn.ReLU(inplace=True)}
        self.layer1 = nn.Sequential(OrderedDict(stem))
        # TensorFlow's SAME padding: 54 to 27 pads one row at the end, 27 to 14 one at each side.
        conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2, **kw)
        self.layer2 = _stage(conv2, nn.MaxPool2d(3, 2, ceil_mode=True), dd)
        conv3 = nn.Conv2d(256, 384, 3, padding=1, **kw)
        self.layer3 = _stage(conv3, nn.MaxPool2d(3, 2, padding=1), dd)
        self.layer4 = _stage(nn.Conv2d(384, 384, 3, padding=1, groups=2, **kw), None, dd)
        conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2, **kw)
        self.layer5 = _stage(conv5, nn.MaxPool2d(3, 2), dd)
        # One tap a resolution, the last of each.
        self.feature_info = [
            {"num_chs": 96, "reduction": 4, "module": "layer1"},
            {"num_chs": 256, "reduction": 8, "module": "layer2"},
            {"num_chs": 384, "reduction": 16, "module": "layer4"},
            {"num_chs": 256, "reduction": 32, "module": "layer5"},
        ]

        self.num_features = 256
        self.head_hidden_size = 4096
        self.pre_logits = nn.Sequential(OrderedDict(self._hidden_layers(kw, dd)))
        self.fc: nn.Module
        self.reset_classifier(num_classes, global_pool)
        self.init_weights()

    def _hidden_layers(self, kw: dict[str, Any], dd: dict[str, Any]) -> dict[str, nn.Module]:
        hidden = self.head_hidden_size
        return {
            "fc1": nn.Linear(self.num_features * FINAL_SIZE**2, hidden, **kw),
            "bn1": nn.BatchNorm1d(hidden, **_norm_args(dd)),
            "act1": nn.ReLU(inplace=True),
            "fc2": nn.Linear(hidden, hidden, **kw),
            "bn2": nn.BatchNorm1d(hidden, **_norm_args(dd)),
            "act2": nn.ReLU(inplace=True),
        }

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Kaiming normal over fan-in (He et al. 2015, equation 10), the classifier excepted."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and name != "fc":
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of the parameters' groups, for layer-wise learning rates."""
        return {"stem": r"^layer1", "blocks": r"^layer(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the convolutional layers' activations in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier of `num_classes` outputs, 0 for none.

        Raises:
            ValueError: `global_pool` asks for pooling.
        """
        if global_pool:
            raise ValueError(
                f"AlexNet flattens its last feature map and has no pooling to choose; "
                f"leave global_pool out (got {global_pool!r})"
            )
        self.num_classes = num_classes
        # Of a hidden layer, so that a classifier added later lands where the model is.
        dd = get_device_dtype(self)
        hidden = self.head_hidden_size
        self.fc = nn.Linear(hidden, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.fc.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last feature map and those that `feature_info` lists (indices 0 to 3).

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
        taps = {str(self.feature_info[index]["module"]) for index in take}
        intermediates = []
        for name in STAGES:
            x = self._run(name, x)
            if name in taps:
                intermediates.append(x)
            if stop_early and name == self.feature_info[last]["module"]:
                break
        return intermediates if intermediates_only else (x, intermediates)

    def _run(self, name: str, x: Tensor) -> Tensor:
        stage = self.get_submodule(name)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint(stage, x)
        return stage(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature map ``(B, 256, 6, 6)`` of a 224 x 224 image."""
        for name in STAGES:
            x = self._run(name, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a feature map, or the 4096 hidden units where `pre_logits`.

        Raises:
            ValueError: The feature map is not 6 x 6.
        """
        if x.shape[-2:] != (FINAL_SIZE, FINAL_SIZE):
            raise ValueError(
                f"alexnet_bn needs images whose last feature map is {FINAL_SIZE} x {FINAL_SIZE}, "
                f"got {x.shape[-2]} x {x.shape[-1]}; resize them to 224 x 224"
            )
        x = self.pre_logits(x.flatten(1))
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, in_chans, 224, 224)`` to logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))


default_cfgs = generate_default_cfgs(
    {
        # Resized to 256 x 256, then cropped to 224 (TTQ, section 5.2).
        "alexnet_bn": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (FINAL_SIZE, FINAL_SIZE),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "layer1.conv",
            "classifier": "fc",
        }
    }
)


@register_model
def alexnet_bn(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """AlexNet with batch norm, without dropout (TTQ section 5.2; DoReFa-Net): 61 M parameters."""
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        AlexNet, "alexnet_bn", pretrained, feature_cfg={"out_indices": out_indices}, **kwargs
    )
