"""The whole report: what is written, what is left out and why, and how it looks on a phone."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
import timm
import torch
from browser import look
from torch import nn

import timm_ternary
from timm_ternary.nn.summary import summarize
from timm_ternary.report import PAGE_NAME, write_report

TITLES = [
    "Layers",
    "Weights",
    "Scale and threshold",
    "Layers over training",
    "Accuracy over training",
    "Accuracy against zeros",
    "Kernels",
]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet_tern", num_classes=5).eval()


def _run(directory: Path, zeros: float) -> Path:
    directory.mkdir(parents=True)
    log = [
        {"epoch": k, "zeros": zeros, "zeros/conv1": zeros, "threshold/conv1": 0.1, "accuracy": 0.4}
        for k in range(3)
    ]
    log.append({"epoch": 3, "eval_accuracy": 0.5 + zeros})
    (directory / "history.json").write_text(json.dumps(log))
    return directory


def _paragraphs(path: Path) -> dict[str, str]:
    """The text below each heading."""
    found = re.findall(r"<h2>(.*?)</h2>\n<p>(.*?)</p>", path.read_text(encoding="utf-8"))
    return {unescape(title): unescape(text) for title, text in found}


def test_everything_on_a_phone(model: nn.Module, tmp_path: Path) -> None:
    runs = [_run(tmp_path / name, zeros) for name, zeros in (("a", 0.2), ("b", 0.3))]
    files = write_report(model, tmp_path / "new" / "out", title="my model", runs=runs)
    assert [path.name for path in files] == [
        PAGE_NAME,
        "kernels.png",
        "accuracy_zeros.png",
        "accuracy.png",
        "training_2.png",
        "training_1.png",
        "scale.png",
        "weights.png",
    ]
    assert sorted(files) == sorted((tmp_path / "new" / "out").iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files[1:])
    assert "Left out" not in files[0].read_text(encoding="utf-8")
    seen = look(files[0], 390, tmp_path)
    assert seen["headings"] == ["my model", *TITLES]
    assert seen["width"] == 390 and seen["scroll_width"] <= 390
    assert len(seen["images"]) == 7 and seen["outside"] == 0
    for image in seen["images"]:
        assert image["complete"] and image["natural"] > 800 and 300 < image["shown"] <= 390
        assert image["alt"] and image["local"]


def test_the_table_holds_all_layers(model: nn.Module, tmp_path: Path) -> None:
    text = write_report(model, tmp_path)[0].read_text(encoding="utf-8")
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    cells = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in rows]
    summary = summarize(model)
    assert len(cells) == len(summary.layers) + 2
    for row, layer in zip(cells[1:-1], summary.layers, strict=True):
        assert row[0] == layer.name and row[3] == f"{layer.zeros:.1%}"
        assert [int(cell.replace(",", "")) for cell in row[6:8]] == [
            layer.packed_bytes,
            layer.float_bytes,
        ]
        assert 0.5 < float(row[8]) <= 1
    assert cells[-1][2] == f"{summary.ternary_weights:,}"


def test_what_is_left_out_says_why(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm_ternary.ternarize_(nn.Sequential(nn.Linear(8, 4)), "twn")
    texts = _paragraphs(write_report(model, tmp_path)[0])
    assert list(texts) == TITLES
    assert "the method twn trains no threshold" in texts["Scale and threshold"]
    for title in TITLES[3:6]:
        assert "type --run" in texts[title]
    assert "larger than 1x1" in texts["Kernels"]
    texts = _paragraphs(write_report(timm_ternary.pack_(model), tmp_path)[0])
    assert "no latent weights" in texts["Weights"]
    assert "no thresholds" in texts["Scale and threshold"]
    run = _run(tmp_path / "run", 0.2)
    texts = _paragraphs(write_report(model, tmp_path, runs=[run])[0])
    assert "two runs or more" in texts["Accuracy against zeros"]
    assert "Left out" not in texts["Layers over training"] + texts["Accuracy over training"]


def test_nothing_is_written_on_a_mistake(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not ternary"):
        write_report(nn.Linear(2, 2), tmp_path / "out")
    with pytest.raises(ValueError, match="no directory with history"):
        write_report(model, tmp_path / "out", runs=[tmp_path / "nowhere"])
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cannot write to .*name another directory") as error:
            write_report(model, path)
        assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "precious"
    (tmp_path / "page" / PAGE_NAME).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"index\.html is a directory"):
        write_report(model, tmp_path / "page")
    assert [path.name for path in (tmp_path / "page").iterdir()] == [PAGE_NAME]


def test_figures_of_an_earlier_report_do_not_stay(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "own.png").write_text("mine")
    write_report(model, tmp_path / "out", runs=[_run(tmp_path / "run", 0.2)])
    (tmp_path / "out" / "own.png").write_text("mine")
    names = {path.name for path in write_report(model, tmp_path / "out")}
    assert "training_1.png" not in names
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"own.png"}


def test_a_vision_transformer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit_tern", ternary={"method": "tga", "granularity": "channel"})
    texts = _paragraphs(write_report(model, tmp_path)[0])
    assert "Codes of 1 of 1 convolutions" in texts["Kernels"]
    assert "first output channel" in texts["Scale and threshold"]
