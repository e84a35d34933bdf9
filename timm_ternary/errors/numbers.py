"""What a number is, where users give one: the one owner of the question and of its wording."""

from __future__ import annotations

import math
import numbers
from typing import Any

from .printable import shown

__all__ = ["check_number", "check_whole", "is_number", "is_whole", "plain"]


def is_number(
    value: Any,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
) -> bool:
    """Whether `value` is a finite real number in a range: Python's, or a scalar of numpy.

    True and False are no numbers (``t: no`` in YAML means another thing than 0), nor is text.

    Args:
        low, high: The range, with its ends.
        above, below: The range, without its ends.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        found = float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False
    return math.isfinite(found) and low <= found <= high and above < found < below


def is_whole(value: Any, *, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is an integer in a range, with its ends: not 2.0, not True."""
    return isinstance(value, numbers.Integral) and is_number(value, low=low, high=high)


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
    example: float | None = None,
) -> float:
    """`value` as a float, if it is a finite number in the range; see `is_number`.

    Args:
        name: What the user calls it, for the error.
        example: A good value, for the error.

    Raises:
        ValueError: It is not. One line: what is allowed, what was got.
    """
    if is_number(value, low=low, above=above, high=high, below=below):
        return float(value)
    allowed = _range("number", low, above, high, below)
    end = "," if example is None else f", e.g. {example};"
    raise ValueError(f"{name} must be {allowed}{end} got {shown(value)}{_hint(value)}")


def check_whole(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> int:
    """`value` as an int, if it is a whole number in the range; see `is_whole`.

    Raises:
        ValueError: It is not. One line: what is allowed, what was got.
    """
    if is_whole(value, low=low, high=high):
        return int(value)
    allowed = _range("whole number", low, -math.inf, high, math.inf)
    raise ValueError(f"{name} must be {allowed}, got {shown(value)}")


def plain(value: Any) -> Any:
    """A scalar of numpy as Python's own number, which JSON and YAML can hold; others unchanged."""
    if type(value) in (int, float) or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _range(kind: str, low: float, above: float, high: float, below: float) -> str:
    """The range in words, e.g. ``a finite number >= 0``, ``a number from 0 to below 1``."""
    start = max(low, above)
    end = min(high, below)
    if math.isinf(end):
        finite = f"a {kind}" if kind == "whole number" else f"a finite {kind}"
        return finite if math.isinf(start) else f"{finite} {'>=' if low > above else '>'} {start:g}"
    stop = f"{end:g}" if high < below else f"below {end:g}"
    if math.isinf(start):
        return f"a {kind} up to {stop}" if high < below else f"a {kind} {stop}"
    return f"a {kind} {'from' if low > above else 'above'} {start:g} to {stop}"


def _hint(value: Any) -> str:
    """What may have gone wrong with text that looks like a number."""
    try:
        float(value if isinstance(value, str) else "")
    except ValueError:
        return ""
    return " (a number in quotes is text: leave them out)"
