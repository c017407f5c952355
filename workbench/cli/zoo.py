"""``workbench zoo``: the subjects that ship with the package, and how to make them again."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.printing import log_to_terminal, print_json, print_table

if TYPE_CHECKING:
    from workbench.zoo.trainer import Progress

app = typer.Typer(help="Small subject models that ship with the package.", no_args_is_help=True)


@app.command("list")
def list_subjects(json: options.Json = False) -> None:
    """List the subjects, with what the record of their training, or of their construction, says."""
    from workbench.zoo.shelf import zoo_names, zoo_record

    records = [zoo_record(name) for name in zoo_names()]
    if json:
        print_json(records)
        return
    rows = [
        (r["name"], f"{r['n_parameters'] / 1e6:.1f} M", r.get("recipe", {}).get("steps", 0), r["about"], r["summary"])
        for r in records
    ]
    print_table("", ("address", "parameters", "steps", "what it is", "how good it is"), rows)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="pycode, calendar, modular or shapes-clip.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; a fresh one under zoo/ if not given.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's own.")] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of the recipe's own.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the processor; as many as it has cores if not given.")] = None,
    json: options.Json = False,
) -> None:
    """Train a subject from scratch; after an interruption the same command with the same --out continues.

    The same seed and number of threads give the same weights on the same machine. The subject can then be loaded as
    zoo:FOLDER. What ships with the package is left alone.
    """
    import torch

    from workbench.progress import progress
    from workbench.zoo.training import recipe_of, train_zoo

    log_to_terminal()
    if threads is not None:
        if threads < 1:
            raise typer.BadParameter(f"{threads}: at least 1", param_hint="--threads")
        torch.set_num_threads(threads)
    recipe = recipe_of(name, seed=seed, steps=steps)
    folder = out or Path("zoo") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    if out is None:
        typer.echo(f"writing to {folder}; to continue after an interruption: --out {folder}", err=True)
    with progress(recipe.steps, "steps", f"zoo:{name}") as bar:

        def show(state: Progress) -> None:
            bar.done = state.step
            bar.update(loss=state.losses[-1][1])

        record: dict[str, Any] = train_zoo(name, folder, recipe, on_step=show)
    if json:
        print_json(record)
        return
    typer.echo(f"{folder}: {record['summary']}")
