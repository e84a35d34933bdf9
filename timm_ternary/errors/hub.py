"""What fails between here and the Hub, in one line that says what to type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from ..compat.hub import HTTPError
from .wording import flat

__all__ = ["HTTPError", "explain", "one_line"]

_AGAIN = "nothing is left half done: type the same again"
_STATUS = {
    401: "the Hub wants a valid token (401); type: hf auth login, or set HF_TOKEN",
    403: "this token may not do that (403); take one with write access: hf auth login",
    404: "there is no such repository, or the token may not see it (404); check the name, or type: "
    "hf auth login",
    409: f"somebody else is changing it (409); {_AGAIN}",
    429: "too many requests (429); type the same again in some minutes",
}


@contextmanager
def one_line(doing: str) -> Iterator[None]:
    """Inside, what the client of the Hub raises becomes one line: `doing`, why, what to type.

    Args:
        doing: What failed then, e.g. ``cannot upload to user/name``.

    Raises:
        ValueError: A name is none, or a README.md is none to the Hub.
        OSError: The Hub refuses, fails, or cannot be reached.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: from uploads of large files
        raise OSError(f"{doing}: {explain(error) or _short(error)}") from error
    except ValueError as error:  # of names, and of metadata in README.md that the Hub refuses
        raise ValueError(f"{doing}: {_short(error)}") from error


def explain(error: BaseException) -> str | None:
    """Why the Hub did not do as asked, in one line; None for an error of another kind."""
    chain = list(_chain(error))
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain):
        return "HF_HUB_OFFLINE allows only what the cache holds; type: unset HF_HUB_OFFLINE"
    for link in chain:
        if isinstance(link, HfHubHTTPError):
            return _answer(link)
    if any(isinstance(link, (HTTPError, LocalEntryNotFoundError)) for link in chain):
        last = f"{type(chain[-1]).__name__}: {_short(chain[-1])}"
        return f"no connection to {constants.ENDPOINT}, or it broke ({last}); {_AGAIN}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _answer(error: HfHubHTTPError) -> str:
    """What an answer of the Hub means."""
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision (branch, tag or commit)"
    if isinstance(error, EntryNotFoundError):
        return f"the repository has no file {error.response.url.path.rpartition('/')[2]}"
    if status in _STATUS:
        return _STATUS[status]
    if status >= 500:
        return f"the Hub itself failed ({status}); {_AGAIN}"
    return f"the Hub answers {status}: {_short(error.server_message or error)}"


def _short(error: object) -> str:
    return flat(error)[:300]
