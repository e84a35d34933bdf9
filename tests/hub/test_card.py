"""The model card: every figure is that of a file, and what no file says is left out."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command_line import Run
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from recipe_files import recipe
from samples import edit_config, trained
from transformers import AutoModelForImageClassification

from timm_ternary import train
from timm_ternary.checkpoint.directory import load_packed, save_float, save_packed
from timm_ternary.checkpoint.weights_file import WEIGHTS_NAME
from timm_ternary.files import bundled, sha256
from timm_ternary.hub.card import card_text, write_card
from timm_ternary.nn.summary import summarize
from timm_ternary.packing import encodings
from timm_ternary.training.arguments.recipe import load_yaml

HEADINGS = [
    *("How to load", "Model", "Data", "Accuracy", "Size", "Zeros", "Training", "Licence"),
    *("Citation", "Not stated"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float run and a ternary one that starts from it."""
    root = tmp_path_factory.mktemp("runs")
    train.main(recipe(root / "float", model="resnet8_cifar"))
    ternary = {"method": "ttq", "exclude": ["fc"], "options": {"t": 0.1}}
    start = {"checkpoint": str(root / "float" / "out"), "ternary": ternary}
    train.main(recipe(root / "ternary", model="resnet8_cifar_tern", **start))
    return root


@pytest.fixture
def packed(runs: Path, tmp_path: Path) -> Path:
    """The ternary run's directory, to be changed."""
    directory = tmp_path / "packed"
    shutil.copytree(runs / "ternary" / "out", directory)
    return directory


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def edit(path: Path, change: Callable[[Any], object]) -> None:
    values = read(path)
    change(values)
    path.write_text(json.dumps(values))


def rows(text: str) -> dict[str, list[str]]:
    """The cells of every table, by the first cell of the row."""
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}


def headings(text: str) -> list[str]:
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(text).text)
    opened = (k for k, token in enumerate(tokens) if token.type == "heading_open")
    return [tokens[k + 1].content for k in opened if tokens[k].tag == "h2"]


def unstated(text: str) -> str:
    return text.partition("## Not stated")[2]


def test_every_figure_is_that_of_a_file(packed: Path, runs: Path) -> None:
    text = card_text(packed)
    table, metrics, facts = (
        rows(text),
        read(packed / "metrics.json"),
        read(packed / "training.json"),
    )
    floats = read(runs / "float" / "out" / "metrics.json")
    assert table["float base checkpoint"] == [f"{100 * floats['eval_accuracy']:.2f} %"]
    assert table["ternary, after training"] == [f"{100 * metrics['eval_accuracy']:.2f} %"]
    assert table["this file, loaded back"] == [f"{100 * metrics['reloaded_accuracy']:.2f} %"]
    assert table["time of training"] == [f"{facts['seconds']:.1f} s"]
    assert table["optimizer steps"] == ["3"] and table["epochs"] == ["0.75"]
    assert table["CPU"] == [f"{facts['hardware']['cpu']}, {facts['hardware']['cores']} cores"]
    assert table["date"] == [facts["date"]]
    for name, version in facts["versions"].items():
        assert f"{name} {version}" in table["versions"][0]
    assert table["data set"] == ["digits"]
    assert table["trained on"] == ["split train, 128 images"]
    assert table["evaluated on"] == ["split test, 64 images"]
    assert table["architecture"] == ["resnet8_cifar_tern"] and table["base checkpoint"] == ["out"]
    assert table["method"][0].startswith("ttq, ") and "- t: 0.1\n" in text
    assert table["layers left in float"] == ["fc"]
    for name, value in facts["arguments"].items():
        assert f"- {name}: {value}\n" in text
    assert facts["arguments"]["max_steps"] == 3
    layers = summarize(load_packed(packed)).layers
    assert len(layers) == 7
    for layer in layers:
        assert table[layer.name][1:] == [f"{layer.weights:,}", f"{layer.zeros:.1%}"]
    assert table["all"][1:] == [
        f"{sum(layer.weights for layer in layers):,}",
        f"{metrics['zeros']:.1%}",
    ]
    assert headings(text) == HEADINGS


def test_sizes_are_those_of_files(packed: Path, tmp_path: Path) -> None:
    table = rows(card_text(packed))
    floating = save_float(timm.create_model("resnet8_cifar", num_classes=10, in_chans=1), tmp_path)
    full = (floating / "model.safetensors").stat().st_size
    assert table["float32"][0] == f"{full:,}"
    for encoding in ("2bit", "base3", "zstd"):
        save_packed(load_packed(packed), tmp_path / encoding, encoding)
        size = (tmp_path / encoding / "model.safetensors").stat().st_size
        name = "2bit (model.safetensors)" if encoding == "2bit" else encoding
        assert table[name] == [f"{size:,}", f"{full / size:.1f}x"]


