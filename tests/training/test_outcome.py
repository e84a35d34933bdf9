"""The last lines of a run: every number in them is that of the files, every command works."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_files import recipe

from timm_ternary import train
from timm_ternary.training.outcome import outcome


def trained(path: Path, capsys: pytest.CaptureFixture[str], **values: Any) -> list[str]:
    """The lines on stderr of a short run on digits."""
    train.main(recipe(path, **values))
    return capsys.readouterr().err.splitlines()


def test_a_float_run_and_the_ternary_one_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Any
) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "t").mkdir()
    lines = trained(tmp_path / "f", capsys, model="resnet8_cifar")
    directory = tmp_path / "f" / "out"
    size = (directory / "model.safetensors").stat().st_size
    kilobytes = f"{size / 1000:,.1f} kB"
    assert f"{directory} holds model.safetensors ({kilobytes}), config.json, metrics" in lines[-3]
    found = json.loads((directory / "evaluation.json").read_text())
    assert lines[-2].startswith(f"accuracy {found['top1']:.2%} of 64 held-out images; of always")
    words = shlex.split(lines[-1].removeprefix("next: "))
    assert words[:4] == ["timm-ternary", "train", "--model", "resnet8_cifar_tern"]
    assert words[words.index("--teacher") + 1] == words[words.index("--checkpoint") + 1]

    lines = trained(tmp_path / "t", capsys, model="resnet8_cifar_tern", checkpoint=str(directory))
    own = json.loads((tmp_path / "t" / "out" / "evaluation.json").read_text())["top1"]
    assert re.search(r"\d+\.\d times less than the [\d.]+ kB in float\)", lines[-5])
    points = 100 * (own - found["top1"])
    assert (
        f"of the float network it started from {found['top1']:.2%} ({points:+.2f} points)"
        in (lines[-4])
    )
    for line in lines[-3:-1]:  # the last one pushes
        words = shlex.split(line.removeprefix("next:"))
        status, _, _ = run(*words[1:])
        assert words[0] == "timm-ternary" and status == 0


def test_the_recipe_of_the_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, capsys, model="resnet8_cifar")
    own = tmp_path / "my_float.yaml"
    own.write_text("")
    (tmp_path / "my_tga.yaml").write_text(yaml.safe_dump({"teacher": "out/x"}))
    out = tmp_path / "out"
    last = outcome(out, dataset={"train": "a b.parquet"}, recipe=str(own))[-1]
    assert shlex.split(last) == [
        *("next:", "timm-ternary", "train", str(tmp_path / "my_tga.yaml")),
        *("--model", "resnet8_cifar_tern", "--checkpoint", str(out), "--teacher", str(out)),
        *("--dataset", '{"train": "a b.parquet"}'),
    ]


def test_no_better_than_the_commonest_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, capsys, model="resnet8_cifar")
    path = tmp_path / "out" / "evaluation.json"
    found = json.loads(path.read_text())
    found |= {"top1": 0.75, "confusion": [[0, 0, 3], [1, 0, 1]]}
    path.write_text(json.dumps(found))
    (line,) = (x for x in outcome(tmp_path / "out") if x.startswith("accuracy"))
    assert line.startswith("accuracy 75.00% of 4 held-out images; of always saying '0' 75.00%: no")
