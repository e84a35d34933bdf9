"""The command `report`."""

from __future__ import annotations

import json
import sys
from html import unescape
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from recipe_files import recipe
from safetensors.torch import save_file

import timm_ternary  # noqa: F401  (registers the models)
from timm_ternary import cli, train
from timm_ternary.checkpoint.directory import save_packed

MODEL = "resnet8_cifar_tern"
FIGURES = ("accuracy", "confusion", "kernels", "scale", "training_1", "weights")


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
        ((MODEL,), f"timm-ternary report {MODEL} OUTDIR"),
    ):
        assert _call(monkeypatch, *words) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not out.exists()


def test_the_latent_weights_of_the_last_checkpoint_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    ternary = {"method": "tga", "options": {"init_factor": [0.05, 0.2]}}
    model = timm.create_model(MODEL, num_classes=7, in_chans=1, ternary=ternary)
    run = save_packed(model, tmp_path / "DIR")
    (run / "history.json").write_text(json.dumps([{"epoch": 1, "eval_accuracy": 0.5}]))
    (run / "checkpoint-5").mkdir()
    (run / "checkpoint-5" / "trainer_state.json").write_text("{}")
    save_file(model.state_dict(), run / "checkpoint-5" / "model.safetensors")
    assert _call(monkeypatch, run, "--dataset", "digits") == 2  # 7 classes, digits have ten
    assert _call(monkeypatch, run) == 0
    page = (run / "report" / "index.html").read_text()
    assert "From checkpoint-5 of DIR." in page and (run / "report" / "scale.png").is_file()
    # Of a model that lies elsewhere, by --run.
    other = save_packed(model, tmp_path / "other")
    assert _call(monkeypatch, other, tmp_path / "out", "--run", run) == 0
    assert "From checkpoint-5 of DIR." in (tmp_path / "out" / "index.html").read_text()


def test_a_finished_run_leaves_no_section_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.main(recipe(tmp_path / "float", model="resnet8_cifar"))
    checkpoint = str(tmp_path / "float" / "out")
    options = {"checkpoint": checkpoint, "save_strategy": "epoch", "logging_steps": 1}
    train.main(recipe(tmp_path / "tga", model=MODEL, **options))
    run = tmp_path / "tga" / "out"
    assert _call(monkeypatch, run) == 0
    page = unescape((run / "report" / "index.html").read_text())
    assert "Left out" not in page and " type " not in page
    metrics = json.loads((run / "metrics.json").read_text())
    floats = json.loads((Path(checkpoint) / "metrics.json").read_text())
    for share in (metrics["reloaded_accuracy"], floats["eval_accuracy"]):
        assert f"{100 * share:.2f} %" in page
    assert "digits, split test: 64 images" in page and "trained on 128 (split train)" in page
    found = {path.name for path in (run / "report").glob("*.png")}
    assert found == {f"{name}.png" for name in FIGURES}


def test_accuracy_on_other_images(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _call(monkeypatch, trained, "--dataset", "digits", "--split", "test") == 0
    page = (trained / "report" / "index.html").read_text()
    assert "digits, split test: 360 images of 10 classes" in page
    assert (trained / "report" / "confusion.png").is_file()


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
