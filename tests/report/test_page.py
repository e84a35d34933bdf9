"""The page as HTML, and in a real browser."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import look
from matplotlib.figure import Figure

from timm_ternary.report.drawing import png
from timm_ternary.report.page import Picture, Section, Table, page

EVIL = "<script>alert('x')</script> & \"quoted\""


SIZES = (("b", "9"), ("a", "1,000"), ("c", "88"))


def _sections() -> list[Section]:
    data = png(Figure(figsize=(9, 2), dpi=100))
    picture = Picture("a.png", f"alt {EVIL}", data, f"caption {EVIL}")
    names = tuple(f"a column with a long name {k}" for k in range(8))
    long = tuple(name.replace(" ", "_") for name in names[2:])
    rows = tuple((f"{name} {EVIL}", size, *long) for name, size in SIZES)
    table = Table(names, rows, (names,))
    return [Section(f"first {EVIL}", EVIL * 20, (picture, picture), table), Section("second", "")]


def test_texts_are_never_markup() -> None:
    tags: list[str] = []
    texts: list[str] = []
    labels: set[str] = set()

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            if tag == "img":
                texts.append(dict(attrs)["alt"] or "")
            labels.update(value or "" for name, value in attrs if name == "data-label")

        def handle_data(self, data: str) -> None:
            texts.append(data)

    compared = Table((EVIL, "x"), ((EVIL, "1"),))
    text = page(EVIL, EVIL, _sections(), facts=[(EVIL, EVIL)], compared=compared)
    Parser().feed(text)
    assert tags.count("script") == 1 and text.count("<script") == 1  # that which sorts
    # The title twice, the lead, a fact and its name, head and cell of the table.
    assert texts.count(EVIL) == 2 + 1 + 2 + 2
    assert texts.count(f"a {EVIL}") == 1 and EVIL in labels
    assert f"alt {EVIL}" in texts and f"caption {EVIL}" in texts and f"first {EVIL}" in texts


def test_columns_that_hold_nothing_are_not_there() -> None:
    table = Table(("a", "b", "c"), (("1", "", ""), ("2", "", "")), (("all", "", "3"),))
    assert table.shown() == Table(("a", "c"), (("1", ""), ("2", "")), (("all", "3"),))
    text = page("t", "l", [Section("s", "", table=table)])
    assert ">a</th>" in text and ">c</th>" in text and ">b</th>" not in text


def test_figures_stand_before_the_table() -> None:
    text = page("t", "l", _sections())
    assert text.rindex("<img") < text.index("<table")


def test_pictures_are_inside() -> None:
    sections = _sections()
    data = base64.b64encode(sections[0].pictures[0].data).decode()
    assert page("title", "lead", sections).count(f'src="data:image/png;base64,{data}"') == 2


@pytest.mark.parametrize("width", [390, 1280])
def test_readable_in_a_browser(tmp_path: Path, width: int) -> None:
    path = tmp_path / "page.html"
    path.write_text(page("title", "a" * 500, _sections()), encoding="utf-8")
    seen = look(path, width, tmp_path)
    assert seen["width"] == width and seen["scroll_width"] <= width
    assert seen["headings"] == ["title", f"first {EVIL}", "second"]
    assert [image["natural"] for image in seen["images"]] == [900, 900]
    assert all(0 < image["shown"] <= width for image in seen["images"])
    assert all(image["complete"] and image["alt"] and image["local"] for image in seen["images"])
    (table,) = seen["tables"]
    assert table["left"] >= 0 and table["right"] <= width and table["cut"] == 0
    orders = [[text[0] for text in order] for order in table["sorted"]]
    assert orders == [["b", "a", "c"], ["a", "c", "b"], ["b", "c", "a"], ["b", "a", "c"]]
    assert seen["outside"] == 0
