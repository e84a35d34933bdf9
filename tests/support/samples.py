"""Small models and file surgery that several test modules share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn

from timm_ternary import TernaryConfig
from timm_ternary.checkpoint.directory import CONFIG_NAME
from timm_ternary.checkpoint.pair import CONFIG_DIGEST, config_digest
from timm_ternary.checkpoint.weights_file import (
    WEIGHTS_NAME,
    _digest,
    _digest_tensor,
    read_metadata,
)

MATRIX = [
    *((m, g) for m in ("tga", "ttq", "twn") for g in ("layer", "channel")),
    ("bitnet", "layer"),
    ("bwn", "channel"),
    ("admm", "layer"),
    ("rel", "layer"),
]
"""Method and granularity."""


def trained(name: str = "test_resnet_tern", *, seed: int = 0, **kwargs: Any) -> nn.Module:
    """A trainable model in evaluation mode whose parameters have all left their start."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **{"num_classes": 5, **kwargs})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            parameter.add_(0.01 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return model.eval()


def image(channels: int = 3, size: int = 32, *, seed: int = 1) -> Tensor:
    """A batch of two images."""
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor | None = None) -> Tensor:
    """Logits in evaluation mode."""
    return model.eval()(image() if x is None else x)


def config(method: str = "tga", granularity: str = "layer", **kwargs: Any) -> TernaryConfig:
    """Shorthand."""
    return TernaryConfig(method=method, granularity=granularity, **kwargs)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory, hidden ones too."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def rewrite(
    directory: Path,
    tensors: Callable[[dict[str, Tensor]], object] | None = None,
    header: Callable[[dict[str, Any]], object] | None = None,
) -> None:
    """Change a packed file the way a careful forger does: every digest is computed anew."""
    path = directory / WEIGHTS_NAME
    with safe_open(str(path), framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}
        metadata = dict(file.metadata())
    values = json.loads(metadata["timm_ternary"])
    if tensors is not None:
        tensors(held)
        values["digests"] = {name: _digest_tensor(name, t) for name, t in held.items()}
    if header is not None:
        header(values)
    text = json.dumps(values)
    metadata.update(timm_ternary=text, timm_ternary_digest=_digest(text.encode()))
    safetensors.torch.save_file(held, str(path), metadata)


def edit_config(
    directory: Path, change: Callable[[dict[str, Any]], object], *, signed: bool = True
) -> None:
    """Change config.json; `signed`: as a forger does, with its digest in the weights anew."""
    path = directory / CONFIG_NAME
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    weights = directory / WEIGHTS_NAME
    if signed and CONFIG_DIGEST in (metadata := read_metadata(weights)):
        old, new = metadata[CONFIG_DIGEST].encode(), config_digest(values).encode()
        with weights.open("rb+") as file:  # in the header alone: the file may be huge
            header = file.read(int.from_bytes(file.read(8), "little"))
            file.seek(8)
            file.write(header.replace(old, new))
