"""FSDP2: latent weights in shards, thresholds and scales whole in every process.

A shard of a threshold has no gradient of its own, and a threshold is one number: quantizers are
kept out of the shards, and their gradients averaged here. A weight is quantized inside the
forward pass, where FSDP has put its shards together, so that statistics are of the whole layer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..quantizers.base import Quantizer

__all__ = [
    "average_gradients",
    "check_launched",
    "check_sharded",
    "keep_whole",
    "load_whole",
    "whole",
]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that lies in shards, put together; others as they are. All processes must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_launched(args: Any, *, enabled: bool) -> None:
    """Refuse a run that asks for FSDP and would train without it.

    Args:
        args: TrainingArguments.
        enabled: Whether accelerate lays the model in shards.

    Raises:
        ValueError: See above.
    """
    asked = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and args.world_size > 1 and not enabled:
        raise ValueError(
            "FSDP is asked for, and accelerate trains without it on the CPU: use GPUs, or "
            "leave fsdp and --use_fsdp out"
        )


def check_sharded(accelerator: Any, quantizers: Iterable[Quantizer], update: str) -> bool:
    """Whether the run lays its weights in shards that ternary training knows: those of FSDP2.

    Raises:
        ValueError: FSDP1; DeepSpeed for the alternate update; a method with a penalty or a state.
    """
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if (fsdp is not None and fsdp.fsdp_version != 2) or (deepspeed and update == "alternate"):
        raise ValueError(
            f"ternary models (update={update!r}) train in shards with FSDP2 only, got "
            f"{'DeepSpeed' if fsdp is None else 'FSDP1'}: type accelerate launch --use_fsdp "
            "--fsdp_version 2, or accelerate launch --multi_gpu"
        )
    if fsdp is None:
        return False
    for kind in sorted({type(quantizer) for quantizer in quantizers}, key=lambda k: k.__name__):
        if kind.penalty is not Quantizer.penalty or kind.refresh is not Quantizer.refresh:
            raise ValueError(
                f"{kind.__name__} needs whole weights between two steps, which FSDP has in shards: "
                "type accelerate launch --multi_gpu"
            )
    return True


def keep_whole(accelerator: Any, quantizers: Iterable[Quantizer]) -> None:
    """Keep quantizers out of the shards of the model that `accelerator` will prepare."""
    quantizers = list(quantizers)
    for quantizer in quantizers:
        quantizer.to(accelerator.device)  # FSDP moves only what it shards
    plugin = accelerator.state.fsdp_plugin
    plugin.ignored_modules = quantizers
    # accelerate 1.15 would take everything that is loaded so for a shard; each process has the
    # whole model anyway.
    plugin.cpu_ram_efficient_loading = False


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], accelerator: Any) -> None:
    """Replace the ``.grad`` of parameters that are whole by their mean over the processes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    mean = accelerator.reduce(flat, reduction="mean")
    for gradient, piece in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view_as(gradient))


@torch.no_grad()
def load_whole(model: nn.Module, twin: nn.Module) -> nn.Module:
    """`twin`, an ordinary model of the same kind, with what `model` holds in shards."""
    twin.load_state_dict({name: whole(value).cpu() for name, value in model.state_dict().items()})
    return twin
