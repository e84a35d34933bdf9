"""`pack DIR OUT` keeps what is known of a run where the codes are the same, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from command_line import Run
from samples import contents, trained

import timm_ternary  # noqa: F401  (registers the models)
from timm_ternary.checkpoint import open_directory, save_packed
from timm_ternary.hub.card import card_text, is_generated, write_card

KNOWN = ["metrics.json", "training.json", "history.json", "evaluation.json"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The output_dir of a run, with all that a run writes."""
    directory = save_packed(trained("resnet8_cifar_tern"), tmp_path / "run")
    sha = open_directory(directory).sha256
    files: dict[str, Any] = {
        "metrics.json": {"eval_accuracy": 0.5, "reloaded_accuracy": 0.5},
        "training.json": {"weights_sha256": sha, "steps": 7, "of a later version": [1]},
        "history.json": [{"loss": 1.0, "step": 7}],
        "evaluation.json": {"weights_sha256": sha, "top1": 0.5},
        "other.json": {},
    }
    for name, values in files.items():
        (directory / name).write_text(json.dumps(values))
    write_card(directory, license="mit")
    return directory


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_in_another_encoding(run: Run, directory: Path, tmp_path: Path, prefix: str) -> None:
    out = tmp_path / "out"
    status, printed, _ = run("pack", f"{prefix}{directory}", out, "--encoding", "base3", "--json")
    assert status == 0 and json.loads(printed)["kept"] == [*KNOWN, "README.md"]
    sha = open_directory(out).sha256
    assert sha != open_directory(directory).sha256
    assert not (out / "other.json").exists()
    for name in ("metrics.json", "history.json"):
        assert read(out / name) == read(directory / name)
    for name in ("training.json", "evaluation.json"):
        assert read(out / name) == {**read(directory / name), "weights_sha256": sha}
    # The card is made anew: it states the encoding and the size.
    text = (out / "README.md").read_text()
    assert is_generated(out / "README.md") and text == card_text(out, license="mit")
    assert "50.00 %" in text and "base3" in text


def test_over_itself(run: Run, directory: Path) -> None:
    before = contents(directory)
    status, printed, _ = run("pack", directory, directory, "--encoding", "base3")
    assert status == 0 and f"kept of the run: {', '.join(KNOWN)}, README.md" in printed
    assert run("pack", directory, directory)[0] == 0
    after = contents(directory)
    assert after.keys() == before.keys()
    for name in ("model.safetensors", "config.json", "README.md"):
        assert after[name] == before[name]
    for name in KNOWN:
        assert json.loads(after[name]) == json.loads(before[name])


def test_a_card_of_ones_own_is_kept_as_it_is(run: Run, directory: Path, tmp_path: Path) -> None:
    (directory / "README.md").write_text("# Mine\n")
    assert run("pack", directory, tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize(
    "words", [("--num-classes", 4), ("--in-chans", 1), ("--ternary", "ttq"), ("--other",)]
)
def test_other_codes(run: Run, directory: Path, tmp_path: Path, words: tuple[Any, ...]) -> None:
    """A file that is adapted, of another method, or that the run did not write."""
    if words == ("--other",):
        values = read(directory / "training.json")
        (directory / "training.json").write_text(json.dumps({**values, "weights_sha256": "0" * 64}))
        words = ()
    status, printed, _ = run("pack", directory, tmp_path / "out", *words, "--json")
    assert status == 0 and json.loads(printed)["kept"] == []
    assert set(contents(tmp_path / "out")) == {"model.safetensors", "config.json"}


def test_a_damaged_file_of_the_run_is_said(run: Run, directory: Path, tmp_path: Path) -> None:
    (directory / "metrics.json").write_text("{")
    status, _, err = run("pack", directory, tmp_path / "out")
    assert status == 0 and "what is known of the run is not kept" in err and "metrics.json" in err
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
