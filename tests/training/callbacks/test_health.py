"""Values that are not finite, and data that do not suffice, end in one line; checkpoints stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from trainer_models import (
    Images,
    arguments,
    small_net,
    trainer,
)
from transformers import TrainerCallback

from timm_ternary.training.callbacks.health import check_finite_model, check_share
from timm_ternary.training.trainer import TernaryTrainer


class _Spoil(TrainerCallback):
    """Writes a value to a parameter at the end of a step."""

    def __init__(self, name: str, step: int, value: float = float("nan")) -> None:
        self.name, self.step, self.value = name, step, value

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                kwargs["model"].get_parameter(self.name).view(-1)[0] = self.value


_KINDS = ("weight", "head.bias")


@pytest.mark.parametrize(
    ("method", "parameter"),
    [
        *((method, kind) for method in ("tga", "ttq", None) for kind in _KINDS),
        *((method, "quantizer") for method in ("tga", "ttq")),
    ],
)
def test_a_parameter_that_is_not_finite_is_named(
    tmp_path: Path, method: str | None, parameter: str
) -> None:
    model = small_net(method)
    names = [n for n, _ in model.named_parameters()]
    own = ".parametrizations.weight.0."
    if parameter == "quantizer":
        parameter = next(n for n in names if n.startswith(f"second{own}"))
    elif parameter == "weight":
        parameter = next(n for n in names if n in ("second.weight", f"second{own[:-2]}original"))
    run = trainer(tmp_path, model, save_strategy="steps", save_steps=2, logging_strategy="no")
    run.add_callback(_Spoil(parameter, 5))
    with pytest.raises(ValueError, match="is not finite after 5 optimizer steps") as caught:
        run.train()
    message = str(caught.value)
    shown = parameter.replace(own, ".").replace(".parametrizations.weight.original", ".weight")
    assert message.startswith(f"{shown} is not finite")
    assert "checkpoint-4" in message and "\n" not in message
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-4"}


def test_nothing_that_is_not_finite_is_saved_and_nothing_good_deleted(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    run = trainer(tmp_path, **options)
    # At the step of a checkpoint: no loss has shown it yet.
    run.add_callback(_Spoil("second_norm.weight", 4, float("inf")))
    with pytest.raises(
        ValueError, match=r"^second_norm\.weight is not finite after 4 .*checkpoint-2 with"
    ):
        run.train()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 20


def test_large_values_are_finite() -> None:
    model = small_net()
    with torch.no_grad():
        model.head.bias[0] = 1e30  # its square is not
    check_finite_model(model, 0, None)


@pytest.mark.parametrize(
    "values, message",
    [
        ((3, 4, 4, False, False), "got 3 training images for 4 processes"),
        ((9, 2, 4, True, False), "a batch of 2 images cannot be split among 4 processes"),
        ((7, 2, 4, False, True), "fewer than one batch of 8, and dataloader_drop_last"),
        ((0, 4, 1, False, False), "got 0 training images for 1 processes"),
    ],
)
def test_too_little_for_the_processes(values: Any, message: str) -> None:
    *numbers, split, drop_last = values
    with pytest.raises(ValueError, match=message):
        check_share(*numbers, split=split, drop_last=drop_last)
    check_share(8, 4, 2, split=split, drop_last=drop_last)


def test_the_trainer_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="fewer than one batch of 64"):
        trainer(tmp_path, per_device_train_batch_size=64, dataloader_drop_last=True).train()
    run = trainer(tmp_path, train_dataset=Images(3))
    loader = run.get_train_dataloader()
    monkeypatch.setattr(type(run.accelerator), "num_processes", 4)
    with pytest.raises(ValueError, match="got 3 training images for 4 processes"):
        run.set_initial_training_values(run.args, loader)


class _Stream(IterableDataset):
    """Gives its images on each pass, or on the first one only."""

    def __init__(self, count: int, once: bool) -> None:
        self.images, self.once, self.passes = Images(count), once, 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.passes += 1
        if not self.once or self.passes == 1:
            yield from (self.images[i] for i in range(len(self.images)))


class _Announced(_Stream):
    """Says that it has 40 images."""

    def __len__(self) -> int:
        return 40


def _streamed(output: Path, data: _Stream, **options: Any) -> TernaryTrainer:
    args = arguments(output, save_strategy="steps", save_steps=2, **options)
    return TernaryTrainer(small_net(), args, train_dataset=data)


def test_a_stream_that_can_be_read_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gave no image .* \(after 3 of 8 .*checkpoint-2 is kept"):
        _streamed(tmp_path, _Stream(12, once=True), max_steps=8).train()
    assert (tmp_path / "checkpoint-2").is_dir()


def test_a_stream_that_begins_anew(tmp_path: Path) -> None:
    run = _streamed(tmp_path, _Stream(12, once=False), max_steps=8)
    run.train()
    assert run.state.global_step == 8


def test_data_that_end_before_their_length(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ended early, before the length .* \(after 3 of 20"):
        _streamed(tmp_path, _Announced(12, once=False)).train()
