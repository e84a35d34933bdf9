"""A dead worker of the data loader ends in one line, wherever it is noticed."""

from __future__ import annotations

import os
import signal
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from trainer_models import Images, trainer

from timm_ternary.errors import workers


class _Deadly(Images):
    """Its worker dies at the image `at`."""

    def __init__(self, count: int = 40, at: int = 17, how: int = signal.SIGKILL) -> None:
        super().__init__(count)
        self.at, self.how, self.parent = at, how, os.getpid()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index == self.at and os.getpid() != self.parent:
            os._exit(3) if self.how == 0 else os.kill(os.getpid(), self.how)
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (signal.SIGKILL, "was killed (Killed, mostly for want of memory); type --w 0, which"),
        (signal.SIGABRT, "was killed (Aborted); type --w 0, which starts none"),
        (0, "ended unexpectedly; type --w 0, which starts none"),
    ],
)
def test_how_it_died(how: int, text: str) -> None:
    loader = DataLoader(_Deadly(8, at=5, how=how), 4, num_workers=1)
    with pytest.raises(OSError) as caught, workers.one_line("--w"):
        list(loader)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_want_of_shared_memory() -> None:
    said = "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that ..."
    with pytest.raises(OSError, match="Bus error, mostly for want of shared memory"):
        with workers.one_line("--w"):
            raise RuntimeError(said)


def test_a_batch_that_was_being_handed_over() -> None:
    one, other = Pipe()
    other.close()
    with pytest.raises(OSError, match="ended unexpectedly; type --w 0"), workers.one_line("--w"):
        one.recv()
    with pytest.raises(ConnectionError, match=r"^refused"), workers.one_line("--w"):
        raise ConnectionError("refused")  # of a download


def test_other_errors_stay() -> None:
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2"), workers.one_line("--w"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the dead one
def test_in_training_and_evaluation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"dataloader_num_workers": 1, "save_strategy": "steps", "save_steps": 1}
    run = trainer(tmp_path, train_dataset=_Deadly(), **options)
    with pytest.raises(OSError, match=r"worker process.*; to go on add --resume_from.*-\d+$"):
        run.train()
    run = trainer(tmp_path, **options)
    with pytest.raises(OSError, match=r"type --dataloader_num_workers 0, which starts none$"):
        run.evaluate(_Deadly(20))
