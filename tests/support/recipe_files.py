"""A recipe of a few quick steps on the digits, as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FAST = {
    "dataset": "digits",
    "max_train_samples": 128,
    "max_eval_samples": 64,
    "padding": 1,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "max_steps": 3,
    "optimizer": "sgd",
    "learning_rate": 0.02,
    "disable_tqdm": True,
    "use_cpu": True,
    "save_strategy": "no",
}


def recipe(path: Path, **values: Any) -> list[str]:
    """The words of a command line: a recipe (JSON is YAML), which writes to `path`/out."""
    path.mkdir(exist_ok=True)
    content = FAST | {"output_dir": str(path / "out")} | values
    (path / "recipe.yaml").write_text(json.dumps(content))
    return [str(path / "recipe.yaml")]
