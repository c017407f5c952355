"""``workbench kernels``: compile the kernels, or say which are in use and why."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.printing import log_to_terminal, print_json, print_table

app = typer.Typer(help="Compiled kernels: build them, see which are in use.", no_args_is_help=True)


@app.command("status")
def status(
    size: Annotated[
        str | None,
        typer.Option(metavar="ROWS,WIDTH,LATENTS,K", help="Also say how latents are chosen in batches of this size."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Say of each kernel whether it is in use, could be, or why not; compiles the best one if that is not done."""
    from workbench.kernels.choice import facts, in_use
    from workbench.kernels.cpu.compiler import cache_folder
    from workbench.kernels.cpu.units import processor

    log_to_terminal()
    sizes = _sizes(size) if size else None
    rows = facts()
    encoder = in_use(size=sizes)["topk_encode"]
    if json:
        print_json({"processor": processor(), "cache": cache_folder(), "topk_encode": encoder, "kernels": rows})
        return
    typer.echo(f"processor  {processor()}")
    typer.echo(f"compiled   in {cache_folder()}")
    typer.echo(f"encoder    {encoder}" + (f" for rows, width, latents, k = {size}" if size else ""))
    print_table("", ("kernel", "state", "screens", "file"), [tuple(row.values()) for row in rows])


def _sizes(text: str) -> tuple[int, int, int, int]:
    """Read four whole numbers."""
    from workbench.errors import UserError

    try:
        rows, width, latents, k = map(int, text.split(","))
    except ValueError:
        rows = width = latents = k = 0
    if min(rows, width, k) < 1 or latents < k:
        raise UserError(f"--size {text!r}: must be rows, width, latents, k; four whole numbers from 1, k <= latents")
    return rows, width, latents, k


@app.command("build")
def build(
    every: Annotated[bool, typer.Option("--all", help="Also those that this processor cannot run.")] = False,
) -> None:
    """Compile the kernels that this processor can run, so that no later command has to."""
    from workbench.errors import UserError
    from workbench.kernels.cpu.compiler import BuildError
    from workbench.kernels.cpu.compiler import build as compile_unit
    from workbench.kernels.cpu.units import UNITS

    log_to_terminal()
    for unit in UNITS.values():
        if not every and unit.lacking():
            continue
        try:
            typer.echo(compile_unit(unit))
        except BuildError as error:
            raise UserError(f"{unit.name}: {error}") from error
