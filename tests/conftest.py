"""How the tests run: on one thread each, in as many processes as there are cores."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import pytest

# Before torch is imported, and for the processes that tests start. The models are so small that
# more threads cost time; and sums in another order would differ in the last bit.
os.environ["OMP_NUM_THREADS"] = "1"
# Processes that tests start import the helpers of tests/support too.
_SUPPORT = str(Path(__file__).parent / "support")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [_SUPPORT, *filter(None, [os.environ.get("PYTHONPATH")])]
)

# Their fixtures are for every test.
pytest_plugins = ["command_line", "hub_server", "two_processes"]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """No processes beside this one where they would cost more than they save; else xdist decides.

    Measurements and tests of a GPU want the machine to themselves; a few files are done before
    other processes have imported torch and transformers.
    """
    alone = re.search(r"(?<!not )\b(benchmark|gpu)\b", config.option.markexpr)
    files = all(os.path.isfile(name.partition("::")[0]) for name in config.args)
    return 0 if alone or files else None


def pytest_collection_finish() -> None:
    """Spare the garbage collector what is there for good: most of all, modules.

    accelerate collects at the start of each training, which otherwise takes longer than the
    few steps of a test.
    """
    gc.collect()
    gc.freeze()
