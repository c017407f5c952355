"""``workbench kernels``: compile the kernels, or say which are in use and why."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.printing import log_to_terminal, print_json, print_table

app = typer.Typer(help="Compiled kernels: build them, see which are in use.", no_args_is_help=True)


@app.command("status")
def status(json: options.Json = False) -> None:
    """Say of each kernel whether it is in use, could be, or why not; compiles the best one if that is not done."""
    from workbench.kernels.choice import facts
    from workbench.kernels.cpu.compiler import cache_folder
    from workbench.kernels.cpu.units import processor

    log_to_terminal()
    rows = facts()
    if json:
        print_json({"processor": processor(), "cache": cache_folder(), "kernels": rows})
        return
    typer.echo(f"processor  {processor()}")
    typer.echo(f"compiled   in {cache_folder()}")
    print_table("", ("kernel", "state", "screens", "file"), [tuple(row.values()) for row in rows])


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