def test_the_metadata_parse_back(packed: Path) -> None:
    data = ModelCard(card_text(packed, repo_id="user/digits", license="mit")).data
    (result,) = data.eval_results
    assert result.metric_value == read(packed / "metrics.json")["reloaded_accuracy"]
    assert (result.task_type, result.metric_type) == ("image-classification", "accuracy")
    assert (result.dataset_name, result.dataset_split) == ("digits", "test")
    assert data.model_name == "digits" and data.license == "mit"
    assert data.library_name == "timm" and data.pipeline_tag == "image-classification"
    assert {"timm", "transformers", "timm_ternary", "ternary", "quantized"} <= set(data.tags)
    # digits is no data set of the Hub, and the base checkpoint is a directory.
    assert data.datasets is None and data.base_model is None


def test_names_of_the_hub_are_metadata(packed: Path) -> None:
    def change(facts: Any) -> None:
        facts["dataset"] |= {"name": "uoft-cs/cifar10", "hub_id": "uoft-cs/cifar10"}
        facts["base"] = {"name": "timm/a.b", "hub_id": "timm/a.b", "float_accuracy": None}

    edit(packed / "training.json", change)
    text = card_text(packed)
    assert ModelCard(text).data.datasets == ["uoft-cs/cifar10"]
    assert ModelCard(text).data.base_model == "timm/a.b"
    assert "float base checkpoint" not in rows(text)
    assert "- float accuracy: " in unstated(text)


