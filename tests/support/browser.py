"""A headless browser, where one is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

__all__ = ["find_browser", "look"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# Works in a frame as wide as a phone: a window cannot be as narrow everywhere.
_FRAME = """<!DOCTYPE html><title>waiting</title>
<iframe id="frame" style="border:0;width:{width}px;height:844px" src="{page}"></iframe>
<pre id="found"></pre>
<script>
window.addEventListener("load", () => {{
  const frame = document.getElementById("frame"), inner = frame.contentDocument;
  const root = inner.documentElement, all = (query) => [...inner.querySelectorAll(query)];
  // The first column after no click, one, two and three clicks on the second column's head.
  const first = (table) => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const sorted = (table) => {{
    const orders = [first(table)], button = table.querySelector("th:nth-child(2) button");
    for (let k = 0; button && k < 3; k++) {{
      button.click();
      orders.push(first(table));
    }}
    return orders;
  }};
  document.getElementById("found").textContent = JSON.stringify({{
    width: frame.contentWindow.innerWidth,
    scroll_width: root.scrollWidth,
    headings: all("h1, h2").map((e) => e.textContent),
    images: all("img").map((e) => ({{
      complete: e.complete, natural: e.naturalWidth, shown: e.clientWidth, alt: e.alt,
      local: e.src.startsWith("data:"),
    }})),
    tables: all("table").map((e) => {{
      const cut = [...e.querySelectorAll("td")].filter((c) => c.scrollWidth > c.clientWidth + 1);
      const box = e.getBoundingClientRect();
      return {{left: box.left, right: box.right, cut: cut.length, sorted: sorted(e)}};
    }}),
    outside: all("script[src], link, iframe, [src^=http], [href]").length,
  }});
}});
</script>
"""


def find_browser() -> str | None:
    """$CHROME, or the first Chromium on the PATH."""
    return os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)


def look(page: Path, width: int, tmp_path: Path) -> dict[str, Any]:
    """Open `page` in a frame `width` pixels wide and tell what a reader meets there.

    Skips the test where there is no browser.
    """
    browser = find_browser()
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} on the PATH, and CHROME is not set")
    outer = tmp_path / f"frame_{width}.html"
    outer.write_text(_FRAME.format(width=width, page=page.resolve().as_uri()))
    # Files are each of another origin to one another; this test looks into one from another.
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files")
    options += ("--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")
    done = subprocess.run(
        [browser, *options, outer.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr
    result: dict[str, Any] = json.loads(unescape(found[1]))
    return result
