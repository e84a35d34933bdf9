"""Recipes: every error is one line, and every shipped recipe loads."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import timm
from accelerate.commands.config.config_args import load_config_from_file

from timm_ternary.config import TernaryConfig
from timm_ternary.quantizers import check
from timm_ternary.training.arguments.help import describe
from timm_ternary.training.arguments.recipe import load_yaml, parse
from timm_ternary.training.arguments.spelling import _FIELD_OF, _MEANT
from timm_ternary.training.run import ARGUMENTS

RECIPES = Path(__file__).parents[3] / "recipes"
TRAINING = sorted(p for p in RECIPES.rglob("*.yaml") if p.parent.name != "accelerate")


@dataclass
class Numbers:
    """Fields of every kind that the parser must type."""

    rate: float = field(default=0.1)
    count: int | None = field(default=None)
    flag: bool = field(default=True)
    maybe: bool | None = field(default=None)
    steps: list[float] | None = field(default=None)
    table: dict[str, Any] | str | None = field(default=None)
    word: str = field(default="a")
    names: str | list[str] | None = field(default="none")


@dataclass
class Positive:
    """A dataclass that refuses values."""

    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1,\n got {self.size}")


def read(tmp_path: Path, text: str, *words: str) -> tuple[Any, ...]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return parse([str(path), *words], Numbers, Positive)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("rate: 1e-4", "rate", 1e-4),
        ("rate: 1", "rate", 1.0),
        ("rate: -2.5e-3", "rate", -2.5e-3),
        ("count: 3", "count", 3),
        ("count: null", "count", None),
        ("flag: no", "flag", False),
        ("maybe: true", "maybe", True),
        ("steps: [80, 1e2]", "steps", [80.0, 100.0]),
        ("steps: 80", "steps", [80.0]),
        (
            "table: {method: ttq, options: {t: 0.1}}",
            "table",
            {"method": "ttq", "options": {"t": 0.1}},
        ),
        ("table: ttq", "table", "ttq"),
        ("word: no", "word", "no"),
        ("word: 12", "word", "12"),
        ("names: [a, b]", "names", ["a", "b"]),
    ],
)
def test_yaml_values_get_the_type_of_their_field(
    tmp_path: Path, text: str, name: str, value: object
) -> None:
    numbers, _ = read(tmp_path, text)
    assert getattr(numbers, name) == value
    assert type(getattr(numbers, name)) is type(value)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--rate", "2e-3"], "rate", 2e-3),
        (["--rate=-1e-3"], "rate", -1e-3),
        (["--rate", "-1e-3"], "rate", -1e-3),
        (["--count", "None"], "count", None),
        (["--flag", "false"], "flag", False),
        (["--no_flag"], "flag", False),
        (["--flag"], "flag", True),
        (["--steps", "10", "20"], "steps", [10.0, 20.0]),
        (["--table", '{"method": "ttq"}'], "table", {"method": "ttq"}),
        (["--table", "tga"], "table", "tga"),
        (["--names", "a", "b"], "names", ["a", "b"]),
        (["--word", "x", "--word", "y"], "word", "y"),
    ],
)
def test_the_command_line_overrides_the_recipe(
    tmp_path: Path, words: list[str], name: str, value: object
) -> None:
    text = "rate: 7\ncount: 7\nsteps: [7]\ntable: z\nword: z\nnames: z"
    numbers, _ = read(tmp_path, text, *words)
    assert getattr(numbers, name) == value


def test_a_recipe_is_optional() -> None:
    numbers, positive = parse(["--size", "4"], Numbers, Positive)
    assert positive.size == 4 and numbers == Numbers()


@pytest.mark.parametrize(
    ("text", "words", "parts"),
    [
        ("raet: 1", [], ["recipe.yaml", "unknown key 'raet'", "did you mean 'rate'?"]),
        ("rate: fast", [], ["recipe.yaml", "rate must be a number", "'fast'"]),
        ("count: 1.5", [], ["count must be a whole number or null", "1.5"]),
        ("rate: null", [], ["rate must be a number", "None"]),
        ("rate: {a: 1}", [], ["rate must be a number", "{'a': 1}"]),
        ("rate: [1, 2]", [], ["rate must be a number", "[1, 2]"]),
        ("steps: [1, x]", [], ["steps must be a list, each entry a number or null", "'x'"]),
        ("maybe: perhaps", [], ["maybe must be true or false or null", "'perhaps'"]),
        ("size: 0", [], ["recipe.yaml", "size must be at least 1, got 0"]),
        ("rate: 1\nrate: 2", [], ["recipe.yaml", "key 'rate' is given twice", "line 2"]),
        ("table: {a: 1, a: 2}", [], ["key 'a' is given twice"]),
        ("", [], ["recipe.yaml", "is empty"]),
        ("- rate", [], ["recipe.yaml", "got list"]),
        ("rate: [", [], ["recipe.yaml", "is not valid YAML"]),
        ("rate: 1", ["--raet", "2"], ["command line", "'--raet'", "did you mean '--rate'?"]),
        ("rate: 1", ["--rate", "fast"], ["command line", "--rate must be a number", "'fast'"]),
        ("rate: 1", ["--rate"], ["command line", "--rate must be a number", "nothing"]),
        ("rate: 1", ["--rate", "1", "2"], ["--rate must be a number", "'1 2'"]),
        ("rate: 1", ["--table", "{a"], ["command line", "--table is not valid JSON"]),
        ("rate: 1", ["second.yaml"], ["got 'second.yaml'", "one recipe"]),
        ("rate: 1", ["--size", "0"], ["size must be at least 1"]),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, text: str, words: list[str], parts: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, text, *words)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_other_spellings_of_a_field(tmp_path: Path) -> None:
    """timm's train.py calls the file that a run starts from pretrained_path."""
    path = tmp_path / "r.yaml"
    path.write_text("model: resnet18\ndataset: digits\noutput_dir: o\npretrained_path: a.pth\n")
    assert parse([str(path)], *ARGUMENTS)[0].checkpoint == "a.pth"
    assert parse([str(path), "--pretrained-path", "b.pth"], *ARGUMENTS)[0].checkpoint == "b.pth"
    assert parse([str(path), "--checkpoint", "c.pth"], *ARGUMENTS)[0].checkpoint == "c.pth"
    path.write_text(path.read_text() + "checkpoint: b.pth\n")
    with pytest.raises(ValueError, match="checkpoint and pretrained_path are one field"):
        parse([str(path)], *ARGUMENTS)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="not a file, but a directory"):
        load_yaml(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"bytes.yaml: not UTF-8 text"):
        load_yaml(tmp_path / "bytes.yaml")


