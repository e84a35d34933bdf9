"""What is read of training runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from timm_ternary.report.runs import find_log, layer_series, outcome, read_runs, series

ENTRIES: list[dict[str, Any]] = [
    {"step": 5, "epoch": 0.5, "accuracy": 0.4, "zeros": 0.2, "zeros/a.b": 0.1, "threshold/a.b": 2},
    {"step": 10, "epoch": 1.0, "eval_accuracy": 0.6},
    {"step": 15, "epoch": 1.5, "accuracy": math.nan, "zeros": 0.3, "zeros/a.b": None},
    {"step": 20, "epoch": 2.0, "eval_accuracy": 0.7, "zeros/c": True},
    {"eval_accuracy": 0.9},
]


def _write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_series_hold_finite_numbers_with_their_epochs(tmp_path: Path) -> None:
    _write(tmp_path / "history.json", ENTRIES)
    (run,) = read_runs([tmp_path])
    assert series(run, "eval_accuracy") == ([1.0, 2.0], [0.6, 0.7])
    assert series(run, "accuracy") == ([0.5], [0.4])
    assert layer_series(run) == {
        "zeros": {"a.b": ([0.5], [0.1])},
        "threshold": {"a.b": ([0.5], [2.0])},
    }
    assert outcome(run) == (0.3, 0.7)


def test_final_metrics_win(tmp_path: Path) -> None:
    _write(tmp_path / "history.json", ENTRIES)
    _write(tmp_path / "metrics.json", {"eval_accuracy": 0.8})
    assert outcome(read_runs([tmp_path])[0]) == (0.3, 0.8)
    _write(tmp_path / "history.json", [{"epoch": 1, "eval_accuracy": 0.5}])
    assert outcome(read_runs([tmp_path])[0]) is None


def test_the_newest_log(tmp_path: Path) -> None:
    assert find_log(tmp_path) is None
    for step in (9, 10, 100):
        _write(
            tmp_path / f"checkpoint-{step}" / "trainer_state.json", {"log_history": [{"n": step}]}
        )
    (tmp_path / "checkpoint-last").mkdir()
    _write(tmp_path / "checkpoint-last" / "trainer_state.json", {})
    assert read_runs([tmp_path])[0].entries == ({"n": 100},)
    assert read_runs([tmp_path / "checkpoint-9"])[0].entries == ({"n": 9},)
    _write(tmp_path / "history.json", [{"n": 200}])
    assert read_runs([tmp_path])[0].entries == ({"n": 200},)


def test_each_run_once_under_a_name_of_its_own(tmp_path: Path) -> None:
    paths = [tmp_path / "one" / "tga", tmp_path / "two" / "tga", tmp_path / "ttq"]
    for path in paths:
        _write(path / "history.json", ENTRIES)
    found = read_runs([*paths, tmp_path / "two" / ".." / "ttq"])
    assert [run.name for run in found] == [
        str(paths[0]),
        str(paths[1]),
        "ttq",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no directory with history.json or checkpoint-"),
        ("{", "history.json: not valid JSON"),
        ("{}", "not a JSON list, but dict"),
        ("[1]", "holds no list of log entries"),
    ],
)
def test_mistakes_in_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "history.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_runs([tmp_path])
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
