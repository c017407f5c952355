"""``workbench demo``: the whole path once, on a subject that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.printing import log_to_terminal

MODEL, DATA, LAYER = "zoo:pycode", "python-stdlib", 2
ROWS = 200_000


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the store and the runs.")] = Path("runs/demo"),
    rows: Annotated[int, typer.Option(help="Rows (tokens) to capture.", min=2_000)] = ROWS,
) -> None:
    """Capture activations of a small language model, train a sparse autoencoder on them, probe both, and write reports.

    The same command continues what was interrupted, and does nothing that is done.
    """
    import workbench as wb

    log_to_terminal()
    resid, neurons = f"blocks.{LAYER}.hook_resid_post", f"blocks.{LAYER}.mlp.hook_post"
    typer.echo(f"1/4  capture {rows:,} tokens of {MODEL} on {DATA}")
    store = wb.capture(MODEL, data=DATA, hooks=[resid, neurons], rows=rows, out=out / "acts")
    typer.echo("2/4  train a sparse autoencoder on the residual stream")
    sae = wb.run("sae", store=store, hook_point=resid, out=out / "sae")
    typer.echo("3/4  probe neurons of the MLP")
    probed = wb.run("sparse-probe", store=store, hook_point=neurons, out=out / "probe-neurons")
    typer.echo("4/4  probe latents of the autoencoder")
    latents = wb.run("sparse-probe", store=store, dictionary=sae.folder, hook_point=resid, out=out / "probe-latents")
    typer.echo("\nReports:")
    for result in (sae, probed, latents):
        typer.echo(f"  {result.folder}/report.html")
