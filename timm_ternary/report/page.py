"""One HTML page with everything inside: no script, no second file, readable on a phone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Picture", "Section", "Table", "page"]

# System colours follow the reader's light or dark mode; the figures bring their white ground.
_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1rem;
  overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; line-height: 1.25; margin: 2.5rem 0 .5rem; }
figure { margin: 1rem 0; }
img { display: block; max-width: min(100%, 36rem); height: auto; background: #fff;
  border-radius: .4rem; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
.table { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid color-mix(in srgb, CanvasText 15%, Canvas); }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: Canvas; }
tfoot td { font-weight: 600; }
"""


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: Its file beside the page, with its ending.
        alt: What it shows, for those who do not see it.
        data: A PNG.
        caption: Above it; may be empty.
    """

    name: str
    alt: str
    data: bytes
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells as text; the last one holds the totals."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A heading with a text, and what there is below it."""

    title: str
    text: str
    pictures: tuple[Picture, ...] = ()
    table: Table | None = None


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page as HTML. All texts are plain: nothing in them is taken for markup."""
    body = "\n".join(_section(section) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(lead)}</p>
{body}
</body>
</html>
"""


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", f"<p>{escape(section.text)}</p>"]
    if section.table is not None:
        parts.append(_table(section.table))
    parts += [_figure(picture) for picture in section.pictures]
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.data).decode("ascii")
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}">'
    return f"<figure>{caption}{image}</figure>"


def _table(table: Table) -> str:
    body = "\n".join(_row("td", row) for row in table.rows)
    # A region that scrolls must be reachable by the keyboard.
    return (
        f'<div class="table" tabindex="0"><table>\n<thead>{_row("th", table.head)}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n<tfoot>{_row('td', table.total)}</tfoot>\n</table></div>"
    )


def _row(kind: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"
