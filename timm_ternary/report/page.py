"""One HTML page with everything inside: no second file, readable on a phone, whole without scripts.

The one script on it sorts tables; where scripts are off, they stand in the order they were made.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Picture", "Section", "Table", "page"]

# System colours follow the reader's light or dark mode; the figures bring their white ground.
# Text lines are as long as eyes can follow, tables as wide as they need and the screen allows. On a
# phone each row of a table becomes a block, in which every cell says what it is: nothing is cut.
_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, CanvasText 15%, Canvas);
  --faint: color-mix(in srgb, CanvasText 65%, Canvas); }
* { box-sizing: border-box; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1rem;
  overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; line-height: 1.25; margin: 2.5rem 0 .5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: 1rem 0; }
dt { color: var(--faint); }
dd { margin: 0; }
figure { margin: 1rem 0; }
img { display: block; max-width: min(100%, 36rem); height: auto; background: #fff;
  border-radius: .4rem; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums;
  margin: 1rem 0; }
.wide { width: max-content; max-width: calc(100vw - 2rem); position: relative; left: 50%;
  transform: translateX(-50%); }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { overflow-wrap: normal; }
.number { text-align: right; }
td.number { white-space: nowrap; overflow-wrap: normal; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
tfoot td { font-weight: 600; }
tfoot tr:not(:last-child) td { font-weight: 400; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
@media (max-width: 44rem) {
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  table, thead, tbody, tfoot, tr, td { display: block; }
  .wide { width: auto; max-width: none; position: static; transform: none; }
  thead tr { display: flex; flex-wrap: wrap; gap: .2rem .8rem; }
  th { display: none; padding: 0; border: 0; }
  th:has(button) { display: block; }
  thead tr:has(button)::before { content: "sort by"; color: var(--faint); }
  tbody tr, tfoot tr { display: flex; flex-wrap: wrap; gap: 0 1rem; padding: .4rem 0;
    border-bottom: 1px solid var(--line); }
  td, td.number, td:first-child { padding: 0; border: 0; text-align: left; }
  td:first-child { flex-basis: 100%; font-weight: 600; }
  td:empty { display: none; }
  td:not(:first-child)::before { content: attr(data-label) " "; color: var(--faint);
    font-weight: 400; }
}
"""

# A click sorts by a column, largest first; the second turns it round, the third undoes it.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], rows = [...body.rows];
  const key = (row, k) => row.cells[k].textContent;
  const number = (text) => Number(text.replace(/[,%]/g, ""));
  [...table.tHead.rows[0].cells].forEach((head, k) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const numbers = rows.every((row) => !isNaN(number(key(row, k))));
    button.addEventListener("click", () => {
      const first = numbers ? "descending" : "ascending";
      const second = numbers ? "ascending" : "descending";
      const now = head.getAttribute("aria-sort");
      const next = now === first ? second : now === second ? null : first;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      const sorted = [...rows];
      if (next) {
        head.setAttribute("aria-sort", next);
        sorted.sort((a, b) => (next === "ascending" ? 1 : -1) * (numbers
          ? number(key(a, k)) - number(key(b, k))
          : key(a, k).localeCompare(key(b, k), undefined, {numeric: true})));
      }
      body.append(...sorted);
    });
  });
}
"""

# Numbers stay on one line; names break where the screen is too narrow for them.
_NUMBER, _NUMBER_CLASS = re.compile(r"[-+\d.,e% ]*"), ' class="number"'


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
    """Rows of cells as text; columns that are empty in all of them are not shown.

    Attributes:
        head: Names of the columns.
        rows: Those that a reader may sort.
        total: Those below them, which stay; the last one holds the totals.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[tuple[str, ...], ...] = ()

    def shown(self) -> Table:
        """Without the columns that hold nothing."""
        cells = (*self.rows, *self.total)
        kept = [k for k in range(len(self.head)) if any(row[k] for row in cells)]
        return Table(
            tuple(self.head[k] for k in kept),
            tuple(tuple(row[k] for k in kept) for row in self.rows),
            tuple(tuple(row[k] for k in kept) for row in self.total),
        )


@dataclass(frozen=True)
class Section:
    """A heading with a text, and what there is below it."""

    title: str
    text: str
    pictures: tuple[Picture, ...] = ()
    table: Table | None = None


def page(
    title: str,
    lead: str,
    sections: Sequence[Section],
    *,
    facts: Sequence[tuple[str, str]] = (),
    compared: Table | None = None,
    head: str = "",
) -> str:
    """The page as HTML. All texts are plain: nothing in them is taken for markup.

    Args:
        title: The heading.
        lead: What matters most, in a sentence or two.
        sections: In their order.
        facts: What is known, by name, below the lead.
        compared: A table below the facts.
        head: Markup for the head of the page.
    """
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(lead)}</p>"]
    if facts:
        found = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
        parts.append("<dl>\n" + "\n".join(found) + "\n</dl>")
    if compared is not None:
        parts.append(_table(compared))
    parts += [_section(section) for section in sections]
    body = "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{head}<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", f"<p>{escape(section.text)}</p>"]
    parts += [_figure(picture) for picture in section.pictures]
    if section.table is not None:
        parts.append(_table(section.table))
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.data).decode("ascii")
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}">'
    return f"<figure>{caption}{image}</figure>"


def _table(table: Table) -> str:
    shown = table.shown()
    columns = zip(*shown.rows, *shown.total, strict=True)
    kinds = [_NUMBER_CLASS if all(map(_NUMBER.fullmatch, column)) else "" for column in columns]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>'
        for name, kind in zip(shown.head, kinds, strict=True)
    )
    body = "\n".join(_row(shown.head, row) for row in shown.rows)
    foot = "\n".join(_row(shown.head, row) for row in shown.total)
    foot = f"<tfoot>\n{foot}\n</tfoot>\n" if foot else ""
    return (
        f'<table class="wide">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n{foot}</table>"
    )


def _row(head: Sequence[str], cells: Sequence[str]) -> str:
    found = (
        f'<td data-label="{escape(name)}"{_NUMBER_CLASS if _NUMBER.fullmatch(cell) else ""}>'
        f"{escape(cell)}</td>"
        for name, cell in zip(head, cells, strict=True)
    )
    return "<tr>" + "".join(found) + "</tr>"
