"""Publishing on the Hub: loaded back and compared, then uploaded in one commit."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id
from torch import nn

from ..checkpoint.config_json import CONFIG_NAME
from ..checkpoint.directory import StoredDirectory, open_directory, save_float, save_packed
from ..checkpoint.evaluation_file import EVALUATION_NAME
from ..checkpoint.run_files import (
    HISTORY_NAME,
    METRICS_NAME,
    PAGE_NAME,
    TRAINING_NAME,
    read_training,
    report_files,
)
from ..checkpoint.weights_file import WEIGHTS_NAME
from ..errors.hub import one_line
from ..nn.convert import config_of
from ..nn.timm_wrapper import unwrap
from ..version import __version__
from .card import CARD_NAME, card_text, generated_license, is_generated
from .verify import check_loads, check_same

__all__ = [
    "PushOptions",
    "create_repository",
    "open_published",
    "published_files",
    "push_directory",
    "push_to_hub",
]

_BESIDE = (
    *(CARD_NAME, METRICS_NAME, TRAINING_NAME, HISTORY_NAME, EVALUATION_NAME),
    *(PAGE_NAME, "*.png"),
)
_MESSAGE = "Upload model with timm_ternary"


@dataclass(frozen=True)
class PushOptions:
    """How something is published.

    Attributes:
        private: Of a new repository (None: as the account's default).
        create_pr: Open a pull request instead of a commit.
        revision: Branch to commit to, made if need be (None: main).
        token: Of the Hub (None: that of ``hf auth login`` or HF_TOKEN).
        commit_message: Title of the commit.
    """

    private: bool | None = None
    create_pr: bool = False
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    commit_message: str = _MESSAGE


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    encoding: str = "2bit",
    directory: str | Path | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = _MESSAGE,
) -> str:
    """Publish a model: packed if it is ternary, else in float.

    Before anything is uploaded the files are loaded back, and must give the model's own logits.

    Args:
        model: A timm model, ternary (trainable or packed) or float; it is not changed.
        repo_id: ``user/name``; made if need be.
        encoding: As `save_packed`; of no meaning for a float model.
        directory: Its card, metrics and figures go along, e.g. the output_dir of a run.
        private: Of a new repository (None: as the account's default).
        create_pr: Open a pull request instead of a commit.
        revision: Branch to commit to, made if need be (None: main).
        token: Of the Hub (None: that of ``hf auth login`` or HF_TOKEN).
        commit_message: Title of the commit.

    Returns:
        The address of the repository, or of the pull request.

    Raises:
        ValueError: The model cannot be saved, or does not come back as it was; or the name is none.
        OSError: The Hub refuses, fails, or cannot be reached; the same call again repeats it.
    """
    _check_name(repo_id)
    model = unwrap(model)
    options = PushOptions(private, create_pr, revision, token, commit_message)
    with tempfile.TemporaryDirectory() as scratch:
        if config_of(model) is None:
            save_float(model, scratch)
        else:
            save_packed(model, scratch, encoding)
        opened = open_directory(scratch)
        check_same(model, opened)
        if directory is not None:
            for path in _beside(Path(directory), opened):
                place = Path(scratch) / path.relative_to(directory)
                place.parent.mkdir(exist_ok=True)
                shutil.copy(path, place)
        return push_directory(opened, repo_id, options)


def push_directory(
    directory: str | Path | StoredDirectory,
    repo_id: str,
    options: PushOptions | None = None,
    **changes: Any,
) -> str:
    """Publish a directory that `save_packed`, `save_float` or a training run wrote.

    What `published_files` lists is uploaded, and nothing else. Before that it is loaded back,
    packed and trainable, and the two must be the same model. The weights are read and decoded once,
    for both and for the card; what the client uploads, it reads from the file again.

    Args:
        directory: Holds model.safetensors and config.json; without a README.md a card is made. Or
            one that is open already.
        repo_id: As `push_to_hub`.
        options: How it is published.
        **changes: Fields of `PushOptions`, instead of those of `options`.

    Returns:
        The address of the repository, or of the pull request.

    Raises:
        ValueError: The directory is not complete, damaged, or holds latent weights; or the name of
            the repository is none.
        OSError: The Hub refuses, fails, or cannot be reached; the same call again repeats it.
    """
    _check_name(repo_id)
    options = replace(options or PushOptions(), **changes)
    opened = open_published(directory)
    check_loads(opened)
    files = published_files(opened)
    additions = [
        # Weights that a killed save has left under another name get theirs.
        CommitOperationAdd(
            WEIGHTS_NAME if path == opened.file.path else path.relative_to(opened.path).as_posix(),
            path,
        )
        for path in files
    ]
    card = opened.path / CARD_NAME
    if not card.is_file() or is_generated(card):
        # Anew: an earlier one may speak of other weights, or of another place to load them from.
        additions = [a for a in additions if a.path_in_repo != CARD_NAME]
        additions.append(CommitOperationAdd(CARD_NAME, _card(opened, repo_id).encode()))
    url = create_repository(repo_id, options)[1]
    with one_line(f"cannot upload to {repo_id!r}"):
        api, revision = _api(options), options.revision
        if revision is not None and not options.create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        # Not upload_folder: with hf_xet it may spread the files over several commits.
        commit = api.create_commit(
            repo_id,
            additions,
            commit_message=options.commit_message,
            create_pr=options.create_pr,
            revision=revision,
        )
    return str(commit.pr_url or url)


def open_published(directory: str | Path | StoredDirectory) -> StoredDirectory:
    """`open_directory`, of one that is to be published.

    Raises:
        ValueError: One of the model's two files is missing, or as `open_directory`.
    """
    if isinstance(directory, StoredDirectory):
        return directory
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        if not (Path(directory) / name).is_file():
            raise ValueError(
                f"{directory}: no {name}; give the output_dir of a finished run, or type: "
                "timm-ternary pack MODEL DIR"
            )
    return open_directory(directory)


def published_files(opened: StoredDirectory) -> list[Path]:
    """The files of a directory that are uploaded: never pickles, checkpoints, optimizer states.

    A report in it is among them if it is of these very weights.
    """
    return [opened.file.path, opened.config.path, *_beside(opened.path, opened)]


def create_repository(
    repo_id: str, options: PushOptions | None = None, **changes: Any
) -> tuple[str, str]:
    """Make a repository unless it is there; its full name and its address.

    Args:
        repo_id: ``user/name``, or ``name`` for the user whom the token belongs to.
        options: Whether it is private, and the token.
        **changes: Fields of `PushOptions`, instead of those of `options`.

    Raises:
        ValueError: The name is none.
        OSError: The Hub refuses, fails, or cannot be reached.
    """
    options = replace(options or PushOptions(), **changes)
    with one_line(f"cannot open the repository {repo_id!r}"):
        made = _api(options).create_repo(repo_id, private=options.private, exist_ok=True)
    return made.repo_id, str(made)


def _beside(directory: Path, opened: StoredDirectory) -> list[Path]:
    """Card, metrics and figures of a directory; those of other weights stay where they are."""
    found = (path for pattern in _BESIDE for path in sorted(directory.glob(pattern)))
    files = [path for path in found if path.is_file()]
    try:
        run = read_training(directory)
    except ValueError:
        same = False
    else:
        same = run is None or run.weights_sha256 == opened.sha256
    kept = files if same else [path for path in files if path.name == CARD_NAME]
    return [*kept, *report_files(directory, opened.sha256)]


def _api(options: PushOptions) -> HfApi:
    return HfApi(token=options.token, library_name="timm_ternary", library_version=__version__)


def _check_name(repo_id: str) -> None:
    """Before minutes of saving and loading; what a name may hold, the client knows."""
    if len(repo_id.split("/")) != 2 or not all(repo_id.split("/")):
        raise ValueError(f"the repository must be given as user/name, got {repo_id!r}")
    with one_line("cannot publish"):
        validate_repo_id(repo_id)


def _card(opened: StoredDirectory, repo_id: str) -> str:
    """The model card: of a packed model what its files say; of a float one how it is loaded."""
    if opened.file.is_packed:
        card = opened.path / CARD_NAME
        license = generated_license(card) if card.is_file() else None
        return card_text(opened, repo_id=repo_id, license=license)
    return f"""---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- transformers
---
# {repo_id}

```python
import timm, timm_ternary

model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()
```
"""
