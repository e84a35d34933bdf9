"""Files that are whole or not there, and those that come with the project."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "atomic_write",
    "bundled",
    "read_json",
    "sha256",
    "write_json",
]


@contextmanager
def atomic_write(path: Path, write: Callable[[Path], object]) -> Iterator[None]:
    """Write beside `path` on entry, take its place on a clean exit; else leave no trace.

    Args:
        path: The file to make or replace.
        write: Called with the path of the temporary file.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp is private to the user; a published file is as readable as any other.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        yield
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write `values` as indented JSON, in full or not at all."""
    text = json.dumps(values, indent=2) + "\n"
    with atomic_write(path, lambda scratch: scratch.write_text(text, encoding="utf-8")):
        pass


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        ValueError: It holds none. One line that names the file.
        OSError: It cannot be read.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a JSON object, but {type(values).__name__}")
    return values


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def bundled(name: str) -> Path:
    """A file of the project: beside the package in a clone, inside it once installed.

    Args:
        name: Its place in a clone, e.g. ``"recipes/digits/resnet8_tga.yaml"``.

    Raises:
        FileNotFoundError: The installation lacks it.
    """
    package = Path(__file__).parent
    for root in (package.parent, package):
        if (path := root / name).is_file():
            return path
    raise FileNotFoundError(f"the installed timm_ternary lacks {name}: install it anew")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
