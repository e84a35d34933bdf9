"""Type hints of fields: what they allow, in words and as a list of choices."""

from __future__ import annotations

import types
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

__all__ = ["allows", "choices", "describe_hint", "members"]


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type hint."""
    if get_origin(hint) in (Union, types.UnionType):
        return get_args(hint)
    return (hint,)


def allows(hint: Any, kind: type) -> bool:
    """Whether a type hint has the alternative `kind`, whatever its parameters."""
    return any((get_origin(member) or member) is kind for member in members(hint))


def choices(hint: Any) -> tuple[str, ...]:
    """The words that a type hint allows, where these are few; else none."""
    found: list[str] = []
    for member in members(hint):
        if get_origin(member) is Literal:
            found += map(str, get_args(member))
        elif isinstance(member, type) and issubclass(member, Enum):
            found += [str(entry.value) for entry in member]
        elif member is bool:
            found += ["true", "false"]
    return tuple(found)


def describe_hint(hint: Any) -> str:
    """A type hint in words, e.g. ``"a number or null"``."""
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        dict: "a mapping",
        list: "a list",
        type(None): "null",
    }
    words = []
    for member in members(hint):
        origin = get_origin(member) or member
        if origin is list:
            words.append("a list, each entry " + describe_hint(get_args(member)[0]))
        elif origin is Literal:
            words.append("one of " + ", ".join(map(str, get_args(member))))
        elif isinstance(origin, type) and issubclass(origin, Enum):
            words.append("one of " + ", ".join(str(entry.value) for entry in origin))
        else:
            words.append(names.get(origin, getattr(origin, "__name__", str(origin))))
    if any(word.startswith("one of") for word in words):
        words = [word for word in words if word != "text"]
    return " or ".join(words)
