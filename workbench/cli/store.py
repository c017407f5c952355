"""``workbench store``: look at a store, check it, repair it, add labels to it; see `transfer` for export and import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli import options, transfer
from workbench.cli.printing import log_to_terminal, print_json, print_table
from workbench.cli.store_facts import facts_of

if TYPE_CHECKING:
    pass

app = typer.Typer(
    help="Look at an activation store, check it, repair it, add labels to it, export it, import one.",
    no_args_is_help=True,
)
app.command("export")(transfer.export)
app.command("import")(transfer.import_)

Folder = Annotated[Path, typer.Argument(metavar="ACTS", help="Folder of the store.", show_default=False)]


@app.command("info")
def info(folder: Folder, json: options.Json = False) -> None:
    """Say what a store holds: where it came from, its hook points and its labels."""
    from workbench.cache import open_store

    store = open_store(folder)
    facts = facts_of(store)
    if json:
        print_json(facts)
        return
    rows = f"{store.n_rows:,}" if store.finished else f"{store.n_rows:,} of {store.n_rows_planned:,}, unfinished"
    lines = {
        "model": facts["model"],
        "data": facts["dataset"],
        "rows": rows,
        "documents": f"{facts['documents']:,}",
        "size": f"{store.n_bytes / 1e6:,.1f} MB",
        "fingerprint": facts["fingerprint"],
    }
    for name, value in lines.items():
        typer.echo(f"{name:12s} {value}")
    points = [(name, spec.dtype, sizes(spec.axes, spec.shape)) for name, spec in store.hook_points.items()]
    typer.echo()
    print_table("", ["hook point", "stored as", "of a row"], points)
    if facts["codes"]:
        typer.echo()
        titles = ["codes", "rows", "latents", "active on a row"]
        print_table("", titles, [[codes[title] for title in titles] for codes in facts["codes"]])
    if facts["labels"]:
        typer.echo()
        titles = ["label", "group", "level", "kind", "description"]
        print_table("", titles, [[label[title] for title in ("name", *titles[1:])] for label in facts["labels"]])


@app.command("verify")
def verify(folder: Folder, json: options.Json = False) -> None:
    """Hold everything against its checksums; exit code 1 if there is damage."""
    from workbench.cache import DamageError, open_store
    from workbench.progress import progress

    log_to_terminal()
    n_rows = 0
    try:
        store = open_store(folder)
    except DamageError as error:  # of the manifest: what the rest should be is not known then
        damage = [error.damage]
    else:
        n_rows = store.n_rows
        with progress(store.n_bytes, "bytes", "verify") as ticker:
            damage = store.verify(ticker.advance)
    if json:
        print_json({"folder": str(folder), "damage": [vars(one) for one in damage]})
    else:
        for one in damage:
            typer.echo(str(one))
        typer.echo(f"{folder}: {len(damage)} faults" if damage else f"{folder}: no damage in {n_rows:,} rows")
    if damage:
        raise typer.Exit(1)


@app.command("repair")
def repair(
    folder: Folder,
    model: Annotated[
        str | None, typer.Option(help="Subject model, where the store's own address does not lead to it any more.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Dataset, where the store's own address does not lead to it any more.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N; that of the capture if not given.")] = None,
    device_map: options.DeviceMap = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences or images at a time; as in the capture if not given.")
    ] = None,
    accept_different: Annotated[
        bool, typer.Option("--accept-different", help="Keep rows that come out with other bits than were stored.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Make what is damaged as it was; rows that are lost are captured again, and no others.

    Exit code 1 if something could not be repaired. The same command goes on where it was stopped.
    """
    from workbench.repairing import repair_store

    log_to_terminal()
    done = repair_store(
        folder,
        model=model,
        data=data,
        device=device,
        device_map=device_map,
        batch_size=batch_size,
        accept_different=accept_different,
    )
    if json:
        print_json({"folder": str(folder), "repairs": [vars(one) for one in done]})
    else:
        for one in done:
            typer.echo(str(one))
        n_left = sum(not one.repaired for one in done)
        left = f", {n_left} of them still damaged" if n_left else ""
        typer.echo(f"{folder}: {len(done)} damaged files{left}" if done else f"{folder}: nothing to repair")
    if not all(one.repaired for one in done):
        raise typer.Exit(1)


@app.command("label")
def label(
    folder: Folder,
    file: Annotated[
        Path, typer.Argument(help="CSV, or JSON lines; see docs/datasets.md.", metavar="FILE", show_default=False)
    ],
    json: options.Json = False,
) -> None:
    """Add the labels of a file, replacing the groups that they are in; activations are not touched."""
    from workbench.cache import open_store
    from workbench.label_files import label_from_file

    log_to_terminal()
    store = open_store(folder)
    specs = label_from_file(store, file)
    defined = {spec.name: int(store.label(spec.name)[1].sum()) for spec in specs}
    if json:
        print_json([{"name": spec.name, "group": spec.group, "rows": defined[spec.name]} for spec in specs])
        return
    rows = [(spec.name, spec.group, spec.level, spec.kind, f"{defined[spec.name]:,}") for spec in specs]
    print_table("", ["label", "group", "level", "kind", "rows with a value"], rows)


def sizes(axes: tuple[str, ...], shape: tuple[int, ...]) -> str:
    """Write a shape with the names of its axes: ``head 4 × key 128``."""
    return " × ".join(f"{axis} {size}" for axis, size in zip(axes, shape, strict=True)) or "one number"
