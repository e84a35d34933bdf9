"""Canaries: each fails by the name of what it is about when accelerate moves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from timm_ternary.compat.accelerate import own_forward

pytestmark = pytest.mark.canary


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    """Accelerate keeps one for the process, and refuses another precision."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_own_forward() -> None:
    model, x = nn.Linear(3, 3), torch.ones(1, 3)
    expected = model(x)
    wrapped = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    assert not torch.equal(wrapped(x).float(), expected)
    assert own_forward(wrapped) is wrapped
    assert torch.equal(wrapped(x), expected) and "forward" not in vars(wrapped)
    own_forward(wrapped)
    assert torch.equal(wrapped(x), expected)