BOMB = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "alias bomb": (BOMB, r"not valid YAML: its aliases \(\*name\) stand for more"),
    "alias of itself": ("model: &a [*a]", r"its aliases"),
    "one long alias": (f"a: &a {'x' * 9999}\nb: [{'*a, ' * 999}]", r"its aliases"),
    "nested lists": ("model: " + "[" * 9999, "nested too deeply"),
    "nested mappings": ("{a: " * 9999, "nested too deeply"),
    "list as a key": ("[a, b]: 1", "a key must be a word, not a sequence, in line 1"),
    "list as a key within": ("ternary:\n  ? [a]\n  : 1", "a key must be a word"),
    "mapping as a key": ("? {a: b}\n: 1", "a key must be a word, not a mapping"),
    "a number as a key": ("1: 2", "must hold 'field: value' lines"),
    "a date that is none": ("model: 2001-99-99", "not valid YAML"),
    "tags that fail": ("model: !!timestamp x", "not valid YAML: AttributeError"),
    "a truth value that is none": ("model: !!bool x", "not valid YAML: KeyError"),
    "code": ("model: !!python/object/apply:os.system [exit]", "not valid YAML"),
    "control characters": ("model: \x1b[2J", "not valid YAML"),
    "a long key": ("x" * 200_000 + "\x85: 1", "unknown key|not valid YAML"),
    "a long value": (f"num_train_epochs: {'x' * 200_000}", "num_train_epochs must be a number"),
    "a large number": (f"num_train_epochs: 0x{'f' * 9999}", "num_train_epochs must be a number"),
    "a nested value": (f"num_train_epochs: {'[' * 90}{']' * 90}", "num_train_epochs must be"),
    "too large": ("# x\n" * 99_999, "larger than 262,144 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_recipes_end_in_one_line(case: str, tmp_path: Path) -> None:
    text, match = HOSTILE[case]
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=match) as caught:
        parse([str(path)], *ARGUMENTS)
    line = str(caught.value)
    assert line.isprintable() and len(line) <= 1000 and "hostile.yaml" in line
    assert time.perf_counter() - start < 5


def test_anchors_as_people_use_them(tmp_path: Path) -> None:
    path = tmp_path / "anchors.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]")
    one = {"x": 1, "y": 2}
    assert load_yaml(path) == {"a": one, "b": {"x": 1, "y": 3}, "c": [one, one]}


