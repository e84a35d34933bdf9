"""resume.json: what a checkpoint says of the run that wrote it, and a digest of each of its files.

It is written last. A checkpoint without one, of an earlier version or of transformers' own Trainer,
is looked at as far as its files show by themselves that they are whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ...checkpoint.run_files import STATE_NAME
from ...checkpoint.weights_file import WEIGHTS_NAME
from ...errors.foreign import FileError, foreign
from ...errors.numbers import is_whole
from ...errors.printable import printable
from ...errors.wording import UPDATE
from ...files import read_json, sha256, write_json

__all__ = [
    "RECORD_NAME",
    "Record",
    "begin",
    "damage",
    "incomplete",
    "read_record",
    "read_state",
    "write_record",
]

RECORD_NAME = "resume.json"
VERSION = 1

# What training reads when it resumes. training_args.bin, a pickle, is read by nobody.
_ENDINGS = (".safetensors", ".json", ".pt", ".pth", ".bin", ".distcp", ".metadata")
_UNREAD = {"training_args.bin", RECORD_NAME}
# Names of files that a record may hold: they are shown in errors.
_NAME = re.compile(r"[\w.\-/]{1,200}")
# transformers leaves it while --enable_jit_checkpoint writes.
_INCOMPLETE = "checkpoint-is-incomplete.txt"
# The Trainer's state holds the whole log of a training, and the Trainer reads it in any case.
_STATE_BYTES = 1 << 30
_INDEX = f"{WEIGHTS_NAME}.index.json"
_WEIGHTS = (WEIGHTS_NAME, _INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Record:
    """What resume.json holds.

    Attributes:
        facts: Of the run, as training/resume/facts.py gives them; only data that JSON knows.
        files: Size in bytes and SHA-256 of each file, by its path within the checkpoint.
    """

    facts: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]


def begin(directory: Path) -> None:
    """Take away what says that a checkpoint is whole, before its files are written over."""
    for name in (RECORD_NAME, STATE_NAME):
        (directory / name).unlink(missing_ok=True)


def write_record(directory: Path, facts: Mapping[str, Any]) -> None:
    """Say what `directory`, a checkpoint that is written in full, consists of.

    The files are on the disk when this returns, whatever happens to the power then.

    Args:
        directory: The checkpoint's.
        facts: Of the run.
    """
    files = {}
    for name, path in _files(directory):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    content = {"version": VERSION, "facts": dict(facts), "files": files}
    write_json(directory / RECORD_NAME, content | {"digest": _digest(content)})


def read_record(directory: Path) -> Record | None:
    """The record of a checkpoint; None where there is none.

    Raises:
        ValueError: It is damaged, or of a later version. One line, without the directory.
    """
    path = directory / RECORD_NAME
    if not path.is_file():
        return None
    damaged = ValueError(f"{RECORD_NAME} is damaged")
    try:
        content = read_json(path)
    except FileError:
        raise damaged from None
    stated = content.pop("digest", None)
    if stated != _digest(content):
        raise damaged
    version, facts, files = (content.get(key) for key in ("version", "facts", "files"))
    if version != VERSION:
        raise ValueError(f"{RECORD_NAME} is of another version; type: {UPDATE}")
    if not isinstance(facts, dict) or not isinstance(files, dict):
        raise damaged
    entries = {}
    for name, entry in files.items():
        if not _NAME.fullmatch(name) or not isinstance(entry, dict):
            raise damaged
        size, sha = entry.get("bytes"), entry.get("sha256")
        if not isinstance(size, int) or not isinstance(sha, str):
            raise damaged
        entries[name] = (size, sha)
    return Record(facts, entries)


def damage(directory: Path) -> str | None:
    """What is torn of the checkpoint `directory`, in some words; None: its files are whole.

    Files that the record names are compared with it. Without a record the state must be readable,
    weights of their announced size, and what torch wrote fit its check sums.
    """
    if not (directory / STATE_NAME).is_file():
        return f"{STATE_NAME} is missing: it was not written in full"
    if (directory / _INCOMPLETE).exists():
        return f"it was not written in full ({_INCOMPLETE})"
    try:
        record = read_record(directory)
    except ValueError as error:
        return str(error)
    found = dict(_files(directory))
    for name, (size, digest) in ({} if record is None else record.files).items():
        if name not in found:
            if name in _WEIGHTS and any(other in found for other in _WEIGHTS):
                continue  # written again in another form, and looked at below
            return f"{name} is missing"
        actual = found[name].stat().st_size
        if actual != size:
            return f"{name} has {actual:,} bytes instead of {size:,}"
        if sha256(found[name]) != digest:
            return f"{name} is damaged (its digest does not match)"
    for name, path in found.items():
        listed = record is not None and name in record.files
        if not listed and (reason := _unreadable(name, path)) is not None:
            return reason
    return _state_damage(directory)


def read_state(directory: Path) -> dict[str, Any]:
    """The Trainer's state in a checkpoint that is whole."""
    return read_json(directory / STATE_NAME, _STATE_BYTES)


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """What training reads when it resumes, by the path within `directory`, in order."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder) / name
            if name in _UNREAD or not name.endswith(_ENDINGS) or not path.is_file():
                continue
            inner = path.relative_to(directory).as_posix()
            if _NAME.fullmatch(inner):
                found[inner] = path
    yield from sorted(found.items())


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _unreadable(name: str, path: Path) -> str | None:
    """What a file shows by itself of being cut or damaged."""
    try:
        with foreign(name):
            if name.endswith(".safetensors"):
                with safe_open(str(path), framework="pt") as file:
                    file.keys()
            elif name.endswith((".pt", ".pth")):
                with zipfile.ZipFile(path) as archive:
                    if (inner := archive.testzip()) is not None:
                        return f"{name} is damaged ({printable(inner)})"
    except FileError:
        return f"{name} is cut off or damaged"
    return None


def _state_damage(directory: Path) -> str | None:
    try:
        step = read_state(directory).get("global_step")
    except FileError:
        return f"{STATE_NAME} is cut off or damaged"
    if not is_whole(step, low=0):
        return f"{STATE_NAME} is no state of a training"
    return None


def incomplete(directory: Path) -> str | None:
    """What a checkpoint lacks that training resumes from, in some words; None: nothing.

    One in shards has folders that FSDP and DeepSpeed know: nothing is said of it.
    """
    found = dict(_files(directory))
    if any(path.is_dir() for path in directory.iterdir()):
        return None
    if not any(name.endswith((".safetensors", ".bin")) for name in found):
        return f"{WEIGHTS_NAME} is missing"
    if _INDEX in found:
        try:
            parts = set(read_json(found[_INDEX])["weight_map"].values())
        except (FileError, KeyError, AttributeError, TypeError):
            return f"{_INDEX} is cut off or damaged"
        if not parts <= found.keys():
            return f"a file that {_INDEX} names is missing"
    for name in ("optimizer.pt", "scheduler.pt"):
        if name not in found and "optimizer.bin" not in found:
            return f"{name} is missing (--save_only_model saves none)"
    return None
