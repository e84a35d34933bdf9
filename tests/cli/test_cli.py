"""The command line: what it prints, what it writes, and how mistakes end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command_line import Run
from PIL import Image

import timm_ternary  # noqa: F401  (registers the models)
from timm_ternary.checkpoint.directory import save_packed
from timm_ternary.cli import training
from timm_ternary.onnx.export import RUNTIMES, WEIGHTS, runtime_knows

MODEL = "resnet8_cifar_tern"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("packed")
    return save_packed(timm.create_model(MODEL, num_classes=10, in_chans=1), directory)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Two classes of noise in an image folder with a train and a test part."""
    rng = np.random.default_rng(0)
    paths = []
    for split, count in (("train", 8), ("test", 4)):
        for label, level in (("dark", 40), ("light", 200)):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 40, (32, 32, 3)) + level
                paths.append(tmp_path / "images" / split / label / f"{k}.png")
                Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


def test_inspect(run: Run, packed: Path) -> None:
    status, out, _ = run("inspect", packed)
    assert status == 0
    assert "layer1.0.conv1" in out and "tga, packed: 8 ternary layers" in out
    status, out, _ = run("inspect", packed, "--json")
    summary = json.loads(out)
    assert status == 0 and summary["packed"] and summary["method"] == "tga"
    assert sum(layer["weights"] for layer in summary["layers"]) == summary["ternary_weights"]


def test_inspect_takes_a_method_as_json(run: Run) -> None:
    method = json.dumps({"method": "ttq", "exclude": ["first", "last"]})
    status, out, _ = run("inspect", MODEL, "--ternary", method, "--json")
    assert status == 0
    assert json.loads(out)["layers"][0]["name"] == "layer1.0.conv1"
    assert json.loads(out)["method"] == "ttq"


def test_pack_changes_the_encoding(run: Run, packed: Path, tmp_path: Path) -> None:
    sizes = {}
    for encoding in ("2bit", "base3", "zstd"):
        status, out, _ = run("pack", packed, tmp_path / encoding, "--encoding", encoding, "--json")
        assert status == 0
        sizes[encoding] = json.loads(out)["bytes"]
        assert (tmp_path / encoding / "model.safetensors").stat().st_size == sizes[encoding]
    assert sizes["base3"] < sizes["2bit"] and sizes["zstd"] < sizes["2bit"]
    x = torch.randn(1, 1, 32, 32)
    networks = [
        timm.create_model(f"local-dir:{tmp_path / encoding}", pretrained=True).eval()
        for encoding in sizes
    ]
    assert torch.equal(networks[0](x), networks[1](x))
    assert torch.equal(networks[0](x), networks[2](x))