def test_the_pipe_of_a_shell() -> None:
    """`timm-ternary train <(command)`."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        file.write("model: resnet18")
    assert load_yaml(f"/dev/fd/{read}") == {"model": "resnet18"}
    os.close(read)


def test_the_help_lists_the_fields_of_every_dataclass() -> None:
    text = describe("usage", *ARGUMENTS)
    for name in ("--model", "--dataset", "--threshold_every", "--learning_rate", "--report_to"):
        assert name in text


def test_no_field_belongs_to_two_dataclasses() -> None:
    names = [f.name for cls in ARGUMENTS for f in fields(cls)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_recipe_loads(path: Path) -> None:
    model, data, training = parse([str(path)], *ARGUMENTS)
    name = model.model.partition(".")[0]
    assert name.endswith("_tern") == (model.ternary is not None)
    check(TernaryConfig.of(model.ternary))
    assert data.dataset
    assert training.output_dir == f"out/{path.parent.name}/{path.stem}"
    if model.checkpoint is not None:
        start = path.parent / f"{Path(model.checkpoint).name}.yaml"
        assert load_yaml(start)["output_dir"] == model.checkpoint
    json.dumps(training.to_dict())


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_recipe_names_what_was_published_or_measured(path: Path) -> None:
    lines = path.read_text().splitlines()
    head = " ".join(line[2:] for line in itertools.takewhile(lambda line: line[:1] == "#", lines))
    assert re.search(r"(Published|Measured): .*\d\d\.\d+ %|[Nn]o number|prints no number", head)
    if "Published" in head:
        assert re.search(r"Table [123I]|Figure|WACV", head)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("accelerate/*.yaml")), ids=lambda p: p.stem)
def test_every_launch_file_is_read_by_accelerate(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes >= config.num_machines
    expected = {"one_gpu": "NO", "fsdp2": "FSDP"}.get(path.stem, "MULTI_GPU")
    assert str(getattr(config.distributed_type, "value", config.distributed_type)) == expected


def test_the_command_of_fsdp2_names_the_blocks_of_its_model() -> None:
    text = (RECIPES / "README.md").read_text()
    found = re.search(r"fsdp2\.yaml.*?cls_to_wrap (\w+).*?recipes/(\S+\.yaml)", text, re.DOTALL)
    assert found is not None
    name = load_yaml(RECIPES / found[2])["model"].partition(".")[0].removesuffix("_tern")
    assert found[1] in {type(module).__name__ for module in timm.create_model(name).modules()}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{options: {t: 1e-3}}", {"options": {"t": 1e-3}}),
        ("{t: 1E5, u: -2.5e3, v: .5e-1, w: +1.e+2}", {"t": 1e5, "u": -2.5e3, "v": 0.05, "w": 1e2}),
        ("{steps: [1e1, 20, {a: 3e0}]}", {"steps": [10.0, 20, {"a": 3.0}]}),
        ("{quoted: '1e-3', word: 1e-3x, hash: 12e, id: e12}",
         {"quoted": "1e-3", "word": "1e-3x", "hash": "12e", "id": "e12"}),
        ("\n  a: &a {t: 1e-3}\n  b: *a", {"a": {"t": 1e-3}, "b": {"t": 1e-3}}),
    ],
)  # fmt: skip
def test_numbers_within_a_mapping_are_numbers(
    tmp_path: Path, text: str, value: dict[str, Any]
) -> None:
    numbers, _ = read(tmp_path, f"table: {text}")
    assert numbers.table == value
    assert repr(numbers.table) == repr(value)  # and of the same types


def test_text_that_looks_like_a_number_stays_as_it_was_written(tmp_path: Path) -> None:
    numbers, _ = read(tmp_path, "word: 1e3")
    assert numbers.word == "1e3"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("lr", "learning_rate"),
        ("batch_size", "per_device_train_batch_size"),
        ("epochs", "num_train_epochs"),
        ("wd", "weight_decay"),
        ("workers", "dataloader_num_workers"),
        ("data", "dataset"),
        ("arch", "model"),
        ("img_size", "image_size"),
        ("steps", "max_steps"),
        ("sched", "lr_scheduler_type"),
        ("opt", "optimizer"),
        ("method", "ternary"),
        ("smoothing", "label_smoothing_factor"),
        ("output", "output_dir"),
        ("resume", "resume_from_checkpoint"),
        ("temperature", "distill_temperature"),
        ("LR", "learning_rate"),
        ("learning-rat", "learning_rate"),
    ],
)
def test_other_programs_names_suggest_ours(tmp_path: Path, given: str, meant: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"{given}: 1\n")
    with pytest.raises(ValueError, match=rf"unknown key '{given}'; did you mean '{meant}'\?"):
        parse([str(path)], *ARGUMENTS)
    with pytest.raises(ValueError, match=rf"unknown option '--{given}'; did you mean '--{meant}'"):
        parse([f"--{given}", "1"], *ARGUMENTS)


def test_every_suggestion_is_a_field_and_no_field_is_hidden() -> None:
    known = {f.name for cls in ARGUMENTS for f in fields(cls)}
    assert set(_MEANT) <= known
    assert not set(_FIELD_OF) & known
    others = [other for names in _MEANT.values() for other in names]
    assert len(others) == len(set(others))
