"""Figures of a batch's job, made when somebody asks for them: the job is run again, as its manifest says."""

from __future__ import annotations

import logging
import math
from dataclasses import astuple
from pathlib import Path
from tempfile import TemporaryDirectory

from workbench.batching.worker import job_of, prepared
from workbench.results import Metric
from workbench.results_files import add_figures, load_shown, read_index
from workbench.runs import Run

log = logging.getLogger("workbench")


def is_undrawn(run: Run) -> bool:
    """Return whether figures of a run were left out."""
    return "batch" in run.manifest and bool(read_index(run.folder).get("undrawn"))


def draw_job(run: Run) -> None:
    """Add the figures of a job to its folder; nothing else in it changes.

    Parameters
    ----------
    run : Run
        Of a batch. What it reads must be where it was, and be the same.

    Raises
    ------
    UserError
        If it is not.
    """
    import torch

    request, context = prepared(job_of(run.manifest))
    log.info("%s was left undrawn: it is run again for its figures", run.folder)
    before = torch.get_num_threads()
    torch.set_num_threads(int(run.manifest["threads"]))  # as in the job: the same bits
    try:
        with TemporaryDirectory() as work:
            context.work = Path(work)
            result = request.plugin().run(context)
    finally:
        torch.set_num_threads(before)
    kept = load_shown(run.folder).metrics
    other = [name for name in kept if name not in result.metrics or not _alike(kept[name], result.metrics[name])]
    if other:
        log.warning(
            "run again, the job has other numbers (%s): another machine or other versions; figures show the new ones, "
            "metrics and tables keep the old",
            ", ".join(other[:5]) + ", …" * (len(other) > 5),
        )
    add_figures(run.folder, result.figures)


def _alike(one: Metric, other: Metric) -> bool:
    """Compare metrics, NaN being NaN."""
    return all(
        a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
        for a, b in zip(astuple(one), astuple(other), strict=True)
    )
