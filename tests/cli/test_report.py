"""The command `report`."""

from __future__ import annotations

import json
import re
import shlex
import sys
from html import unescape
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import timm_ternary  # noqa: F401  (registers the models)
from timm_ternary import cli
from timm_ternary.checkpoint.directory import save_packed

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


def test_the_command_that_a_packed_model_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    ternary = {"method": "tga", "options": {"init_factor": [0.05, 0.2]}}
    model = timm.create_model(MODEL, num_classes=7, in_chans=1, ternary=ternary)
    run = save_packed(model, tmp_path / "DIR")
    (run / "history.json").write_text(json.dumps([{"epoch": 1, "eval_accuracy": 0.5}]))
    (run / "checkpoint-N").mkdir()
    save_file(model.state_dict(), run / "checkpoint-N" / "model.safetensors")
    assert _call(monkeypatch, run, tmp_path / "packed") == 0
    page = unescape((tmp_path / "packed" / "index.html").read_text())
    found = re.search(r"type timm-ternary report (.*?)</p>", page)
    assert found is not None and not (tmp_path / "packed" / "scale.png").exists()
    monkeypatch.chdir(tmp_path)
    assert _call(monkeypatch, *shlex.split(found[1])) == 0
    assert (tmp_path / "OUTDIR" / "scale.png").is_file()


@pytest.mark.parametrize("command", ["predict", "export", "evaluate"])
def test_channels_of_a_checkpoint(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timm.create_model(MODEL, num_classes=10, in_chans=1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    Image.new("L", (32, 32)).save(tmp_path / "image.png")
    rest = {
        "predict": [tmp_path / "image.png"],
        "export": [tmp_path / "out.onnx"],
        "evaluate": ["--dataset", "digits", "--max-samples", 8],
    }[command]
    options = ["--checkpoint", tmp_path / "model.safetensors", "--num-classes", 10, "--in-chans", 1]
    words = ["timm-ternary", command, MODEL, *rest, *options]
    monkeypatch.setattr(sys, "argv", [*map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
