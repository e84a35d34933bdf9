"""A torn checkpoint is found before anything of it is loaded, whatever it is that is torn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_models import losses, small_net, trainer

from timm_ternary.training.resume.choose import choose
from timm_ternary.training.resume.record import RECORD_NAME, damage, read_record, write_record

SAVED = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run of 10 steps: checkpoints 3, 6, 9 and 10."""
    output = tmp_path_factory.mktemp("run") / "out"
    trainer(output, **SAVED, ema_decay=0.9).train()
    return output


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


FILES = (
    *("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
    *("ema.safetensors", RECORD_NAME),
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("tear", [_cut, _empty, _flip])
def test_the_newest_whole_one_is_used_and_a_line_says_so(
    output: Path, caplog: pytest.LogCaptureFixture, name: str, tear: Callable[[Path], None]
) -> None:
    tear(output / "checkpoint-10" / name)
    assert choose(True, output) == output / "checkpoint-9"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"checkpoint-10 is torn: {name}") and "\n" not in line
    assert line.endswith(f"resuming from the newest whole one, {output / 'checkpoint-9'}")


@pytest.mark.parametrize("name", [name for name in FILES if name != RECORD_NAME])
def test_a_missing_file_is_named(output: Path, name: str) -> None:
    (output / "checkpoint-10" / name).unlink()
    with pytest.raises(ValueError, match=rf"torn: {name} is missing.*checkpoint-9, checkpoint-6"):
        choose(output / "checkpoint-10", output)


@pytest.mark.parametrize("name", FILES[:4])
@pytest.mark.parametrize("tear", [_cut, _empty, _flip])
def test_earlier_versions_wrote_no_record(
    output: Path, name: str, tear: Callable[[Path], None]
) -> None:
    (output / "checkpoint-10" / RECORD_NAME).unlink()
    assert choose("true", output) == output / "checkpoint-10"
    if tear is _flip and name in ("model.safetensors", "scheduler.pt"):
        return  # without a check sum; between two entries of the archive, where nothing stands
    tear(output / "checkpoint-10" / name)
    assert choose("true", output) == output / "checkpoint-9"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"global_step": "7"}', "[" * 100_000])
def test_a_state_that_is_none(output: Path, content: str) -> None:
    (output / "checkpoint-10" / RECORD_NAME).unlink()
    (output / "checkpoint-10" / "trainer_state.json").write_text(content)
    assert str(damage(output / "checkpoint-10")).startswith("trainer_state.json is ")


def test_none_is_whole(output: Path) -> None:
    for number in (3, 6, 9, 10):
        _empty(output / f"checkpoint-{number}" / "trainer_state.json")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole .*; and 1 more\): leave"):
        choose("auto", output)
    with pytest.raises(ValueError, match="no other beside it is whole: leave resume_from_checkp"):
        choose(str(output / "checkpoint-9"), output)


def test_one_that_is_named(output: Path) -> None:
    _flip(output / "checkpoint-6" / "optimizer.pt")
    with pytest.raises(ValueError) as caught:
        choose(str(output / "checkpoint-6"), output / "elsewhere")
    assert str(caught.value) == (
        f"{output / 'checkpoint-6'} is torn: optimizer.pt is damaged (its digest does not match); "
        "whole ones beside it: checkpoint-10, checkpoint-9, checkpoint-3; type "
        f"--resume_from_checkpoint {output / 'checkpoint-10'}"
    )


@pytest.mark.parametrize(
    "asked, message",
    [
        ("nowhere", "there is no directory 'nowhere'"),
        (5, "must be true or a checkpoint's directory, got 5"),
        ("OUT", "is no checkpoint, but holds some: type --resume_from_checkpoint .*checkpoint-10"),
        ("OUT/checkpoint-3/model.safetensors", "there is no directory"),
    ],
)
def test_what_is_no_checkpoint(output: Path, asked: Any, message: str) -> None:
    asked = asked.replace("OUT", str(output)) if isinstance(asked, str) else asked
    with pytest.raises(ValueError, match=message):
        choose(asked, output)


