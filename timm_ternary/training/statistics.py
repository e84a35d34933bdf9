"""Statistics of batch norms, of which each process gathers its own."""

from __future__ import annotations

from timm.utils import distribute_bn
from torch import distributed, nn

__all__ = ["reduce_statistics"]


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
