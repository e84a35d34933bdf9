"""Statistics of batch norms: of which each process gathers its own, and which lag behind."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.utils import distribute_bn
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import update_bn

__all__ = ["reduce_statistics", "reestimate_statistics"]


def reestimate_statistics(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Measure the running means and variances anew, for the weights as they are: torch's update_bn.

    The running ones are of weights that have changed since; in ternary layers a code that changed
    changes the statistics of a channel at once, and a short training run ends before averages with
    a small momentum (0.01 in timm's tf_* models) have followed.

    Args:
        model: Stays in its mode; random numbers of the training are not drawn.
        images: Batches, ``(n, channels, height, width)``, on any device.
    """
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), parametrize.cached():
        update_bn(images, model, device)


def reduce_statistics(model: nn.Module) -> None:
    """Let the running means and variances be those of all processes: timm's ``--dist-bn reduce``.

    Each process has seen its own images. Without this it would be evaluated by statistics of its
    own, and the first one's alone would be saved. All processes must call; one has nothing to do.

    Args:
        model: Wrapped or not; its buffers are changed in place.
    """
    if distributed.is_available() and distributed.is_initialized():
        processes = distributed.get_world_size()
        if processes > 1:
            distribute_bn(model, processes, reduce=True)
