"""A method of one's own: the very code of CONTRIBUTING.md, as a module and as a package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_files import recipe

from timm_ternary.checkpoint import load_packed

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").exists())
CODE, ENTRY = (
    re.search(rf"```{kind}\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]  # type: ignore[index]
    for kind in ("python", "toml")
)
Result = tuple[int, str, str]
DATA = ("--dataset", "digits", "--max-samples", 64, "--json")

# Several commands in one fresh process, which imports torch once.
_DRIVER = """
import contextlib, io, json, sys
from timm_ternary import cli

results = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["timm-ternary", *words]
    out, error, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
    results.append((status, out.getvalue(), error.getvalue()))
print(json.dumps(results))
"""


def run(
    *commands: tuple[object, ...], path: str | Path = "", cwd: Path | None = None
) -> list[Result]:
    """Status, stdout and stderr of each command; `path` is a place of packages."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), *sys.path])},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip would leave of a package with CONTRIBUTING's code and entry point."""
    place = tmp_path_factory.mktemp("site")
    (place / "my_methods.py").write_text(CODE)
    info = place / "my_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    group = re.search(r'entry-points\."(.*?)"', ENTRY)[1]  # type: ignore[index]
    name, value = re.search(r'(\w+) = "(.*?)"', ENTRY.partition("\n")[2]).groups()  # type: ignore[union-attr]
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    return place


@pytest.fixture(scope="module")
def trained(package: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result]]:
    """A directory that was trained, and so packed, with the package; and what it says then."""
    path = tmp_path_factory.mktemp("run")
    words = recipe(path, model="resnet8_cifar_tern", ternary="median", max_steps=2)
    results = run(
        ("train", *words),
        ("list", "--methods", "--json"),
        ("inspect", path / "out", "--json"),
        ("pack", path / "out", path / "again", "--encoding", "base3"),
        ("evaluate", path / "again", *DATA),
        path=package,
    )
    assert [status for status, _, _ in results] == [0] * 5, results
    return path / "out", results


def accuracy(directory: Path) -> float:
    return float(json.loads((directory / "metrics.json").read_text())["eval_accuracy"])


def test_it_has_the_lines_that_it_says() -> None:
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 15


@pytest.mark.multi_process
def test_an_installed_package_is_found(trained: tuple[Path, list[Result]]) -> None:
    directory, (_, methods, inspected, _, evaluated) = trained
    assert json.loads(methods[1])["median"] == {}
    summary = json.loads(inspected[1])
    assert summary["method"] == "median" and 0.5 <= summary["zeros"] < 0.6
    assert json.loads(evaluated[1])["top1"] == accuracy(directory)


@pytest.mark.multi_process
def test_import_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "my_methods.py").write_text(CODE)
    words = recipe(tmp_path, model="resnet8_cifar_tern", ternary="median", max_steps=2)
    asked = ("resnet8_cifar_tern", "--ternary", "median", "--json")
    unknown, trained, inspected, last, missing, in_training = run(
        ("train", *words),
        ("train", *words, "--import", "my_methods"),
        ("inspect", *asked, "--import=my_methods"),
        ("list", "--import"),
        ("inspect", *asked, "--import", "no_such"),
        ("train", "x.yaml", "--import", "no_such"),
        cwd=tmp_path,
    )
    assert unknown[0] == 2 and "unknown method 'median'" in unknown[2]
    assert trained[0] == 0, trained[2]
    assert json.loads(inspected[1])["method"] == "median"
    for (status, _, error), line in (
        (last, "--import needs the name of a module"),
        (missing, "--import no_such: No module named"),
        (in_training, "--import no_such: No module named"),
    ):
        assert status == 2 and error.startswith(f"error: {line}") and error.count("\n") == 1


@pytest.mark.multi_process
def test_a_packed_file_needs_its_method_no_more(
    trained: tuple[Path, list[Result]], tmp_path: Path
) -> None:
    directory = trained[0]
    results = run(
        ("evaluate", directory, *DATA),
        ("inspect", directory),
        ("pack", directory, tmp_path / "out", "--encoding", "base3"),
        ("card", directory),
        ("export", directory, tmp_path / "model.onnx"),
    )
    assert [status for status, _, _ in results] == [0] * 5, results
    assert json.loads(results[0][1])["top1"] == accuracy(directory)
    with pytest.raises(ValueError, match=r"unknown method 'median'.*--import MODULE"):
        load_packed(directory, packed=False)


@pytest.mark.multi_process
def test_a_broken_package_is_named_and_the_others_go_on(package: Path, tmp_path: Path) -> None:
    (tmp_path / "bad_methods.py").write_text("import no_such_module\n")
    info = tmp_path / "bad_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[timm_ternary.quantizers]\nbad = bad_methods\n")
    places = os.pathsep.join([str(tmp_path), str(package)])
    ((status, out, error),) = run(("list", "--methods", "--json"), path=places)
    assert status == 0 and {"median", "tga"} <= json.loads(out).keys()
    assert "package bad-methods offers method bad" in error


@pytest.mark.multi_process
def test_a_bare_class_and_a_module_that_raises_anything(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(
        "from timm_ternary.quantizers import TWN, register\n\n@register\nclass Bare(TWN):\n"
        "    name = 'bare'\n\n    def __init__(self, weight, *, depth=3, **rest):\n"
        "        super().__init__(weight, **rest)\n        self.depth = depth\n"
    )
    (tmp_path / "faulty.py").write_text("1 / 0\n")
    info = tmp_path / "faulty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[timm_ternary.quantizers]\nfaulty = faulty\n")
    table, listed, inspected, faulty = run(
        ("list", "--methods", "--import", "bare"),
        ("list", "--methods", "--json"),
        ("inspect", "resnet8_cifar_tern", "--ternary", "bare"),
        ("inspect", "resnet8_cifar_tern", "--import", "faulty"),
        path=tmp_path,
    )
    assert table[0] == 0 and "bare" in table[1]  # without a docstring
    assert "package faulty offers method faulty" in table[2] and "ZeroDivisionError" in table[2]
    assert json.loads(listed[1])["bare"] == {"depth": 3}
    assert inspected[0] == 0, inspected[2]
    assert faulty[0] == 2
    assert faulty[2].startswith("error: --import faulty: ZeroDivisionError: division by zero; give")
