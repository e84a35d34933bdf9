"""The tables that the command line prints. They take plain dicts, as ``--json`` prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..errors.printable import LINE, printable

__all__ = [
    "classes",
    "evaluation",
    "layers",
    "methods",
    "mistakes",
    "prediction",
    "quickstart",
]

_Values = Mapping[str, Any]


def quickstart(metrics: _Values) -> Table:
    """Accuracy and size before, during and after."""
    table = _table("", "float", "ternary", "reloaded")
    accuracies = (metrics[f"{form}_accuracy"] for form in ("float", "ternary", "reloaded"))
    table.add_row("accuracy", *(f"{100 * value:.2f} %" for value in accuracies))
    sizes = metrics["float_bytes"], metrics["packed_bytes"]
    table.add_row("bytes", f"{sizes[0]:,}", f"{sizes[1]:,}", f"{sizes[1]:,}")
    table.add_row("", "", f"{sizes[0] / sizes[1]:.1f}x smaller", "")
    table.add_row("zeros", "", f"{metrics['zeros']:.1%}", "")
    table.add_row("ternary layers", "", f"{metrics['ternary_layers']} of {metrics['layers']}", "")
    return table


def evaluation(result: _Values) -> Table:
    """Accuracy of a model on a data set."""
    table = _table("model", "top-1", "top-5", "images", "seconds")
    shares = (f"{100 * result[key]:.2f} %" for key in ("top1", "top5"))
    table.add_row(result["model"], *shares, f"{result['images']:,}", f"{result['seconds']:.1f}")
    return table


def classes(rows: Sequence[_Values]) -> Table:
    """How every class did."""
    table = _table("class", "images", "correct", "accuracy", "most often taken for")
    for row in rows:
        share = "" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f} %"
        counts = (f"{row[key]:,}" for key in ("images", "correct"))
        table.add_row(row["name"], *counts, share, row["mistaken_for"] or "")
    table.columns[4].justify = "left"
    return table


def mistakes(pairs: Sequence[_Values]) -> Table:
    """The most frequent mistakes."""
    table = _table("mistakes", "taken for", "images", "of this class")
    for pair in pairs:
        share = f"{100 * pair['share']:.1f} %"
        table.add_row(pair["name"], pair["predicted_name"], f"{pair['images']:,}", share)
    table.columns[1].justify = "left"
    return table


def prediction(result: _Values) -> Group:
    """The likeliest classes of an image, with bars, below its path."""
    table = _table("", "", "")
    table.show_header = False
    table.columns[2].min_width = 10  # long names of classes wrap instead
    for name, share in zip(result["names"], result["probabilities"], strict=True):
        # Rich's own bar: in ASCII where the terminal knows no more.
        table.add_row(name, f"{share:.1%}", ProgressBar(total=1, completed=share, width=30))
    return Group(Text(printable(result["path"], LINE), overflow="fold"), table)


def layers(summary: _Values) -> Table:
    """The ternary layers of a model."""
    table = _table("layer", "kind", "shape", "zeros", "+1", "-1", "scale +", "scale -", "bytes")
    for layer in summary["layers"]:
        table.add_row(
            layer["name"],
            layer["kind"],
            "x".join(map(str, layer["shape"])),
            *(f"{layer[key]:.1%}" for key in ("zeros", "plus", "minus")),
            *(f"{layer[key]:.3g}" for key in ("pos", "neg")),
            f"{layer['packed_bytes']:,}",
        )
    return table


def methods(found: Mapping[str, tuple[_Values, str]]) -> Table:
    """Methods with their options, defaults and first line of documentation."""
    table = _table("method", "options and defaults", "")
    for name, (options, line) in found.items():
        values = ", ".join(f"{key}={value!r}" for key, value in options.items())
        table.add_row(name, values, line)
    for column in table.columns:
        column.justify = "left"
    return table


class _Table(Table):
    """Of text that may come from a file, class names and layers: none of it steers the terminal."""

    def add_row(self, *cells: Any, **kwargs: Any) -> None:
        shown = [printable(cell, LINE) if isinstance(cell, str) else cell for cell in cells]
        super().add_row(*shown, **kwargs)


def _table(*columns: str) -> Table:
    table = _Table(*columns, box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"  # long names of layers are not cut
    for column in table.columns[1:]:
        column.justify = "right"
    return table
