"""The command `report`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import torch

import timm_ternary  # noqa: F401  (registers the models)
from timm_ternary import cli
from timm_ternary.checkpoint import save_packed

MODEL = "resnet8_cifar_tern"


def _call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["timm-ternary", "report", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """As a training leaves it: a packed model and its log."""
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=10, in_chans=1)
    directory = save_packed(model, tmp_path / "trained")
    log = [{"epoch": k, "zeros/conv1": 0.1, "eval_accuracy": 0.5} for k in range(2)]
    (directory / "history.json").write_text(json.dumps(log))
    return directory


def test_report(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _call(monkeypatch, trained, tmp_path / "out", "--json") == 0
    written = json.loads(capsys.readouterr().out)
    assert written["page"] == str(tmp_path / "out" / "index.html")
    names = [Path(figure).name for figure in written["figures"]]
    # Its own log is found without --run.
    assert sorted(names) == ["accuracy.png", "kernels.png", "training_1.png", "weights.png"]
    assert all(Path(path).is_file() for path in [written["page"], *written["figures"]])

    assert _call(monkeypatch, f"local-dir:{trained}", tmp_path / "out", "--run", trained) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'index.html'}: 4 figures\n"


def test_mistakes_end_in_one_line(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    for words, message in (
        ((trained, trained / "config.json"), "name another directory"),
        ((trained, out, "--run", tmp_path), "type --run with the output_dir of a training"),
        (("resnet18", out), "type resnet18_tern"),
        ((trained,), "Missing argument 'OUTDIR'"),
    ):
        assert _call(monkeypatch, *words) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not out.exists()
