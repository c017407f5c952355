"""``workbench encode`` and ``workbench reconstruct``: a dictionary over a whole store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.printing import log_to_terminal, print_json

Acts = Annotated[Path, typer.Option("--store", metavar="ACTS", help="Activation store.", show_default=False)]
Dictionary = Annotated[
    str,
    typer.Option(
        "--dictionary", help="A run of 'sae', a folder in SAELens's layout, or saelens:RELEASE/ID.", show_default=False
    ),
]
Rows = Annotated[int, typer.Option(help="Rows at a time.", min=1)]


def encode(
    store: Acts,
    dictionary: Dictionary,
    name: Annotated[
        str | None, typer.Option(help="Of the codes; by default the end of the dictionary's address.")
    ] = None,
    batch_rows: Rows = 4096,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Keep a dictionary's active latents and their activations on every row, in ACTS/codes/NAME/.

    The same command continues what was interrupted, and does nothing to finished codes.
    """
    from workbench.encoding import encode

    log_to_terminal()
    codes = encode(store, dictionary, name=name, batch_rows=batch_rows, device=device)
    active = codes.n_entries / max(1, codes.n_rows)
    size = sum(shard.n_bytes for shard in codes.manifest.shards)
    if json:
        print_json(
            {
                "store": str(store),
                "codes": codes.name,
                "rows": codes.n_rows,
                "latents": codes.n_latents,
                "entries": codes.n_entries,
                "silent_latents": int((codes.counts == 0).sum()),
                "bytes": size,
                "fingerprint": codes.fingerprint(),
            }
        )
        return
    said = f"{codes.n_rows:,} rows, {active:.1f} of {codes.n_latents:,} latents active on a row, {size / 1e6:,.1f} MB"
    typer.echo(f"{store}/codes/{codes.name}: {said}")


def reconstruct(
    store: Acts,
    dictionary: Dictionary,
    out: Annotated[Path, typer.Option(help="Folder of the new store; an unfinished one is continued.")],
    batch_rows: Rows = 4096,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Write a store of what a dictionary reconstructs of another's rows: from its codes, if there are some.

    The same command continues what was interrupted, and does nothing to a finished store.
    """
    from workbench.reconstructing import reconstruct

    log_to_terminal()
    made = reconstruct(store, dictionary, out=out, batch_rows=batch_rows, device=device)
    if json:
        print_json(
            {
                "folder": str(made.folder),
                "rows": made.n_rows,
                "hook_points": list(made.hook_points),
                "bytes": made.n_bytes,
                "fingerprint": made.fingerprint(),
            }
        )
        return
    typer.echo(f"{made.folder}: {made.n_rows:,} rows, {', '.join(made.hook_points)}, {made.n_bytes / 1e6:,.1f} MB")
