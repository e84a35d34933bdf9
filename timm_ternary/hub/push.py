"""Publishing on the Hub: loaded back and compared, then uploaded in one commit."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id
from torch import nn

from ..checkpoint.directory import CONFIG_NAME, save_float, save_packed
from ..checkpoint.weights_file import WEIGHTS_NAME, is_packed_file
from ..errors.hub import one_line
from ..files import HISTORY_NAME, METRICS_NAME, TRAINING_NAME, sha256
from ..nn.convert import config_of
from ..nn.timm_wrapper import unwrap
from ..version import __version__
from .card import CARD_NAME, card_text, generated_license, is_generated
from .verify import check_loads, check_same

__all__ = ["create_repository", "published_files", "push_directory", "push_to_hub"]

_BESIDE = (CARD_NAME, METRICS_NAME, TRAINING_NAME, HISTORY_NAME, "index.html", "*.png")
_MESSAGE = "Upload model with timm_ternary"


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
    with tempfile.TemporaryDirectory() as scratch:
        if config_of(model) is None:
            save_float(model, scratch)
        else:
            save_packed(model, scratch, encoding)
        check_same(model, scratch)
        if directory is not None:
            for path in _beside(Path(directory), Path(scratch) / WEIGHTS_NAME):
                shutil.copy(path, scratch)
        return push_directory(
            scratch,
            repo_id,
            private=private,
            create_pr=create_pr,
            revision=revision,
            token=token,
            commit_message=commit_message,
        )


def push_directory(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = _MESSAGE,
) -> str:
    """Publish a directory that `save_packed`, `save_float` or a training run wrote.

    What `published_files` lists is uploaded, and nothing else. Before that it is loaded back,
    packed and trainable, and the two must be the same model.

    Args:
        directory: Holds model.safetensors and config.json; without a README.md a card is made.
        repo_id, private, create_pr, revision, token, commit_message: As `push_to_hub`.

    Returns:
        The address of the repository, or of the pull request.

    Raises:
        ValueError: The directory is not complete, damaged, or holds latent weights; or the name of
            the repository is none.
        OSError: The Hub refuses, fails, or cannot be reached; the same call again repeats it.
    """
    _check_name(repo_id)
    directory = Path(directory)
    additions = [CommitOperationAdd(path.name, path) for path in published_files(directory)]
    check_loads(directory)
    card = directory / CARD_NAME
    if not card.is_file() or is_generated(card):
        # Anew: an earlier one may speak of other weights, or of another place to load them from.
        additions = [a for a in additions if a.path_in_repo != CARD_NAME]
        additions.append(CommitOperationAdd(CARD_NAME, _card(directory, repo_id).encode()))
    url = create_repository(repo_id, private=private, token=token)[1]
    with one_line(f"cannot upload to {repo_id!r}"):
        api = _api(token)
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        # Not upload_folder: with hf_xet it may spread the files over several commits.
        commit = api.create_commit(
            repo_id,
            additions,
            commit_message=commit_message,
            create_pr=create_pr,
            revision=revision,
        )
    return str(commit.pr_url or url)


def published_files(directory: str | Path) -> list[Path]:
    """The files of `directory` that are uploaded: never pickles, checkpoints or optimizer states.

    Raises:
        ValueError: One of the model's two files is missing.
    """
    directory = Path(directory)
    own = [directory / WEIGHTS_NAME, directory / CONFIG_NAME]
    for path in own:
        if not path.is_file():
            raise ValueError(
                f"{directory}: no {path.name}; give the output_dir of a finished run, or type: "
                "timm-ternary pack MODEL DIR"
            )
    return own + _beside(directory, own[0])


def create_repository(
    repo_id: str, *, private: bool | None = None, token: str | None = None
) -> tuple[str, str]:
    """Make a repository unless it is there; its full name and its address.

    Args:
        repo_id: ``user/name``, or ``name`` for the user whom the token belongs to.
        private, token: As `push_to_hub`.

    Raises:
        ValueError: The name is none.
        OSError: The Hub refuses, fails, or cannot be reached.
    """
    with one_line(f"cannot open the repository {repo_id!r}"):
        made = _api(token).create_repo(repo_id, private=private, exist_ok=True)
    return made.repo_id, str(made)


def _beside(directory: Path, weights: Path) -> list[Path]:
    """Card, metrics and figures of a directory; the card alone where a run made other weights."""
    found = (path for pattern in _BESIDE for path in sorted(directory.glob(pattern)))
    files = [path for path in found if path.is_file()]
    try:
        run = json.loads((directory / TRAINING_NAME).read_text(encoding="utf-8"))
        same = run["weights_sha256"] == sha256(weights)
    except FileNotFoundError:
        same = True
    except (ValueError, KeyError, TypeError):
        same = False
    return files if same else [path for path in files if path.name == CARD_NAME]


def _api(token: str | None) -> HfApi:
    return HfApi(token=token, library_name="timm_ternary", library_version=__version__)


def _check_name(repo_id: str) -> None:
    """Before minutes of saving and loading; what a name may hold, the client knows."""
    if len(repo_id.split("/")) != 2 or not all(repo_id.split("/")):
        raise ValueError(f"the repository must be given as user/name, got {repo_id!r}")
    with one_line("cannot publish"):
        validate_repo_id(repo_id)


def _card(directory: Path, repo_id: str) -> str:
    """The model card: of a packed model what its files say; of a float one how it is loaded."""
    if is_packed_file(directory / WEIGHTS_NAME):
        card = directory / CARD_NAME
        license = generated_license(card) if card.is_file() else None
        return card_text(directory, repo_id=repo_id, license=license)
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
