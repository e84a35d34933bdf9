"""What a tracker gets: --report_to tensorboard, --report_to trackio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trainer_models import trainer

EACH_STEP = {"num_train_epochs": 1, "eval_strategy": "steps", "eval_steps": 5}
EXPECTED = {
    "train/loss": 10,
    "train/accuracy": 10,
    "train/threshold_learning_rate": 10,
    "train/threshold_grad_norm": 10,
    "train/zeros": 10,
    "train/zeros/first": 10,
    "train/zeros/second": 10,
    "train/threshold/second": 10,
    "train/threshold/head": 10,
    "eval/loss": 2,
    "eval/accuracy": 2,
}
"""How many values of each a run of ten steps with two evaluations reports."""


def _history(run: Any, tag: str) -> list[float]:
    """What the run's own log holds of `tag`, in order."""
    key = tag.removeprefix("train/") if tag.startswith("train/") else tag.replace("/", "_", 1)
    return [entry[key] for entry in run.state.log_history if key in entry]


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    run = trainer(tmp_path, report_to=["tensorboard"], **EACH_STEP)
    run.train()
    events = accumulator.EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    for tag, count in EXPECTED.items():
        found = events.Scalars(tag)
        assert len(found) == count, tag
        assert [event.value for event in found] == pytest.approx(_history(run, tag)), tag
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 11))
    assert len(set(_history(run, "train/threshold/second"))) > 1


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read on import
    trackio = pytest.importorskip("trackio")
    options: dict[str, Any] = {"project": "ternary", "run_name": "one", **EACH_STEP}
    run = trainer(tmp_path, report_to=["trackio"], **options)
    run.train()
    logs = trackio.SQLiteStorage.get_logs("ternary", "one")
    for tag, count in EXPECTED.items():
        found = [entry[tag] for entry in logs if tag in entry]
        assert len(found) == count, tag
        assert found == pytest.approx(_history(run, tag)), tag


def test_nothing_is_reported_unless_asked(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert run.args.report_to == []
    run.train()
    assert not list(tmp_path.rglob("*tfevents*"))