def test_pack_a_trained_checkpoint(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = timm.create_model(MODEL, num_classes=10, in_chans=1).eval()
    save_file(model.state_dict(), tmp_path / "trained.safetensors")
    words = ("--checkpoint", tmp_path / "trained.safetensors", "--num-classes", 10, "--in-chans", 1)
    status, out, _ = run("pack", MODEL, tmp_path / "out", *words)
    assert status == 0 and "2bit" in out
    x = torch.randn(1, 1, 32, 32)
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(again(x), model(x))


def test_evaluate(run: Run, packed: Path) -> None:
    status, out, _ = run("evaluate", packed, "--dataset", "digits", "--json")
    result = json.loads(out)
    assert status == 0 and result["images"] == 360
    assert 0 <= result["top1"] <= result["top5"] <= 1
    status, out, _ = run("evaluate", packed, "--dataset", "digits", "--max-samples", 50)
    assert status == 0 and "top-1" in out and " 50 " in out


def test_evaluate_per_class(run: Run, packed: Path) -> None:
    words = ("evaluate", packed, "--dataset", "digits", "--max-samples", 50)
    status, out, _ = run(*words, "--per-class", "--json")
    result = json.loads(out)
    assert status == 0 and [c["name"] for c in result["classes"]] == list("0123456789")
    assert sum(c["images"] for c in result["classes"]) == sum(x[2] for x in result["confusion"])
    correct = sum(c["correct"] for c in result["classes"])
    assert correct == 50 * result["top1"] and 0.1 <= result["majority"] <= 1
    status, out, _ = run(*words, "--per-class")
    assert status == 0 and "most often taken for" in out and "mistakes" in out
    assert "classes" not in json.loads(run(*words, "--json")[1])


def test_evaluate_takes_the_split_it_is_told(run: Run, packed: Path) -> None:
    status, out, _ = run("evaluate", packed, "--dataset", "digits", "--split", "train", "--json")
    assert status == 0 and json.loads(out)["images"] == 1437
    status, _, err = run("evaluate", packed, "--dataset", "digits", "--split", "tset")
    assert status == 2 and "did you mean 'test'?" in err


def test_evaluate_refuses_data_of_other_classes(run: Run, images: list[Path]) -> None:
    model = timm.create_model(MODEL, num_classes=10)
    directory = images[0].parents[3] / "letters"
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": list("abcdefghij")}
    save_packed(model, directory)
    status, out, err = run("evaluate", directory, "--dataset", images[0].parents[2])
    assert status == 2 and out == ""
    assert "the data have the classes dark, light (2), the model a, b, c, d, e, ... (10)" in err


def test_predict_sees_images_upright_and_in_8_bits(run: Run, packed: Path, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8)
    image = Image.fromarray(grey)
    image.save(tmp_path / "plain.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    exif = image.getexif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    paths = [tmp_path / f"{name}.png" for name in ("plain", "deep", "turned")]
    plain, *others = json.loads(run("predict", packed, *paths, "--json")[1])
    for other in others:
        assert other["probabilities"] == plain["probabilities"], other["path"]


def test_predict_names_and_skips_wrong_files(
    run: Run, packed: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = images[0].with_suffix(".txt")
    wrong.write_text("no image")
    status, out, err = run("predict", packed, images[0], wrong, "--top", 3, "--json")
    assert status == 0
    (result,) = json.loads(out)
    assert len(result["classes"]) == 3 and result["path"] == str(images[0])
    assert sum(result["probabilities"]) <= 1 + 1e-6
    assert err.strip() == f"skipped {wrong}: not an image"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32 // 2 - 1)  # Pillow refuses twice that
    missing = wrong.with_name("missing.png")
    status, out, err = run("predict", packed, images[0], missing, images[0].parent)
    assert status == 2 and out == ""
    lines = err.splitlines()
    assert lines[0].startswith(f"skipped {images[0]}: ") and "decompression bomb" in lines[0]
    assert lines[1] == f"skipped {missing}: no such file"
    assert lines[2] == f"skipped {images[0].parent}: not a file, but a directory"
    status, out, err = run("predict", packed, wrong)
    assert status == 2 and err.splitlines()[-1] == "error: no image could be read"


def test_list(run: Run) -> None:
    status, out, _ = run("list", "resnet18*")
    assert status == 0 and "resnet18_tern" in out.split() and "resnet18" not in out.split()
    status, out, _ = run("list", "resnet18_tern", "--tags", "--json")
    assert status == 0 and "resnet18_tern.a1_in1k" in json.loads(out)
    status, out, _ = run("list", "--methods", "--json")
    assert status == 0 and json.loads(out)["tga"]["init_factor"] == 0.1


def test_train_evaluate_predict_on_an_image_folder(
    run: Run, images: list[Path], tmp_path: Path
) -> None:
    folder, recipes = images[0].parents[2], Path(__file__).parents[2] / "recipes" / "digits"
    short = ("--dataset", folder, "--num_train_epochs", 1, "--use_cpu", "true")
    words = ("--output_dir", tmp_path / "float", "--eval_strategy", "no", *short)
    assert run("train", recipes / "resnet8_float.yaml", *words)[0] == 0
    start = ("--checkpoint", tmp_path / "float", "--output_dir", tmp_path / "ternary")
    words = (*start, "--eval_strategy", "no", *short)
    assert run("train", recipes / "resnet8_tga.yaml", *words)[0] == 0
    status, out, _ = run("evaluate", tmp_path / "ternary", "--dataset", folder, "--json")
    metrics = json.loads((tmp_path / "ternary" / "metrics.json").read_text())
    assert status == 0 and json.loads(out)["top1"] == pytest.approx(metrics["eval_accuracy"])
    status, out, _ = run("predict", tmp_path / "ternary", images[-1], "--json")
    assert status == 0 and set(json.loads(out)[0]["names"]) == {"dark", "light"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "resnt18_tern"], "did you mean 'resnet18_tern'?"),
        (["inspect", "resnet18_tern.a1_in2k"], "did you mean 'a1_in1k'?"),
        (["inspect", "resnet18"], "type resnet18_tern"),
        (["inspect", MODEL, "--ternary", "tgaa"], "did you mean 'tga'?"),
        (["inspect", MODEL, "--ternary", '{"metod": "tga"}'], "did you mean 'method'?"),
        (["inspect", MODEL, "--ternary", "{"], "ternary: '{' is not valid JSON"),
        (["inspect", MODEL, "--checkpoint", "nowhere"], "checkpoint 'nowhere': no such file"),
        (["inspect", "local-dir:nowhere"], "cannot load 'local-dir:nowhere'"),
        (["pack", MODEL, "out", "--encoding", "bas3"], "did you mean 'base3'?"),
        (["evaluate", MODEL], "Missing option '--dataset'"),
        (["list", "nothing*"], "no ternary model matches 'nothing*_tern'"),
        (["train", "nowhere.yaml"], "recipe 'nowhere.yaml' does not exist"),
        (["train", "r.yaml", "--accelerate"], "--accelerate needs a file"),
        (["inspct"], "No such command 'inspct'"),
    ],
)
def test_mistakes_end_in_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*words)
    assert status == 2 and out == ""
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing is half-written"


