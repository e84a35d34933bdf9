"""What holds for all commands: help, --version, --quiet, spelling, and lines that are whole."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command_line import Run
from PIL import Image

import timm_ternary
from timm_ternary.checkpoint.directory import save_packed
from timm_ternary.cli import common, completion
from timm_ternary.cli.common import Output
from timm_ternary.training import ImageTrainer

MODEL = "resnet8_cifar_tern"


@pytest.fixture(autouse=True)
def _loud_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "0")
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)
    common.out.brief = common.err.quiet = False


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("packed")
    return save_packed(timm.create_model(MODEL, num_classes=10, in_chans=1), directory)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("--quiet",)])
def test_the_bare_command_prints_its_help(run: Run, words: tuple[str, ...]) -> None:
    status, out, err = run(*words)
    assert status == 0 and err == ""
    assert out.startswith("Usage: ") and "--version" in out
    for command in ("train", "evaluate", "completion"):
        assert re.search(rf"^  {command} +\w", out, re.MULTILINE)
    commands = out.partition("Commands:")[2]
    assert "..." not in commands.replace("[--field value]...", ""), "a help is cut"


def test_version(run: Run) -> None:
    for word in ("--version", "-V"):
        assert run(word) == (0, f"timm-ternary {timm_ternary.__version__}\n", "")


def test_underscores_do_as_in_recipes(run: Run, packed: Path) -> None:
    words = ("--batch_size", 64, "--max_samples", 8, "--eval_split", "train", "--json")
    status, out, _ = run("evaluate", packed, "--dataset", "digits", *words)
    assert status == 0 and json.loads(out)["images"] == 8


LONG = "stages.0.blocks.0.a_name_of_a_layer_that_no_window_of_80_columns_takes_beside_its_figures"


@pytest.mark.parametrize("force", [{}, {"FORCE_COLOR": "1"}, {"COLUMNS": "20"}])
def test_tables_are_not_cut_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], force: dict[str, str]
) -> None:
    from timm_ternary.cli import tables

    for name, value in force.items():
        monkeypatch.setenv(name, value)
    layer = {
        "name": LONG, "kind": "conv", "shape": [1, 2], "zeros": 0.5, "plus": 0.25, "minus": 0.25,
        "pos": 1.0, "neg": 1.0, "packed_bytes": 123456,
    }  # fmt: skip
    Output(markup=False, emoji=False, no_color=True).print(tables.layers({"layers": [layer]}))
    head, line = capsys.readouterr().out.splitlines()
    assert LONG in line and line.split()[-1].endswith("123,456") and "bytes" in head


def test_a_terminal_wraps_and_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from timm_ternary.cli import tables

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    found = {LONG: ({"option": 1}, "its first line")}
    Output(file=screen, width=50, height=25, no_color=True).print(tables.methods(found))
    lines = re.sub(r"\x1b\[\d+m", "", screen.getvalue()).splitlines()
    assert all(len(line) <= 50 for line in lines)
    assert LONG in "".join(line[:17] + line[17:18].strip() for line in lines)
    assert "…" not in screen.getvalue()


def one_line(found: tuple[int, str, str]) -> str:
    status, out, err = found
    assert status == 0 and err == "" and out.count("\n") == 1, found
    return out.strip()


@pytest.mark.parametrize("quiet", ["-q", "--quiet"])
def test_quiet_leaves_the_result(run: Run, packed: Path, tmp_path: Path, quiet: str) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(np.eye(8, dtype=np.uint8) * 200).save(image)
    line = one_line(run("evaluate", packed, "--dataset", "digits", "--max-samples", 9, quiet))
    assert re.fullmatch(rf"{packed}: top-1 [\d.]+%, top-5 [\d.]+%", line)
    assert re.fullmatch(rf"{image}: \d [\d.]+%", one_line(run(quiet, "predict", packed, image)))
    assert "8 ternary layers" in one_line(run("inspect", packed, quiet))
    assert "zstd" in one_line(run("pack", packed, tmp_path / "z", "--encoding", "zstd", quiet))
    assert run("list", "--methods", quiet)[1].split()[0] == "abcnet"
    status, out, _ = run("evaluate", packed, "--dataset", "digits", "--json", quiet)
    assert status == 0 and json.loads(out)["images"] == 360


def test_quiet_leaves_errors(run: Run) -> None:
    status, out, err = run("--quiet", "inspect", "resnt18_tern")
    assert status == 2 and out == "" and "did you mean 'resnet18_tern'?" in err


def test_a_quiet_training(run: Run, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "digits" / "resnet8_float.yaml"
    words = ("--output_dir", tmp_path / "o", "--max_steps", 2, "--use_cpu", "true")
    line = one_line(run("train", recipe, *words, "--max_train_samples", 64, "-q"))
    assert re.fullmatch(rf"{tmp_path / 'o'}: accuracy [\d.]+%", line)


def test_a_quiet_trainer_has_no_progress(tmp_path: Path) -> None:
    from trainer_models import Images, arguments, small_net
    from transformers import PrinterCallback, ProgressCallback

    from timm_ternary.training.callbacks.progress import ConsoleProgress

    for quiet in (True, False):
        args = arguments(tmp_path, quiet=quiet)
        kinds = {
            type(callback)
            for callback in ImageTrainer(
                small_net(None), args, train_dataset=Images()
            ).callback_handler.callbacks
        }
        assert (ConsoleProgress in kinds) is not quiet
        assert not kinds & {PrinterCallback, ProgressCallback}


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word of a line."""
    line = " ".join(f"'{word}'" for word in words)
    code = (
        f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _timm_ternary; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes(run: Run, tmp_path: Path) -> None:
    status, out, err = run("completion", "bash")
    assert status == 0 and err == ""
    script = tmp_path / "complete.sh"
    script.write_text(out)
    name = "timm-ternary"
    assert completed(script, name, "ev") == ["evaluate"]
    assert "--version" in completed(script, name, "--")
    assert completed(script, name, "evaluate", "m", "--data") == ["--dataset"]
    assert completed(script, name, "train", "r.yaml", "--learning") == ["--learning_rate"]
    assert completed(script, name, "train", "--save_strategy", "e") == ["epoch"]
    assert completed(script, name, "train", "--nesterov", "") == ["true", "false"]
    assert completed(script, name, "completion", "f") == ["fish"]
    assert completed(script, name, "train", "rec") == []  # bash offers files then
    assert "complete -o default " in out


def test_zsh_and_fish_name_every_command_and_option(run: Run) -> None:
    zsh, fish = (run("completion", shell)[1] for shell in ("zsh", "fish"))
    assert "bashcompinit" in zsh and completion.script("zsh") == zsh
    for command in ("train", "evaluate", "list"):
        assert f"-a {command} -d '" in fish
    assert "'__fish_seen_subcommand_from train' -l learning_rate" in fish
    assert "-l save_strategy -x -a '" in fish
    assert not [line for line in fish.splitlines() if line.count("'") % 2 and "\\'" not in line]


def test_an_unknown_shell(run: Run) -> None:
    status, _, err = run("completion", "bsh")
    assert status == 2 and "did you mean 'bash'? Allowed: bash, fish, zsh." in err
