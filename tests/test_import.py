"""The import is lean, and every module imports only from lower layers."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import timm_ternary
from timm_ternary import quantizers

ROOT = Path(timm_ternary.__file__).parent
HEAVY = (
    "transformers", "datasets", "accelerate", "matplotlib", "sklearn", "typer", "rich", "zstandard",
    "onnx", "onnxscript", "onnxruntime",
)  # fmt: skip

# From low to high (DESIGN.md). A module imports from lower rows only; "" is the package itself.
LAYERS = (
    {
        "compat",
        "compat.*",
        "errors",
        "errors.foreign",
        "errors.numbers",
        "errors.printable",
        "errors.wording",
        "errors.workers",
        "files",
        "names",
        "version",
    },
    {"code", "config", "confusion", "errors.hub", "packing.encodings"},
    {"packing"},
    {"packing.tensors"},
    {"quantizers.registry"},
    {"quantizers.functional", "quantizers.scale_curve"},
    {"quantizers.gaussian"},
    {"quantizers.restore"},
    {"quantizers.base"},
    {f"quantizers.{name}" for name in quantizers.names()},
    {"quantizers"},
    {"nn", "nn.*"},
    {"data", "data.*", "data.sources", "data.sources.*", "data.datasets", "data.datasets.*"},
    {"checkpoint.*"},
    {"checkpoint"},
    {"models.*"},
    {"models"},
    {""},
    {"onnx.*", "evaluation", "report.*", "hf", "hub", "hub.*"},
    {"onnx", "report"},
    {"training.arguments.*"},
    {"training.arguments"},
    {"training.*", "training.callbacks", "training.callbacks.*"}
    | {"training.threshold_pass", "training.threshold_pass.*", "training.resume"}
    | {"training.resume.*"},
    {"training"},
    {"train"},
    {"cli.*"},
    {"cli"},
    {"cli.__main__"},
)


def modules() -> dict[str, Path]:
    """Every module, named from within the package."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path) -> Iterator[str]:
    """Modules of this package that `name` imports, at the top or in a function."""
    known = modules()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "timm_ternary":
                    yield alias.name.partition(".")[2]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                start = package[: len(package) - node.level + 1]
                target = ".".join(start + ([node.module] if node.module else []))
            elif node.module and node.module.split(".")[0] == "timm_ternary":
                target = node.module.partition(".")[2]
            else:
                continue
            for alias in node.names:  # from . import packing: the module, not its package
                inner = f"{target}.{alias.name}".strip(".")
                yield inner if inner in known else target


def layer(name: str) -> int:
    """Row of `LAYERS`."""
    room = f"{name.rpartition('.')[0]}.*"
    # A folder is as high as its row says, also where the folder around it lies in another.
    for wanted in (name, room):
        for row, names in enumerate(LAYERS):
            if wanted in names:
                return row
    raise AssertionError(f"LAYERS does not list {name!r}")


def test_the_table_lists_what_there_is() -> None:
    known = modules()
    assert {"packing.encodings", "models.ternary", "quantizers.base", ""} < known.keys()
    for name in known:
        layer(name)
    listed = {name for names in LAYERS for name in names if not name.endswith("*")}
    assert listed <= known.keys()


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_only_from_lower_layers(name: str) -> None:
    rooms = any(entry.endswith(".*") for entry in LAYERS[layer(name)])
    for target in imported(name, modules()[name]):
        below = layer(target) < layer(name) or (rooms and layer(target) == layer(name))
        assert below, f"{name} imports {target}"


def test_no_cycles_within_a_package() -> None:
    """Rows with a * hold modules that import one another: in one direction."""
    edges = {name: set(imported(name, path)) & modules().keys() for name, path in modules().items()}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for target in edges[name]:
                visit(target, (*trail, name))
            done.add(name)

    done: set[str] = set()
    for name in edges:
        visit(name, ())


def test_private_names_of_other_libraries_stand_in_compat_only() -> None:
    for name, path in modules().items():
        if name.startswith("compat."):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module or node.level:
                continue
            library, *inner = node.module.split(".")
            if library in ("timm", "transformers", "huggingface_hub", "accelerate", "datasets"):
                private = [
                    part for part in [*inner, *(a.name for a in node.names)] if part[0] == "_"
                ]
                assert not private, f"{name} imports {node.module}: {private}"


@pytest.mark.multi_process
def test_import_is_lean() -> None:
    """In a fresh process, after timm's own imports."""
    code = """
import json, sys, timm
before = set(sys.modules)
import torch
import timm_ternary
added = sorted({name.split(".")[0] for name in set(sys.modules) - before})
print(json.dumps([added, torch.cuda.is_initialized(), timm.is_model("resnet18_tern")]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:timm_ternary", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning that a name is registered twice
    added, cuda, registered = json.loads(done.stdout)
    assert registered and not cuda
    assert "timm_ternary" in added
    assert not set(HEAVY) & set(added)


def test_every_module_states_what_it_offers() -> None:
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        targets = [
            target.id
            for node in tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign))
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        ]
        assert "__all__" in targets or name == "version", name
        assert ast.get_docstring(tree) or name == "version", name
    assert (ROOT / "py.typed").is_file()
