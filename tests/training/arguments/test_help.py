"""train --help: ours first, in groups, each option once."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from transformers import TrainingArguments

from timm_ternary.training.arguments.help import GROUPS, describe, options
from timm_ternary.training.run import ARGUMENTS

FIELDS = [f.name for cls in ARGUMENTS for f in fields(cls) if f.init]
THEIRS = {f.name for f in fields(TrainingArguments)}


def test_each_option_stands_once() -> None:
    text = describe("usage", *ARGUMENTS)
    heads = re.findall(r"^  --(\w+)", text, re.MULTILINE)
    assert sorted(heads) == sorted(FIELDS)
    assert "--learning-rate" not in text and "--no_" not in text


def test_ours_come_first() -> None:
    heads = re.findall(r"^  --(\w+)", describe("usage", *ARGUMENTS), re.MULTILINE)
    assert heads[0] == "model"
    ours = [heads.index(name) for name in FIELDS if name not in THEIRS]
    theirs = [heads.index(n) for n in FIELDS if n in THEIRS and n != "metric_for_best_model"]
    assert max(ours) < min(theirs)


def test_every_group_names_fields_that_there_are_once() -> None:
    named = [name for names in GROUPS.values() for name in names]
    assert len(named) == len(set(named)) and set(named) <= set(FIELDS)
    assert {name for name in FIELDS if name not in THEIRS} <= set(named)


@pytest.mark.parametrize("columns", [40, 80, 300])
def test_lines_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = describe("usage", *ARGUMENTS).splitlines()
    assert all(len(line) <= min(columns, 110) or " " not in line.strip() for line in lines)


def test_type_default_and_help_of_a_field() -> None:
    text = " ".join(describe("usage", *ARGUMENTS).split())
    assert "--threshold_fraction a number (default: 1.0) Alternate update: the pass of" in text
    assert "--lr_gamma a list, each entry a number (default: 0.1) The factor at" in text
    assert "--eval_strategy one of no, steps, epoch" in text
    assert "%%" not in text


def test_options_with_few_words() -> None:
    found = options(*ARGUMENTS)
    assert found["--nesterov"] == ("true", "false") and found["--model"] == ()
    assert "epoch" in found["--save_strategy"]
