"""Weights and config.json belong together, whatever stops a save and whoever mixes two."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from samples import contents, edit_config, outputs, trained
from torch import Tensor, nn

import timm_ternary
from timm_ternary import files
from timm_ternary.checkpoint import accept_config, load_packed, save_float, save_packed
from timm_ternary.checkpoint.config_json import CONFIG_NAME
from timm_ternary.checkpoint.directory import open_directory
from timm_ternary.checkpoint.pair import CONFIG_DIGEST, WAITING_NAME, config_digest, write_pair
from timm_ternary.checkpoint.weights_file import WEIGHTS_NAME, read_metadata
from timm_ternary.models.names import load_model


def other(name: str) -> nn.Module:
    """A model of other weights, classes, method and labels."""
    kwargs = {"ternary": "ttq"} if name.endswith("_tern") else {}
    model = trained(name, seed=9, num_classes=3, **kwargs)
    model.pretrained_cfg["label_names"] = ["a", "b", "c"]
    return model


def save(model: nn.Module, directory: Path) -> None:
    """As what it is."""
    ternary = timm_ternary.nn.convert.config_of(model) is not None
    (save_packed if ternary else save_float)(model, directory)


def killed(directory: Path, source: nn.Module | Path, calls: dict[str, int]) -> bool:
    """Save in a process that is killed before the so many-th call of functions of os.

    Args:
        source: A model; or a directory it is saved in, whose files alone are written then.

    Returns:
        Whether it was killed, as opposed to having finished.
    """
    child = os.fork()
    if not child:  # pragma: no cover (another process)
        for name, count in calls.items():
            left, real = [count], getattr(os, name)

            def call(*args: Any, left: list[int] = left, real: Any = real, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            setattr(os, name, call)
        try:
            if isinstance(source, Path):
                weights, config = source / WEIGHTS_NAME, source / CONFIG_NAME
                write_pair(directory, weights.read_bytes(), config.read_text())
            else:
                save(source, directory)
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status)


def found(directory: Path, name: str) -> Tensor:
    """The logits of what the directory holds, by every way to load it."""
    logits = outputs(load_model(str(directory)))
    if name.endswith("_tern"):
        assert torch.equal(outputs(load_packed(directory)), logits)
        again = timm.create_model(f"local-dir:{directory}", pretrained=True)
        assert torch.equal(outputs(again), logits)
    return logits


@pytest.mark.parametrize("name", ["test_resnet_tern", "test_resnet"])
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_save_killed_at_any_moment(name: str, call: str, tmp_path: Path) -> None:
    """SIGKILL before each rename and each synchronization: the old version loads, or the new."""
    models = [trained(name), other(name), trained(name, seed=3, num_classes=4)]
    logits = [outputs(model) for model in models]
    old, new, third = (tmp_path / version for version in ("old", "new", "third"))
    for model, directory in zip(models, (old, new, third), strict=True):
        save(model, directory)

    def version(directory: Path) -> int:
        """Which of the three the directory holds; it is loaded for that."""
        y = outputs(load_model(str(directory)))
        (which,) = [i for i, x in enumerate(logits) if x.shape == y.shape and torch.equal(x, y)]
        return which

    seen = []
    for count in range(1, 20):
        directory = tmp_path / str(count)
        shutil.copytree(old, directory)
        if not killed(directory, new, {call: count}):
            break
        seen.append(version(directory))
        # The next save goes on from there, whether it is killed too or not.
        for again in range(1, 4) if call == "replace" else ():
            shutil.copytree(directory, tmp_path / "again")
            assert killed(tmp_path / "again", third, {"replace": again})
            assert version(tmp_path / "again") in (seen[-1], 2)
            shutil.rmtree(tmp_path / "again")
        assert not killed(directory, third, {})
        assert contents(directory) == contents(third)
    assert seen == sorted(seen) and set(seen) == {0, 1}


@pytest.mark.parametrize("name", ["test_resnet_tern", "test_resnet"])
def test_every_way_to_load_finds_what_a_killed_save_left(name: str, tmp_path: Path) -> None:
    """New weights that have not their name yet, under the new config.json."""
    save(trained(name), tmp_path)
    assert killed(tmp_path, other(name), {"replace": 3})
    assert set(contents(tmp_path)) == {WEIGHTS_NAME, CONFIG_NAME, WAITING_NAME}
    assert torch.equal(found(tmp_path, name), outputs(other(name)))


def test_a_first_save_killed_at_any_moment(tmp_path: Path) -> None:
    save(other("test_resnet_tern"), tmp_path / "whole")
    for count in range(1, 4):
        directory = tmp_path / str(count)
        assert killed(directory, tmp_path / "whole", {"replace": count})
        assert not killed(directory, tmp_path / "whole", {})
        assert contents(directory) == contents(tmp_path / "whole")


def test_a_save_of_the_same_config_is_one_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that programs that know nothing of us never see a mixture."""
    save(trained(), tmp_path)
    renamed = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (renamed.append(Path(b).name), real(a, b)))
    save(trained(seed=5), tmp_path)
    assert renamed == [WEIGHTS_NAME]
    assert torch.equal(outputs(load_packed(tmp_path)), outputs(trained(seed=5)))


