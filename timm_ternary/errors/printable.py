"""Text from files on a terminal: escaped where it would not print, and cut at a length."""

from __future__ import annotations

import reprlib
import unicodedata
from typing import Any

__all__ = ["LINE", "NAME", "printable", "shown"]

NAME, LINE = 200, 1000
"""Characters that are shown of a name, and of a whole error."""


def printable(text: object, limit: int = NAME) -> str:
    """`text` in one line that a terminal shows as it is read, at most `limit` characters of it.

    What Python's own ``repr`` escapes is escaped in its way, as `ls` and git do: control characters
    (ESC and the C1 block, which move the cursor and change colours), line ends, marks that turn the
    direction of writing, lone surrogates. Spaces of other scripts stay, and so do backslashes: what
    was escaped already is not changed again.

    Args:
        text: Anything with a ``str``.
        limit: Beyond it the middle is left out: an error says at its end what to type.
    """
    text = str(text)
    length = len(text)
    # Before it is escaped: a file may hold half a megabyte of them.
    escaped = _escaped(text if length <= 2 * limit else text[:limit] + text[-limit:])
    if length <= 2 * limit and len(escaped) <= limit:
        return escaped
    mark = f" ... ({length:,} characters) ... "
    head = max((limit - len(mark)) * 2 // 3, 0)
    tail = max(limit - len(mark) - head, 0)
    return escaped[:head] + mark + (escaped[-tail:] if tail else "")


def shown(value: Any) -> str:
    """``repr(value)`` of what somebody gave, of a bounded length, depth and time."""
    return printable(_REPR.repr(value), 2 * NAME)


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in text
    )


class _Repr(reprlib.Repr):
    """Aliases of YAML nest a few lines into billions of entries; and a whole number of 5,000
    digits, written in hexadecimal, has no decimal text in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = NAME
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 20

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 1000 else f"a number of {x.bit_length():,} bits"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        # reprlib's own sorts the keys; in the order given, as people know them.
        if level <= 0 and x:
            return "{...}"
        pairs = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in list(x.items())[: self.maxdict]
        ]
        return "{" + ", ".join(pairs + ["..."] * (len(x) > self.maxdict)) + "}"


_REPR = _Repr()
