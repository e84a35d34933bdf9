"""Files that are whole or not there, those of others, and those that come with the project."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors.foreign import FileError, foreign
from .errors.printable import printable

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    "LOG_BYTES",
    "atomic_write",
    "bundled",
    "check_regular",
    "read_json",
    "read_stream",
    "read_text",
    "sha256",
    "staged",
    "sync_directory",
    "write_json",
]

# The largest config.json of timm, with names and descriptions of 21,841 classes, has 2 MB.
_JSON_BYTES = 16 << 20
LOG_BYTES = 64 << 20
"""Of the log of a training: an entry every ten steps for days, with the figures of each layer."""

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_SUFFIX = ".part"
# How tempfile names them; those of earlier versions have no suffix.
_LEFT_OVER = r"[a-z0-9_]{8}(\.part)?"


@contextmanager
def staged(path: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """Write beside `path` on entry, in full on the disk; gone at the end unless it was renamed.

    What processes that were killed have left of such files for `path` is removed first.

    Args:
        path: The file to be made or replaced.
        write: Called with the path of the temporary file.

    Yields:
        The path of the temporary file.
    """
    _remove_left_over(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent)
    temporary = Path(name)
    if fcntl is None:
        os.close(handle)  # Windows renames no file that is open
    else:
        _lock(handle)
    try:
        write(temporary)
        # mkstemp is private to the user; a published file is as readable as any other.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        if fcntl is not None:
            os.close(handle)


@contextmanager
def atomic_write(path: Path, write: Callable[[Path], object]) -> Iterator[None]:
    """Write beside `path` on entry, take its place on a clean exit; else leave no trace.

    Args:
        path: The file to make or replace.
        write: Called with the path of the temporary file.
    """
    with staged(path, write) as temporary:
        yield
        temporary.replace(path)
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Have the names in `directory` on the disk, where the system can: renames in their order."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems have no such thing; what was renamed is in place all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Hold a temporary file for as long as its handle is open: nobody then takes it for left over.

    Returns:
        Whether nobody else holds it; False where the file system has no locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_left_over(path: Path) -> None:
    """Remove the temporary files for `path` that no process holds any more."""
    for found in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if not re.fullmatch(_LEFT_OVER, found.name.removeprefix(f".{path.name}.")):
            continue
        with suppress(OSError):  # another process was quicker, or it is open under Windows
            handle = os.open(found, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # no pipe waits
            try:
                if _lock(handle):
                    found.unlink()
            finally:
                os.close(handle)


def write_json(path: Path, values: Any) -> None:
    """Write `values` as indented JSON, in full or not at all."""
    text = json.dumps(values, indent=2) + "\n"
    with atomic_write(path, lambda scratch: scratch.write_text(text, encoding="utf-8")):
        pass


def check_regular(path: str | Path) -> None:
    """Refuse what is no file, before it is opened: a pipe would be waited for, a device has no end.

    Links to files are files.

    Raises:
        FileError: There is nothing of that name, or another thing. One line.
    """
    with foreign(path):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            raise FileError(f"{printable(path, 400)}: no such file") from None
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "something else")
            raise FileError(f"{printable(path, 400)}: not a file, but {kind}")


def read_text(path: str | Path, limit: int) -> str:
    """The text of a file, UTF-8, of a bounded size.

    Args:
        limit: In bytes.

    Raises:
        FileError: It is no file, cannot be read, is larger, or no text. One line that names it.
    """
    check_regular(path)
    return read_stream(path, limit)


def read_stream(path: str | Path, limit: int) -> str:
    """`read_text`, of a pipe too."""
    with foreign(path), open(path, "rb") as file:
        data = file.read(limit + 1)
        if len(data) > limit:
            raise FileError(f"{printable(path, 400)}: larger than {limit:,} bytes")
    with foreign(f"{path}: not UTF-8 text"):
        return data.decode("utf-8")


def read_json(path: Path, limit: int = _JSON_BYTES, kind: type = dict) -> Any:
    """The JSON object, or list, that a file holds.

    Args:
        limit: In bytes.
        kind: ``dict`` or ``list``.

    Raises:
        FileError: It cannot be read, is larger, or holds none. One line that names the file.
    """
    text = read_text(path, limit)
    with foreign(f"{path}: not valid JSON"):
        values = json.loads(text)
    if not isinstance(values, kind):
        wanted = "object" if kind is dict else "list"
        raise FileError(f"{path}: not a JSON {wanted}, but {type(values).__name__}")
    return values


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    check_regular(path)
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