def test_what_was_left_over_is_removed_and_nothing_else(tmp_path: Path) -> None:
    save(trained(), tmp_path)
    for name in (".model.safetensors.ab_c12d3", ".model.safetensors.ab_c12d3.part"):
        (tmp_path / name).write_bytes(b"cut")
    for name in (".config.json.swp", ".model.safetensors.backup", "model.safetensors.old"):
        (tmp_path / name).write_bytes(b"mine")
    os.mkfifo(tmp_path / ".config.json.aaaaaaaa")
    with files.staged(tmp_path / WEIGHTS_NAME, lambda path: path.write_bytes(b"busy")) as held:
        save(trained(), tmp_path)
        assert held.read_bytes() == b"busy"  # somebody else is at work there
    left = {".config.json.swp", ".model.safetensors.backup", "model.safetensors.old"}
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS_NAME, CONFIG_NAME, *left}


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a bit of mean": lambda v: v["pretrained_cfg"].update(mean=[0.5, 0.5, 0.50000006]),
    "std": lambda v: v["pretrained_cfg"].update(std=[0.2, 0.3, 0.4]),
    "crop": lambda v: v["pretrained_cfg"].update(crop_pct=0.9),
    "interpolation": lambda v: v["pretrained_cfg"].update(interpolation="nearest"),
    "labels": lambda v: v["label_names"].reverse(),
    "no labels": lambda v: v.pop("label_names"),
    "pool": lambda v: v["model_args"].update(global_pool="max"),
    "pool at the top": lambda v: v.update(global_pool="max"),
    "classes": lambda v: v.update(num_classes=2),
    "input size": lambda v: v["pretrained_cfg"].update(input_size=[3, 64, 64]),
    "argument": lambda v: v["model_args"].update(drop_rate=0.5),
}


class TestMixed:
    """Two versions in one directory are refused in one line with the way out."""

    def check(self, directory: Path, capable: list[Callable[[Path], object]]) -> None:
        for load in capable:
            with pytest.raises(ValueError, match=r"another config\.json .*accept_config") as caught:
                load(directory)
            assert "\n" not in str(caught.value)
        accept_config(directory)
        for load in capable:
            load(directory)

    @pytest.mark.parametrize("what", CHANGES)
    def test_packed(self, what: str, tmp_path: Path) -> None:
        save(other("test_resnet_tern"), tmp_path)
        edit_config(tmp_path, CHANGES[what], signed=False)
        ways: list[Callable[[Path], object]] = [
            open_directory,
            load_packed,
            lambda path: load_model(str(path)),
            lambda path: timm.create_model(f"local-dir:{path}", pretrained=True),
        ]
        if what == "classes":  # accepted, it still does not fit
            for load in ways:
                with pytest.raises(ValueError, match=r"config\.json"):
                    load(tmp_path)
        else:
            self.check(tmp_path, ways)

    @pytest.mark.parametrize("what", ["a bit of mean", "labels"])
    def test_float(self, what: str, tmp_path: Path) -> None:
        save(other("test_resnet"), tmp_path)
        edit_config(tmp_path, CHANGES[what], signed=False)
        self.check(tmp_path, [open_directory, lambda path: load_model(str(path))])

    def test_through_transformers(self, tmp_path: Path) -> None:
        from transformers import AutoModelForImageClassification

        import timm_ternary.hf  # noqa: F401

        save(other("test_resnet_tern"), tmp_path)
        load = AutoModelForImageClassification.from_pretrained
        load(tmp_path)
        edit_config(tmp_path, CHANGES["a bit of mean"], signed=False)
        self.check(tmp_path, [load])

    def test_weights_of_another_save(self, tmp_path: Path) -> None:
        save(trained(), tmp_path / "a")
        model = trained(seed=4)
        model.pretrained_cfg["mean"] = (0.5, 0.5, 0.4)
        save(model, tmp_path / "b")
        shutil.copy(tmp_path / "b" / WEIGHTS_NAME, tmp_path / "a")
        self.check(tmp_path / "a", [load_packed])

    def test_what_says_nothing_about_loading_is_free(self, tmp_path: Path) -> None:
        save(trained(), tmp_path)
        before = outputs(load_packed(tmp_path))

        def change(values: dict[str, Any]) -> None:
            values["pretrained_cfg"].update(license="mit", description="mine")
            values["note"] = "of 2026"

        edit_config(tmp_path, change, signed=False)
        assert torch.equal(outputs(load_packed(tmp_path)), before)

    @pytest.mark.parametrize("name", ["test_resnet_tern", "test_resnet"])
    def test_files_without_the_digest_load(self, name: str, tmp_path: Path) -> None:
        """Those written before it was there, and those of other programs."""
        save(trained(name), tmp_path)
        path = tmp_path / WEIGHTS_NAME
        metadata = read_metadata(path)
        assert metadata.pop(CONFIG_DIGEST) == config_digest(
            json.loads((tmp_path / CONFIG_NAME).read_text())
        )
        save_file(load_file(path), path, metadata)
        edit_config(tmp_path, CHANGES["a bit of mean"], signed=False)
        assert torch.equal(found(tmp_path, name), outputs(trained(name)))
        # A save that was killed has the new one wait beside it.
        assert killed(tmp_path, other(name), {"replace": 3})
        assert torch.equal(found(tmp_path, name), outputs(other(name)))
