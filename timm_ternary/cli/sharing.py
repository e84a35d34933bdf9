"""push: what is published for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors.printable import printable
from .common import Json, app, out, print_json

__all__ = ["push"]


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="Packed directory, or output_dir of a run.")],
    repository: Annotated[str, typer.Argument(help="user/name on the Hub; made if need be.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of a commit.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch, made if need be (default: main).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Publish a directory on the Hub. Model, card, metrics, figures; checked before."""
    import timm_ternary  # noqa: F401  (registers the models)

    from ..hub.push import PushOptions, open_published, published_files, push_directory

    options = PushOptions(private=private or None, create_pr=create_pr, revision=revision)
    opened = open_published(directory)
    files = [path.relative_to(opened.path).as_posix() for path in published_files(opened)]
    url = push_directory(opened, repository, options)
    if as_json:
        print_json({"url": url, "files": files})
        return
    out.print(url, highlight=False, soft_wrap=True)
    left = sorted(
        {path.name for path in directory.iterdir()} - {file.partition("/")[0] for file in files}
    )
    if left and not out.brief:
        out.print(
            f"not uploaded: {', '.join(map(printable, left))}", highlight=False, soft_wrap=True
        )
