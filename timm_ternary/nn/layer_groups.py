"""Which layers share a learning rate, for timm's layer decay of models that do not say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from timm.optim import auto_group_layers
from torch import nn

from .state_dict import quantizer_parameter, readable_name, weight_key
from .timm_wrapper import unwrap

__all__ = ["FloatGroups", "float_groups", "state_groups"]

_GROUP_MATCHER = "group_matcher"  # by which timm asks a model


class FloatGroups:
    """`group_matcher` of a ternary model: the layer groups of the float model that it was.

    timm's ``param_groups_layer_decay`` takes the parameters of a model without this method by the
    dozen, and those of the quantizers would shift every group after the first.

    Args:
        groups: From the names of the float model's parameters to their groups, 0 and up; not empty.
    """

    def __init__(self, groups: Mapping[str, int]) -> None:
        self.groups = dict(groups)

    def __call__(self, coarse: bool = False) -> Callable[[str], int]:
        """From the name of a parameter to its group; a quantizer's are in that of their layer.

        Args:
            coarse: The groups are the same.
        """
        return self.group

    def group(self, name: str) -> int:
        """The group of one parameter; of one that the float model had not, e.g. of a new head, the
        last."""
        own = quantizer_parameter(name)
        key = readable_name(name) if own is None else weight_key(own[0])
        return self.groups.get(key, max(self.groups.values()))


def float_groups(model: nn.Module) -> FloatGroups | None:
    """The groups that timm makes of a float model; None where the model says its groups itself.

    None too where timm finds one group only.
    """
    inner: Any = unwrap(model)
    if hasattr(inner, _GROUP_MATCHER):
        return None
    groups = auto_group_layers(inner)
    return FloatGroups(groups) if len(set(groups.values())) > 1 else None


def state_groups(model: nn.Module, groups: FloatGroups | None) -> None:
    """Let a model that was made ternary state the groups of the float one, if there are any."""
    if groups is not None:
        setattr(unwrap(model), _GROUP_MATCHER, groups)
