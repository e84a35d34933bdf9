"""What foreign code raises over a file, as one line: the only place that turns it.

`foreign` stands around what parses or builds from content that somebody else wrote, and around
nothing else: there every exception is the content's fault, whatever its class. Libraries raise a
dozen of them (AttributeError, AssertionError, KeyError, RecursionError, ...), and no list is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .printable import LINE, printable

__all__ = ["FileError", "foreign", "reason"]

_WORDS: dict[type[Exception], str] = {
    RecursionError: "it is nested too deeply",
    MemoryError: "it asks for more memory than there is",
}
# Their text says enough; that of others, a key or an attribute, does not.
_CLEAR = (ValueError, OSError, RuntimeError)
_REASON = 300


class FileError(ValueError):
    """A file, or what it holds, cannot be used. One printable line that names it."""

    def __init__(self, message: object) -> None:
        super().__init__(printable(" ".join(str(message).split()), LINE))


@contextmanager
def foreign(
    doing: object, *, hint: str = "", explain: Callable[[BaseException], str | None] | None = None
) -> Iterator[None]:
    """Inside, whatever is raised becomes a FileError: `doing`, why, and `hint`.

    A FileError from within passes as it is: it has named its file already.

    Args:
        doing: The file, or what failed then, e.g. ``cannot load 'resnet18'``; may be empty.
        hint: What to type.
        explain: Says of some errors more than their text does; None where it cannot.

    Raises:
        FileError: Anything went wrong.
    """
    try:
        yield
    except FileError:
        raise
    except Exception as error:  # see above: narrow by where it stands
        why = (explain(error) if explain is not None else None) or reason(error)
        head = f"{printable(doing, 400)}: " if doing else ""
        raise FileError(f"{head}{why}{hint and '; ' + hint}") from error


def reason(error: Exception) -> str:
    """Why, of an exception: its text, with its class where the text alone says little."""
    for kind, words in _WORDS.items():
        if isinstance(error, kind):
            return words
    text = printable(" ".join(str(error).split()), _REASON)
    name = type(error).__name__
    if not text:
        return name
    # NotImplementedError and RecursionError are RuntimeErrors, KeyError is none of these.
    plain = isinstance(error, _CLEAR) and not isinstance(error, NotImplementedError)
    return text if plain else f"{name}: {text}"
