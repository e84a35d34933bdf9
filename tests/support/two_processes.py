"""One launch of two processes for the tests of several files.

Two processes import torch and transformers for longer than each file then keeps them busy. A file
whose tests ask for `two_processes` has a function ``child(output)``, which runs in both processes
and returns what each of them found; and, where that needs something first, ``prepare(output)``,
which runs in the tests' process.
"""

from __future__ import annotations

import gc
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from filelock import FileLock
from packaging.version import Version

RESUMES = Version(transformers.__version__) >= Version("5.23")
RESUMING = [
    pytest.mark.multi_process,
    pytest.mark.skipif(
        not RESUMES,
        reason="transformers 5.17 cannot load an optimizer in several processes on the CPU",
    ),
]
"""Marks of files whose processes resume."""


class TwoProcesses(NamedTuple):
    """What the two did for one file: where they worked, and what each returned."""

    output: Path
    found: list[dict[Any, Any]]


@pytest.fixture(scope="session")
def _two_processes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The directory that the two processes wrote to."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the workers' own lie in it
    output = root / "two_processes"
    with FileLock(root / "two_processes.lock"):
        if not output.is_dir():
            asked = [x for x in request.session.items if "two_processes" in x.fixturenames]
            _launch(output, {x.path: x.module for x in asked})
    return output


@pytest.fixture(scope="module")
def two_processes(request: pytest.FixtureRequest, _two_processes: Path) -> TwoProcesses:
    """Of the file that asks."""
    output = _two_processes / request.path.stem
    found = [torch.load(output / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    return TwoProcesses(output, found)


def _launch(output: Path, modules: dict[Path, ModuleType]) -> None:
    for path, module in modules.items():
        (output / path.stem).mkdir(parents=True)
        if hasattr(module, "prepare"):
            module.prepare(output / path.stem)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [*torchrun, __file__, output, *modules]
    subprocess.run(command, env=environment, check=True, timeout=600)


def _children(output: Path, files: list[str]) -> None:
    for file in files:
        child = runpy.run_path(file)["child"]
        gc.collect()
        gc.freeze()  # as conftest does
        results = child(output / Path(file).stem)
        # A launcher that quietly starts one process would prove nothing.
        assert torch.distributed.get_world_size() == 2
        torch.save(results, output / Path(file).stem / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _children(Path(sys.argv[1]), sys.argv[2:])
