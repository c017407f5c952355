"""``workbench plugin new NAME``: a plugin package to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Write plugins.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Write plugins."""


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Lower-case words joined by hyphens, such as norm-profile.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; workbench-NAME if not given.")] = None,
) -> None:
    """Write a package with a plugin, its tests and its page, ready to install."""
    from workbench.scaffold import write_package

    folder = out or Path(f"workbench-{name}")
    for path in write_package(name, folder):
        typer.echo(path)
    typer.echo(f"\nNext: pip install -e {folder} && workbench run {name} && pytest {folder}")