def test_train_passes_the_accelerate_file_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("compute_environment: LOCAL_MACHINE\n")
    recipe = str(tmp_path / "r.yaml")
    Path(recipe).write_text("model: resnet8_cifar\ndataset: digits\n")
    seen = []

    def start(command: list[str]) -> int:
        seen.append(command)
        return 3

    monkeypatch.setattr(training, "launch", start)
    file = str(tmp_path / "config.yaml")
    status, _, _ = run("train", recipe, "--accelerate", file, "--seed", "1")
    assert status == 3
    run("train", recipe, f"--accelerate={file}", "--seed", "1")
    assert seen[1] == seen[0]
    assert seen[0][1:] == [
        *("-m", "accelerate.commands.launch", "--config_file", file),
        *("-m", "timm_ternary.train", recipe, "--seed", "1"),
    ]
    status, _, err = run("train", recipe, "--accelerate", file, "--sed", "1")
    assert status == 2 and "did you mean '--seed'?" in err and len(seen) == 2


def test_sigterm_is_passed_on_to_what_is_launched() -> None:
    parent = os.getpid()
    said = "import os, signal, sys, time\n"
    said += "signal.signal(signal.SIGTERM, lambda *_: sys.exit(77))\n"
    said += f"os.kill({parent}, signal.SIGTERM)\ntime.sleep(60)"
    assert training.launch([sys.executable, "-c", said]) == 77
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert training.launch([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"]) == 143


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m timm_ternary.cli list | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("_tern\n") and "Traceback" not in done.stderr


def test_export(run: Run, packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    status, out, _ = run("export", packed, path, "--image-size", 16, "--json")
    result = json.loads(out)
    assert status == 0 and result["weights"] == "int2" and result["opset"] == 25
    assert result["bytes"] == path.stat().st_size
    assert result["error"] <= 1e-4 if runtime_knows("int2") else result["error"] is None
    _, out, _ = run("export", packed, path, "--image-size", 16)
    assert out.splitlines()[1:] == [f"int2: {RUNTIMES['int2']}"] and "OpenVINO" in out
    status, out, _ = run("export", packed, path, "--weights", "float")
    assert status == 0 and f"{path.stat().st_size:,} bytes, float, opset 18, off torch by" in out


def test_every_kind_of_weights_says_who_reads_it() -> None:
    assert RUNTIMES.keys() == WEIGHTS.keys()


def test_export_mistakes(run: Run, packed: Path, tmp_path: Path) -> None:
    for words, line in (
        ((packed, tmp_path / "model.pt"), "ends in .onnx"),
        ((packed, tmp_path / "a.onnx", "--weights", "int4"), "unknown kind of weights 'int4'"),
        ((MODEL[:-5], tmp_path / "a.onnx"), f"is a float model; type {MODEL}"),
    ):
        status, _, err = run("export", *words)
        assert status == 2 and line in err and err.count("\n") == 1
    assert not list(tmp_path.glob("*.onnx"))