def test_nothing_is_asked_for_or_there(tmp_path: Path) -> None:
    for asked in (None, False, "no", "False"):
        assert choose(asked, tmp_path) is None
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        choose(True, tmp_path / "nowhere")


def test_steps_are_numbers(output: Path, tmp_path: Path) -> None:
    for name in ("checkpoint-x", "checkpoint-", f"checkpoint-{'9' * 200}"):
        (output / name).mkdir()
    (output / "checkpoint-77").write_text("a file")
    assert choose(True, output) == output / "checkpoint-10"


def test_a_record_names_files_of_its_checkpoint_only(output: Path) -> None:
    directory = output / "checkpoint-10"
    content = json.loads((directory / RECORD_NAME).read_text())
    content["files"]["../../secret.json"] = {"bytes": 3, "sha256": ""}
    (directory / RECORD_NAME).write_text(json.dumps(content))
    assert damage(directory) == f"{RECORD_NAME} is damaged"  # its digest
    (output.parent / "secret.json").write_text("{}\n")
    record = read_record(output / "checkpoint-9")
    assert record is not None and "../../secret.json" not in record.files
    assert {"model.safetensors", "trainer_state.json", "optimizer.pt"} < record.files.keys()
    assert not {RECORD_NAME, "training_args.bin"} & record.files.keys()


def test_another_file_beside_them_does_not_matter(output: Path) -> None:
    (output / "checkpoint-10" / "notes.txt").write_text("mine")
    (output / "checkpoint-10" / "training_args.bin").unlink()
    assert damage(output / "checkpoint-10") is None


def test_a_checkpoint_being_written_over_is_torn(output: Path, tmp_path: Path) -> None:
    run = trainer(output, **SAVED, ema_decay=0.9)
    run.train()
    assert damage(output / "checkpoint-3") is None

    class Killed(Exception):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    again = trainer(output, **SAVED, ema_decay=0.9, learning_rate=0.01)
    again._save_scaler = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        again.train()
    assert "was not written in full" in str(damage(output / "checkpoint-3"))


def test_save_only_model_is_no_start(tmp_path: Path) -> None:
    trainer(tmp_path, **SAVED, save_only_model=True).train()
    assert damage(tmp_path / "checkpoint-10") is None
    with pytest.raises(ValueError, match=r"optimizer\.pt is missing \(--save_only_model"):
        choose(True, tmp_path)


def test_the_trainer_resumes_from_the_newest_whole_one(output: Path) -> None:
    whole = trainer(output.parent / "whole", **SAVED, ema_decay=0.9)
    whole.train()
    _cut(output / "checkpoint-10" / "rng_state.pth")
    run = trainer(output, small_net(), **SAVED, ema_decay=0.9)
    run.train(resume_from_checkpoint=True)
    assert losses(run) == losses(whole)
    assert damage(output / "checkpoint-10") is None  # written again


def test_a_best_checkpoint_that_was_damaged_is_not_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3}
    run = trainer(tmp_path, **SAVED | best, save_only_model=True)
    load = run._load_best_model

    def damaged() -> None:
        _flip(Path(str(run.state.best_model_checkpoint)) / "model.safetensors")
        load()

    run._load_best_model = damaged  # type: ignore[method-assign]
    run.train()
    (line,) = [r.getMessage() for r in caplog.records if "best checkpoint" in r.getMessage()]
    assert "is torn: model.safetensors is damaged" in line
    assert run.state.best_model_checkpoint is None


def test_a_record_can_be_read_again(tmp_path: Path) -> None:
    (tmp_path / "optimizer.pt").write_bytes(b"state")
    facts = {"options": {"a": 0.1}, "names": ["x", None], "big": 1e300}
    write_record(tmp_path, facts)
    record = read_record(tmp_path)
    assert record is not None and record.facts == facts
    assert record.files["optimizer.pt"][0] == 5
