"""What is known of a run, kept with a file of the same codes in another encoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..files import LOG_BYTES, read_json, write_json
from .directory import StoredDirectory, open_directory
from .evaluation_file import EVALUATION_NAME
from .run_files import HISTORY_NAME, METRICS_NAME, TRAINING_NAME, read_training
from .weights_file import StoredWeights

__all__ = ["KnownRun", "known_run"]

_KINDS = {METRICS_NAME: dict, TRAINING_NAME: dict, HISTORY_NAME: list, EVALUATION_NAME: dict}
_DIGEST = "weights_sha256"


@dataclass(frozen=True)
class KnownRun:
    """What a directory says of the run that made its weights.

    Attributes:
        weights: Of the directory.
        sha256: Digest of their file.
        files: Content of the JSON files, by name.
    """

    weights: StoredWeights
    sha256: str
    files: Mapping[str, Any]

    def write(self, directory: Path) -> list[str]:
        """Write it to a directory that holds the same model, packed anew.

        Returns:
            The names of the files; none where the model is another, in any code or value.

        Raises:
            ValueError: The directory is damaged.
            OSError: It cannot be written.
        """
        opened = open_directory(directory)
        if not _same(self.weights, opened.weights):
            return []
        for name, values in self.files.items():
            if isinstance(values, dict) and values.get(_DIGEST) == self.sha256:
                values = {**values, _DIGEST: opened.sha256}
            write_json(directory / name, values)
        return list(self.files)


def known_run(opened: StoredDirectory) -> KnownRun | None:
    """What is known of the run that wrote a directory; None where that is nothing, or it was a run
    with other weights.

    Args:
        opened: A packed directory; before anything is written over it.

    Raises:
        ValueError: A file is damaged.
    """
    training = read_training(opened.path)
    if training is None or training.weights_sha256 != opened.sha256 or not opened.weights.codes:
        return None
    found = {name: (opened.path / name, kind) for name, kind in _KINDS.items()}
    files = {n: read_json(path, LOG_BYTES, k) for n, (path, k) in found.items() if path.is_file()}
    return KnownRun(opened.weights, opened.sha256, files)


def _same(mine: StoredWeights, theirs: StoredWeights) -> bool:
    """Whether two packed files hold the same model: method, codes, scales, and all other values."""
    return (
        mine.config == theirs.config
        and mine.architecture == theirs.architecture
        and mine.dense.keys() == theirs.dense.keys()
        and mine.codes.keys() == theirs.codes.keys()
        and all(torch.equal(code.codes, theirs.codes[n].codes) for n, code in mine.codes.items())
        and all(torch.equal(tensor, theirs.dense[n]) for n, tensor in mine.dense.items())
    )
