"""Text from files on a terminal."""

from __future__ import annotations

import time

import pytest

from timm_ternary.errors.printable import LINE, printable, shown
from timm_ternary.errors.wording import flat, unknown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("café, 日本語 🐈", "café, 日本語 🐈"),
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
        ("C:\\path", "C:\\path"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\rd\x00\x07\x7f", "a\\nb\\tc\\rd\\x00\\x07\\x7f"),
        ("\x9b2J\x85", "\\x9b2J\\x85"),
        ("\u202egnp.exe\u2066\u200f", "\\u202egnp.exe\\u2066\\u200f"),
        ("\u2028\u2029\ufeff\u200b", "\\u2028\\u2029\\ufeff\\u200b"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_does_not_print_is_escaped_as_repr_does(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(expected) == expected  # what was escaped once is not changed again
    assert expected.encode("utf-8")


@pytest.mark.parametrize("piece", ["x", "\x1b", "日"])
def test_what_is_long_is_cut_in_the_middle(piece: str) -> None:
    text = "begin" + 500_000 * piece + "type: this"
    start = time.perf_counter()
    line = printable(text, LINE)
    assert time.perf_counter() - start < 0.1
    assert len(line) == LINE and "(500,015 characters)" in line
    assert line.startswith("begin") and line.endswith("type: this")
    assert len(flat(ValueError(text))) <= LINE


def test_values_are_shown_in_bounded_size() -> None:
    bomb: object = "lol"
    for _ in range(60):
        bomb = [bomb] * 9
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (bomb, deep, {"a": bomb}, 1 << 100_000, "x" * 500_000, list(range(10**6))):
        assert len(shown(value)) < 500
    assert shown({"b": 1, "a": [1, "x"]}) == "{'b': 1, 'a': [1, 'x']}"
    assert "\x1b" not in shown("\x1b[2J")
    while deep:  # else Python frees it by recursion
        deep = deep.pop()  # type: ignore[assignment]


def test_an_unknown_name_of_any_length() -> None:
    line = unknown("method", "tga\x1b" * 100_000, ["tga", "ttq"])
    assert len(line) < 500 and line.isprintable() and line.endswith("Allowed: tga, ttq.")
