"""Wording shared by every error: what was got, what is allowed, what to type."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

from .foreign import foreign
from .printable import LINE, printable, shown

__all__ = ["UPDATE", "extra", "flat", "nearest", "parse_json", "unknown"]

UPDATE = "git pull in the clone of timm_ternary"
"""How a later release is installed: the package is in no registry."""


def extra(name: str) -> str:
    """What to type for an optional part of the package: a clone is what it is installed from."""
    return f'pip install -e ".[{name}]" in the clone of timm_ternary'


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The entry of `allowed` most similar to `name`, or None when nothing is similar."""
    if len(str(name)) > 200:
        return None  # no name, and its comparison takes long
    names = sorted(map(str, allowed))
    by_lower = {candidate.lower(): candidate for candidate in names}
    found = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def unknown(
    kind: str,
    name: object,
    allowed: Iterable[str],
    *,
    limit: int = 20,
    meant: str | None = None,
) -> str:
    """One line for an unknown name: what was got, the nearest valid name, the valid ones.

    Args:
        limit: So many valid names are listed.
        meant: The valid name that is meant, where that is known.
    """
    names = sorted(map(str, allowed))
    guess = meant or nearest(str(name), names)
    line = f"unknown {kind} {shown(name)}"
    line += "." if guess is None else f"; did you mean {guess!r}?"
    if len(names) <= limit:
        line += f" Allowed: {', '.join(names) or 'none'}."
    return line


def parse_json(name: str, value: Any) -> Any:
    """A JSON object given as text as a dict; everything else unchanged.

    Args:
        name: What the value is, for the error.

    Raises:
        ValueError: Text that begins like a JSON object and is none.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    with foreign(f"{name}: {shown(value)} is not valid JSON"):
        return json.loads(value)


def flat(error: object) -> str:
    """The text of an error in one printable line, cut at a length: others' go over several."""
    return printable(" ".join(str(error).split()), LINE)