def test_the_command_and_the_snippets_do_what_they_say(
    packed: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = card_text(packed)
    monkeypatch.chdir(packed.parent)
    (command,) = [line for line in text.splitlines() if line.startswith("timm-ternary evaluate")]
    status, out, _ = run(*shlex.split(command)[1:], "--json")
    assert status == 0
    assert json.loads(out)["top1"] == read(packed / "metrics.json")["reloaded_accuracy"]
    snippets = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    names: dict[str, Any] = {}
    exec(snippets[0], names)
    x = torch.randn(2, 1, 8, 8)
    with torch.inference_mode():
        expected = names["model"](x)
        exec(snippets[1], names)
        assert type(names["model"]) is not type(load_packed(packed))
        torch.testing.assert_close(names["model"].eval()(pixel_values=x).logits, expected)
    assert names["AutoModelForImageClassification"] is AutoModelForImageClassification
    text = card_text(packed, repo_id="user/digits")
    assert 'timm.create_model("hf-hub:user/digits", pretrained=True)' in text
    assert 'from_pretrained("user/digits")' in text
    assert "timm-ternary evaluate hf-hub:user/digits --dataset digits" in text


def test_what_no_file_says_is_left_out(packed: Path) -> None:
    (packed / "metrics.json").unlink()
    text = card_text(packed)
    assert "ternary, after training" not in rows(text)
    assert ModelCard(text).data.eval_results is None
    assert "no metrics.json in the directory" in unstated(text)
    assert "- licence of the weights: none was given" in unstated(text)
    (packed / "training.json").unlink()
    text = card_text(packed)
    kept = [h for h in HEADINGS if h not in ("Data", "Accuracy", "Training")]
    assert headings(text) == kept
    assert "no training.json in the directory" in unstated(text)
    assert "timm-ternary evaluate" not in text
    assert rows(text)["all"]  # the weights' file still speaks for itself


@pytest.mark.parametrize("name", ["seconds", "epochs", "date", "evaluation"])
@pytest.mark.parametrize("value", [None, float("nan"), ["x"]])
def test_a_field_that_is_missing_or_strange(packed: Path, name: str, value: Any) -> None:
    edit(packed / "training.json", lambda facts: facts.update({name: value}))
    text = card_text(packed)
    words = {"seconds": "training time", "evaluation": "evaluation command"}.get(name, name)
    assert f"- {words}: not in training.json" in unstated(text)
    assert "nan" not in text and rows(text)["optimizer steps"] == ["3"]


def test_accuracies_of_another_file_are_not_stated(packed: Path) -> None:
    save_packed(load_packed(packed), packed, "zstd")
    text = card_text(packed)
    assert "this file, loaded back" not in rows(text) and "Accuracy" not in headings(text)
    assert "describes another model.safetensors" in unstated(text)
    assert "zstd (model.safetensors)" in rows(text)


@pytest.mark.parametrize("value", [1.5, "0.9", True, None, float("nan")])
def test_an_accuracy_that_is_none(packed: Path, value: Any) -> None:
    edit(packed / "metrics.json", lambda metrics: metrics.update(reloaded_accuracy=value))
    text = card_text(packed)
    assert "this file, loaded back" not in rows(text)
    assert "- reloaded accuracy: not in metrics.json" in unstated(text)
    assert ModelCard(text).data.eval_results is None


def test_the_figure(packed: Path) -> None:
    assert "![" not in card_text(packed)
    assert "- figure: no weights.png" in unstated(card_text(packed))
    (packed / "weights.png").write_bytes(b"")
    text = card_text(packed)
    assert "](weights.png)" in text and "- figure" not in text


HOSTILE = [
    "\n---\nlicense: gpl\n---\n",
    "a | b\n## Injected\n",
    "<script>alert(1)</script>",
    "![x](http://example.org/x.png)",
    "```\n# Injected\n```",
    "# Injected",
    "- item",
    "1. item",
    "&lt; &#124; a & b",
    "'\": {[*&!%@`",
    "{{ 7 * 7 }}{% raw %}",
    "\u2028## Injected\u202e",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_break_nothing(packed: Path, text: str) -> None:
    def change(facts: Any) -> None:
        facts["dataset"] |= {"name": text, "hub_id": text, "eval_split": text, "config": text}
        facts["base"] |= {"name": text, "hub_id": text}
        facts["arguments"] = {text: text}
        facts["hardware"] |= {"cpu": text, "gpus": [text]}
        facts["versions"] = {text: text}
        facts["left_out"] = {text: text}
        facts |= {"date": text, "evaluation": f"timm-ternary evaluate DIR {text}"}

    def change_config(config: Any) -> None:
        config["label_names"] = [text] * 10

    plain = headings(card_text(packed))
    edit(packed / "training.json", change)
    edit_config(packed, change_config)
    digest = sha256(packed / WEIGHTS_NAME)  # the weights carry a digest of config.json
    edit(packed / "training.json", lambda facts: facts.update(weights_sha256=digest))
    card = card_text(packed, license=text)
    assert headings(card) == plain
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)
    inline = [child for token in tokens for child in token.children or []]
    assert not [t for t in [*tokens, *inline] if t.type in ("html_block", "html_inline", "image")]
    assert not [t for t in tokens if t.tag in ("ol", "h3")]
    assert sum(t.tag == "h1" for t in tokens) == 2  # one, opened and closed
    assert sum(t.type == "fence" for t in tokens) == 4
    assert all(token.level <= 3 for token in tokens if token.tag == "ul")
    # What is shown is what was given, on one line.
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    texts = ["".join(c.content for c in t.children or []) for t in tokens if t.type == "inline"]
    assert texts.count(shown) >= 2 and f"{shown}: {shown}" in texts
    data = ModelCard(card).data
    assert data.datasets == [shown] and data.base_model == shown and data.license == shown
    assert data.eval_results[0].dataset_name == shown
    assert data.library_name == "timm"


def test_any_model_has_a_card(tmp_path: Path) -> None:
    directory = save_packed(trained("test_vit_tern", ternary="rel"), tmp_path / "a b")
    text = card_text(directory)
    assert 'create_model("local-dir:a b", pretrained=True)' in text
    table = rows(text)
    for layer in summarize(load_packed(directory)).layers:
        assert table[layer.name][2] == f"{layer.zeros:.1%}"


def test_a_missing_zstandard_is_a_reason(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise ValueError("encoding 'zstd' needs a library")

    monkeypatch.setattr(encodings, "_zstd", missing)
    text = card_text(packed)
    assert "zstd" not in rows(text) and "base3" in rows(text)
    assert "- size in zstd: encoding 'zstd' needs a library" in unstated(text)


def test_write_card_replaces_and_the_command_line(packed: Path, run: Run) -> None:
    path = write_card(packed, "user/name")
    assert path == packed / "README.md"
    assert path.read_text() == card_text(packed, repo_id="user/name")
    status, out, _ = run("card", packed, "--license", "mit")
    assert status == 0 and out.strip() == str(path)
    assert path.read_text() == card_text(packed, license="mit")


def test_mistakes_end_in_one_line(packed: Path, runs: Path, tmp_path: Path, run: Run) -> None:
    for directory, words in (
        (tmp_path, "no such file"),
        (runs / "float" / "out", "only packed models have a card"),
    ):
        status, _, err = run("card", directory)
        assert status == 2 and words in err and len(err.splitlines()) == 1
    assert not (runs / "float" / "out" / "README.md").exists()
    status, _, err = run("card", packed, "--repo-id", "a/b/c")
    assert status == 2 and "a/b/c" in err and len(err.splitlines()) == 1
    (packed / "training.json").write_text("{")
    status, _, err = run("card", packed)
    assert status == 2 and "training.json: not valid JSON" in err
    edit_config(packed, lambda config: config.update(architecture="resnet14_cifar_tern"))
    with pytest.raises(ValueError, match="the weights are those of 'resnet8_cifar_tern'"):
        card_text(packed)


def test_the_template_comes_with_the_package() -> None:
    assert bundled("model_cards/template.md").is_file()
    project = Path(__file__).parents[2] / "pyproject.toml"
    line = '"model_cards/template.md" = "timm_ternary/model_cards/template.md"'
    assert line in project.read_text()
    with pytest.raises(FileNotFoundError, match="install it anew"):
        bundled("model_cards/none.md")


def test_the_example_is_a_card_of_the_quickstart() -> None:
    text = (Path(__file__).parents[2] / "model_cards" / "quickstart.md").read_text()
    values = load_yaml(bundled("recipes/digits/resnet8_tga.yaml"))
    assert headings(text) == HEADINGS
    assert f"- learning_rate: {values['learning_rate']}\n" in text
    (result,) = ModelCard(text).data.eval_results
    assert rows(text)["this file, loaded back"] == [f"{100 * result.metric_value:.2f} %"]
    assert (Path(__file__).parents[2] / "model_cards" / "weights.png").is_file()
