"""``workbench capture``: run a subject model over a dataset and keep activations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.printing import log_to_terminal, print_json


def capture(
    model: Annotated[str, typer.Option(help="Subject model: zoo:NAME, tl:NAME, hf:NAME-OR-FOLDER.")],
    data: Annotated[
        str,
        typer.Option(
            help="Dataset: a name (python-stdlib), a file or folder, or KIND:PATH; 'workbench plugins' lists."
        ),
    ],
    hook: Annotated[
        list[str], typer.Option(help="Hook point or pattern, such as 'blocks.*.hook_resid_post'; repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the store; an unfinished one of the same capture is continued.")],
    rows: Annotated[
        int | None, typer.Option(help="How many rows, from a seeded sample of the documents; all if not given.")
    ] = None,
    positions: Annotated[
        str, typer.Option(help="Which positions become rows: all, last, class, label:NAME or share:0.1.")
    ] = "all",
    context_length: Annotated[
        int | None, typer.Option(help="Longest sequence in tokens; the model's own if not given.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences or images at a time; as many as have 8192 positions if not given.")
    ] = None,
    store_dtype: Annotated[
        str | None,
        typer.Option(
            help="Store values as float32, float16, bfloat16, or int8 (8 bits each and a scale per row); the model's "
            "own dtype if not given."
        ),
    ] = None,
    compression: Annotated[
        str | None, typer.Option(help="Compress without loss: lz4 (fast) or zstd (small); not at all if not given.")
    ] = None,
    labels: Annotated[bool, typer.Option(help="Store the dataset's labels too.")] = True,
    seed: Annotated[int, typer.Option(help="Of the sample, and of positions that are a share.")] = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    json: options.Json = False,
) -> None:
    """Run a subject model over a dataset and keep the activations of some hook points.

    The same command continues a capture that was interrupted, and does nothing to a finished one.
    """
    from workbench.capturing import capture

    log_to_terminal()
    store = capture(
        model,
        data=data,
        hooks=hook,
        out=out,
        rows=rows,
        positions=positions,
        context_length=context_length,
        batch_size=batch_size,
        store_dtype=store_dtype,
        compression=compression,
        labels=labels,
        seed=seed,
        device=device,
        dtype=dtype,
        device_map=device_map,
    )
    facts: dict[str, Any] = {
        "folder": str(store.folder),
        "rows": store.n_rows,
        "documents": len(store.documents),
        "hook_points": list(store.hook_points),
        "labels": list(store.labels),
        "bytes": store.n_bytes,
        "fingerprint": store.fingerprint(),
    }
    if json:
        print_json(facts)
        return
    counts = {"rows": store.n_rows, "documents": len(store.documents), "hook points": len(store.hook_points)}
    counts["labels"] = len(store.labels)
    said = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    typer.echo(f"{store.folder}: {said}, {store.n_bytes / 1e6:,.1f} MB")
