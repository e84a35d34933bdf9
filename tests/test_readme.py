"""What README shows runs, and what it says of names is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch

import timm_ternary
from timm_ternary import cli, packing, quantizers
from timm_ternary.quantizers.registry import option_defaults

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    lines = BLOCKS[0].splitlines()
    assert len(lines) == 5
    exec("\n".join(lines[:4]), scope)
    trained = scope["model"]
    exec(lines[4], scope)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(scope["model"].eval()(x), trained.eval()(x))  # type: ignore[attr-defined]
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert f"{size / 1e6:.1f} MB instead of" in lines[3]
    values = sum(
        t.numel() for t in timm.create_model("resnet18", num_classes=10).state_dict().values()
    )
    assert f"instead of {4 * values / 1e6:.1f} MB" in lines[3]


def test_the_other_python_blocks_run() -> None:
    for block in BLOCKS[1:]:
        exec(block, {"timm": timm, "timm_ternary": timm_ternary})
    assert len(BLOCKS) == 2


def test_methods_and_options() -> None:
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\|[^|]*\|[^|]*\| (.*) \|$", TEXT, re.MULTILINE))
    assert set(quantizers.names()) <= set(rows)
    for name in quantizers.names():
        for option, default in option_defaults(quantizers.get(name)).items():
            assert f"`{option}={default}`" in rows[name] or f"`{option}=r`" in rows[name]


def test_methods_with_thresholds() -> None:
    names = [name for name in quantizers.names() if quantizers.get(name).has_thresholds]
    text = " ".join((ROOT / "recipes" / "README.md").read_text().split())
    assert f"or methods with thresholds: {', '.join(names)}." in text


def test_encodings() -> None:
    text = (ROOT / "timm_ternary" / "checkpoint" / "FORMAT.md").read_text()
    assert all(f"`{encoding}`" in text for encoding in packing.ENCODINGS)
    assert len(TEXT.splitlines()) <= 150  # the rest stands beside what it describes


def test_two_commands_stand_word_for_word() -> None:
    assert "\npip install -e . && timm-ternary quickstart\n" in TEXT
    assert '\npip install -e ".[test]" && pytest\n' in TEXT


def test_every_command_is_in_the_table() -> None:
    named = set(re.findall(r"^\| `timm-ternary (\w+)", TEXT, re.MULTILINE))
    commands = cli.app.registered_commands
    assert named == {c.name or getattr(c.callback, "__name__", "") for c in commands}


def test_publishing_and_loading_take_six_lines() -> None:
    block = re.search(r"## Publish and load\n\n```\n(.*?)```", TEXT, re.DOTALL)
    assert block is not None and len(block[1].splitlines()) == 6
