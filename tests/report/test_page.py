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


def _sections() -> list[Section]:
    data = png(Figure(figsize=(9, 2), dpi=100))
    picture = Picture("a.png", f"alt {EVIL}", data, f"caption {EVIL}")
    names = tuple(f"a_column_with_a_long_name_{k}" for k in range(8))
    table = Table(names, ((EVIL, *names[1:]),) * 3, names)
    return [Section(f"first {EVIL}", EVIL * 20, (picture, picture), table), Section("second", "")]


def test_texts_are_never_markup() -> None:
    tags: list[str] = []
    texts: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            if tag == "img":
                texts.append(dict(attrs)["alt"] or "")

        def handle_data(self, data: str) -> None:
            texts.append(data)

    Parser().feed(page(EVIL, EVIL, _sections()))
    assert "script" not in tags
    assert texts.count(EVIL) == 2 + 1 + 3  # the title twice, the lead, the table's cells
    assert f"alt {EVIL}" in texts and f"caption {EVIL}" in texts and f"first {EVIL}" in texts


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
    ((shown, whole),) = seen["table"]
    assert shown <= width < whole  # it scrolls on its own
    assert seen["outside"] == 0
