"""How something is published, in one value."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path

import pytest
from hub_server import OWNER, Hub
from samples import trained

from timm_ternary.checkpoint.directory import save_packed
from timm_ternary.hub.push import PushOptions, create_repository, push_directory, push_to_hub

REPO = f"{OWNER}/net"


def test_push_to_hub_takes_the_same_words() -> None:
    """Users call it by keyword; the defaults must not drift apart."""
    words = inspect.signature(push_to_hub).parameters
    for name, value in asdict(PushOptions()).items():
        assert words[name].default == value and words[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert words.keys() == {"model", "repo_id", "encoding", "directory"} | {
        entry.name for entry in fields(PushOptions)
    }


def test_a_token_is_not_shown() -> None:
    options = PushOptions(token="hf_secret")
    assert "secret" not in repr(options)
    with pytest.raises(FrozenInstanceError):
        options.private = True  # type: ignore[misc]


def test_an_unknown_word(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="privat"):
        push_directory(tmp_path, REPO, privat=True)


@pytest.mark.hub
def test_words_go_before_the_options(hub: Hub, tmp_path: Path) -> None:
    options = PushOptions(private=True, commit_message="Mine")
    packed = save_packed(trained("resnet8_cifar_tern"), tmp_path / "packed")
    create_repository(f"{OWNER}/open", options, private=False)
    push_directory(packed, REPO, options)
    (packed / "metrics.json").write_text("{}")  # else there is nothing to commit
    push_directory(packed, REPO, options, commit_message="Again")
    assert hub.repositories[REPO].private and not hub.repositories[f"{OWNER}/open"].private
    assert hub.repositories[REPO].titles == ["Mine", "Again"]
