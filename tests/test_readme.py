"""What README shows runs, and what it says of names is true."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch

import timm_ternary
from timm_ternary import cli, quantizers
from timm_ternary.quantizers.registry import option_defaults
from timm_ternary.training.run import ARGUMENTS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
RECIPES = (ROOT / "recipes" / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes" / "README.md",
    *sorted((ROOT / "timm_ternary").rglob("*.md")),
]
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
    assert f"or methods with thresholds: {', '.join(names)}." in " ".join(RECIPES.split())


def test_readme_is_short_and_leads_to_the_rest() -> None:
    assert len(TEXT.splitlines()) <= 150
    linked = {target for target, _ in _links(TEXT)}
    for page in PAGES[1:]:
        if page.name in ("README.md", "FORMAT.md", "CONTRIBUTING.md"):
            assert page.relative_to(ROOT).as_posix() in linked


def _links(text: str) -> list[tuple[str, str]]:
    """Targets and anchors of links within the project."""
    return re.findall(
        r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", re.sub(r"```.*?```", "", text, flags=re.S)
    )


def _anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in _links(page.read_text()):
        path = (page.parent / target) if target else page
        assert path.exists(), (target, anchor)
        assert not anchor or anchor in _anchors(path.read_text()), (target, anchor)


def test_every_extra_is_installed_as_it_can_be() -> None:
    known = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for page in [*PAGES, ROOT / "model_cards" / "template.md"]:
        text = page.read_text()
        assert "timm-ternary[" not in text and "pip install timm" not in text
        assert set(re.findall(r'"\.\[(\w+)\]"', text)) <= known


def _commands(text: str) -> list[list[str]]:
    """The words of each ``timm-ternary`` command that stands in a block of its own."""
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    lines = [line.partition(" # ")[0] for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("timm-ternary ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_option_of_a_command_is_known(page: Path) -> None:
    known = {c.name or getattr(c.callback, "__name__", ""): c for c in cli.app.registered_commands}
    fields = {option for group in ARGUMENTS for option in group.__dataclass_fields__}
    fields |= {"accelerate", "import"}
    for command, *words in _commands(page.read_text()):
        options = [word.removeprefix("--") for word in words if word.startswith("--")]
        if command == "train":
            assert fields.issuperset(options)
            continue
        callback = known[command].callback
        assert callback is not None
        taken = {name.replace("_", "-") for name in inspect.signature(callback).parameters}
        assert (taken | {"json", "import", "ternary"}).issuperset(options)


def test_every_recipe_that_is_named_is_there() -> None:
    for page in PAGES:
        text = page.read_text()
        named = re.findall(r"recipes/[\w/]+\.yaml", text)
        rows = re.findall(r"^\| `(\w+/[\w{},]+\.yaml)`", text, re.MULTILINE)
        for row in rows:
            name, _, rest = row.partition("{")
            kinds, _, end = rest.partition("}")
            named += [f"recipes/{name}{kind}{end}" for kind in kinds.split(",")]
        for path in named:
            assert (ROOT / path).is_file(), (page, path)


def test_photos_take_five_commands() -> None:
    block = re.search(r"## Photos in five commands\n.*?```\n(.*?)```", TEXT, re.DOTALL)
    assert block is not None
    words = [shlex.split(line)[1] for line in block[1].splitlines()]
    assert words == ["train", "train", "evaluate", "report", "push"]


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
