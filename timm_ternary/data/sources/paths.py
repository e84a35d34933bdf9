"""Whether a data set's name is a path or a name on the Hub, and whether it is there at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from datasets import config
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from ...errors.hub import HTTPError
from ...errors.wording import nearest
from ...files import check_regular

__all__ = ["check_there"]

_SECONDS = 10.0
"""How long the Hub may take to say whether it has a data set."""


def check_there(dataset: Mapping[str, object] | str) -> None:
    """Refuse a path that does not exist, or a name that the Hub does not know, at once.

    `datasets` would take a path for a name on the Hub, and ask for it six times in half a minute.

    Raises:
        ValueError: There is nothing of that name; names the nearest path that exists.
    """
    if isinstance(dataset, Mapping):
        for file in dataset.values():
            for name in file if isinstance(file, (list, tuple)) else [file]:
                _check_file(str(name))
        return
    path = Path(dataset).expanduser()
    if path.is_dir():
        return
    if path.exists():
        check_regular(path)
        return
    if _is_path(dataset, path):
        raise ValueError(f"no such file or directory{_near(path)}")
    if config.HF_HUB_OFFLINE or _is_cached(dataset):
        return  # `datasets` itself looks into its cache, and fails at once
    try:
        HfApi().dataset_info(dataset, timeout=_SECONDS)
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"there is no such directory{_near(path)}, and no such data set on the Hub; if it is "
            "private, type: hf auth login"
        ) from error
    except HfHubHTTPError:
        return  # the Hub answers: what it has to say is for `datasets` to hear
    except (HTTPError, OSError) as error:
        raise ValueError(
            f"there is no such directory{_near(path)}, and the Hub cannot be reached"
        ) from error


def _check_file(name: str) -> None:
    """One file of a split; patterns and addresses are looked up by `datasets`."""
    path = Path(name).expanduser()
    if path.exists() and not path.is_dir():
        check_regular(path)
    if "://" in name or "*" in name or "?" in name or "[" in name or path.exists():
        return
    raise ValueError(f"{name!r}: no such file{_near(path)}")


def _is_path(name: str, path: Path) -> bool:
    """Whether `name` can be no name on the Hub, or begins with a directory that is there."""
    if name[0] in "./~\\" or name.endswith(("/", os.sep)) or path.suffix == ".parquet":
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return len(path.parts) > 1 and Path(path.parts[0]).is_dir()


def _is_cached(name: str) -> bool:
    """Whether `datasets` has kept something of that name."""
    own = Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")
    hub = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    return own.is_dir() or hub.is_dir()


def _near(path: Path) -> str:
    """The file or directory that may have been meant, for the end of a line; or nothing."""
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    found = nearest(path.name, [entry.name for entry in parent.iterdir()])
    return f" (did you mean {str(parent / found)!r}?)" if found else ""
