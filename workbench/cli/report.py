"""``workbench report RUN``: make a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.printing import log_to_terminal


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, a batch's, or that of one of its jobs.")],
) -> None:
    """Write a run's report.html anew from its files, and print where it is; a batch's job gets its figures first."""
    from workbench.batching.drawing import draw_job, is_undrawn
    from workbench.report import write_report
    from workbench.runs import load_run

    run = load_run(folder)
    if is_undrawn(run):
        log_to_terminal()
        draw_job(run)
    typer.echo(write_report(run.folder))
