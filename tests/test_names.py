"""Names of ternary twins."""

from __future__ import annotations

import pytest

from timm_ternary.names import base_name, is_ternary_name, ternary_name, ternary_pattern


@pytest.mark.parametrize("base", ["resnet18", "a_tern_b", ""])
def test_there_and_back(base: str) -> None:
    name = ternary_name(base)
    assert name == f"{base}_tern" and base_name(name) == base
    assert is_ternary_name(name) and not is_ternary_name(base)
    assert ternary_name(name) == name and base_name(base) == base


def test_patterns() -> None:
    assert ternary_pattern("resnet*") == "resnet*_tern"
    for pattern in ("*_tern", "resnet18_tern.*", "*_tern*"):
        assert ternary_pattern(pattern) == pattern
