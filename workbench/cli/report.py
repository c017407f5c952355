"""``workbench report RUN``: make a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write a run's report.html anew from its files, and print where it is."""
    from workbench.report import write_report
    from workbench.runs import load_run

    typer.echo(write_report(load_run(folder).folder))
