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
from timm_ternary.checkpoint.evaluation_file import Evaluation
from timm_ternary.confusion import Confusion
from timm_ternary.nn.summary import summarize
from timm_ternary.report import PAGE_NAME, write_report

TITLES = [
    "Accuracy over training",
    "Which classes are taken for which",
    "Weights",
    "Scale and threshold",
    "Layers over training",
    "Accuracy against zeros",
    "Kernels",
    "Layers",
]
EVALUATION = Evaluation(
    0.75, Confusion(("a", "b"), {(0, 0): 5, (0, 1): 1, (1, 1): 1, (1, 0): 1}), "photos", "test"
)


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
    out = tmp_path / "new" / "out"
    files = write_report(model, out, title="my model", runs=runs, evaluation=EVALUATION)
    assert [path.name for path in files] == [
        PAGE_NAME,
        "kernels.png",
        "accuracy_zeros.png",
        "training_2.png",
        "training_1.png",
        "scale.png",
        "weights.png",
        "confusion.png",
        "accuracy.png",
    ]
    assert sorted(files) == sorted((tmp_path / "new" / "out").iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files[1:])
    assert "Left out" not in files[0].read_text(encoding="utf-8")
    seen = look(files[0], 390, tmp_path)
    assert seen["headings"] == ["my model", *TITLES]
    assert seen["width"] == 390 and seen["scroll_width"] <= 390
    assert len(seen["images"]) == 8 and seen["outside"] == 0
    assert len(seen["tables"]) == 3  # compared runs, classes, layers
    for table in seen["tables"]:
        assert table["left"] >= 0 and table["right"] <= 390 and table["cut"] == 0
    for image in seen["images"]:
        assert image["complete"] and image["natural"] > 800 and 300 < image["shown"] <= 390
        assert image["alt"] and image["local"]


def _cells(text: str) -> list[list[str]]:
    """The rows of the last table."""
    table = text[text.rindex("<table") : text.rindex("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    return [[unescape(c) for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def _number(cell: str) -> int:
    return int(cell.replace(",", ""))


def test_the_table_holds_all_layers(model: nn.Module, tmp_path: Path) -> None:
    head, *rows = _cells(write_report(model, tmp_path)[0].read_text(encoding="utf-8"))
    summary = summarize(model)
    assert head == ["layer", "shape", "weights", "zeros", "scale", "bytes", "bytes in float", "W"]
    assert len(rows) == len(summary.layers) + 3
    for row, layer in zip(rows, summary.layers, strict=False):
        assert row[0] == layer.name and row[3] == f"{layer.zeros:.1%}"
        assert [*map(_number, row[5:7])] == [layer.packed_bytes, layer.float_bytes]
        assert 0.5 < float(row[7]) <= 1
    assert rows[-1][2] == f"{summary.ternary_weights:,}"


@pytest.mark.parametrize("encoding", ["2bit", "base3", "zstd"])
def test_one_total_that_of_the_file(model: nn.Module, tmp_path: Path, encoding: str) -> None:
    source = timm_ternary.checkpoint.save_packed(model, tmp_path / "model", encoding)
    floats = timm_ternary.checkpoint.save_float(
        timm.create_model("test_resnet", num_classes=5), tmp_path / "float"
    )
    packed = timm_ternary.checkpoint.load_packed(source)
    text = write_report(packed, tmp_path / "out", source=source)[0].read_text(encoding="utf-8")
    _, *rows = _cells(text)
    whole = [(path / "model.safetensors").stat().st_size for path in (source, floats)]
    for column, total in zip((5, 6), whole, strict=True):
        assert _number(rows[-1][column]) == total
        assert sum(_number(row[column]) for row in rows[:-1]) == total
    assert f"{whole[0]:,} bytes instead of {whole[1]:,} in float" in text
    assert f"{whole[0]:,} bytes ({encoding}, " in text
    assert "W" not in _cells(text)[0]  # of a packed model alone, always empty


def test_the_total_of_any_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm_ternary.ternarize_(nn.Sequential(nn.Linear(8, 4)), "ttq")
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "pos" in name).mul_(2)
    text = write_report(model, tmp_path)[0].read_text(encoding="utf-8")
    head, *rows = _cells(text)
    summary = summarize(model)
    assert "scale +" in head and "scale -" in head and "scale" not in head
    column = head.index("bytes")
    assert _number(rows[-1][column]) == sum(_number(row[column]) for row in rows[:-1])
    assert f"{summary.packed_bytes:,} bytes instead of {summary.float_bytes:,}" in text


def test_what_is_left_out_says_what_to_type(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm_ternary.ternarize_(nn.Sequential(nn.Linear(8, 4)), "twn")
    texts = _paragraphs(write_report(model, tmp_path)[0])
    # twn trains no threshold, there is no convolution, and no two runs to be compared.
    assert list(texts) == [*TITLES[:3], TITLES[4], TITLES[7]]
    for title in ("Accuracy over training", "Layers over training"):
        assert "type timm-ternary report MODEL OUTDIR --run DIR" in texts[title]
    assert "OUTDIR --dataset NAME" in texts["Which classes are taken for which"]
    page = tmp_path / PAGE_NAME
    assert "not measured; type timm-ternary report" in page.read_text(encoding="utf-8")
    texts = _paragraphs(write_report(timm_ternary.pack_(model), tmp_path)[0])
    assert "Latent weights: type timm-ternary report MODEL OUTDIR --run DIR" in texts["Weights"]
    assert "Left out: type" in texts["Scale and threshold"]
    run = _run(tmp_path / "run", 0.2)
    texts = _paragraphs(write_report(model, tmp_path, runs=[run])[0])
    assert "--save_strategy epoch" in texts["Weights"]
    assert "Left out" not in texts["Layers over training"] + texts["Accuracy over training"]
    assert all(len(text) < 160 for text in texts.values() if "Left out" in text)


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
