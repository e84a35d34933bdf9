"""Tables on terminals that differ."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from timm_ternary.cli import common, tables

RESULT = {
    "path": "some/where/far/away/an_image_with_a_long_name.png",
    "names": ["Siberian husky", "malamute"],
    "probabilities": [0.5, 0.1],
}


def _printed(width: int, encoding: str) -> str:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    Console(file=stream, width=width).print(tables.prediction(RESULT))
    stream.flush()
    return buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(("encoding", "bar"), [("utf-8", "━"), ("ascii", "-")])
def test_bars_of_a_prediction(encoding: str, bar: str) -> None:
    path, first, second = _printed(80, encoding).splitlines()
    assert path.strip() == RESULT["path"]
    assert first.split()[:3] == ["Siberian", "husky", "50.0%"]
    assert second.split()[:2] == ["malamute", "10.0%"]
    assert (first.count(bar), second.count(bar)) == (15, 3)


def test_a_narrow_terminal_cuts_nothing() -> None:
    lines = _printed(36, "utf-8").splitlines()
    assert "".join(line.strip() for line in lines[:2]) == RESULT["path"]
    assert all(len(line) <= 36 for line in lines)
    assert "50.0%" in lines[2] and "10.0%" in lines[3] and "━" in lines[2]


def test_names_of_classes_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["jay [blue]", "cat[/x]", ":smile: dog"]
    common.out.print(tables.prediction({**RESULT, "names": names, "probabilities": [0.3] * 3}))
    common.out.print("dir[red]/index.html: 4 figures")
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*names, "dir[red]/index.html"])


def test_names_of_files_do_not_steer_the_terminal() -> None:
    evil = "\x1b[2J\x9b1m\u202ecat\nerror:"
    shown = "\\x1b[2J\\x9b1m\\u202ecat\\nerror:"
    result = {"path": evil, "names": [evil], "probabilities": [0.5]}
    layer = {"name": evil, "kind": evil, "shape": [1], "packed_bytes": 1}
    layer |= dict.fromkeys(("zeros", "plus", "minus", "pos", "neg"), 0.5)
    quick = {"model": evil, "top1": 0.5, "top5": 0.5, "images": 1, "seconds": 1.0}
    found = {evil: ({"option": 1}, evil)}
    for table in (
        tables.prediction(result),
        tables.layers({"layers": [layer]}),
        tables.evaluation(quick),
        tables.methods(found),
    ):
        buffer = io.StringIO()
        Console(file=buffer, width=200).print(table)
        text = buffer.getvalue()
        assert shown in text and all(c == "\n" or c.isprintable() for c in text)
    long = {"path": "a", "names": ["x" * 500_000], "probabilities": [0.5]}
    buffer = io.StringIO()
    Console(file=buffer, width=200).print(tables.prediction(long))
    assert len(buffer.getvalue()) < 10_000
