"""``workbench store export`` and ``workbench store import``: stores to and from other programs' formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.printing import log_to_terminal, print_json

MEGABYTE = 1 << 20

Acts = Annotated[Path, typer.Argument(metavar="ACTS", help="Folder of the store.", show_default=False)]
Foreign = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A folder of SAELens's cached activations; a .npy, .safetensors or .pt file, or a folder of them; what "
        "'workbench store export' wrote.",
        show_default=False,
    ),
]
OWN = "their own type, bit for bit, if not given"


def export(
    acts: Acts,
    to: Annotated[str, typer.Option(help="Format: npy, safetensors or saelens.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist. An interrupted export is continued.")],
    hook: Annotated[list[str] | None, typer.Option(help="Hook point or pattern; repeatable; all if not given.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help=f"Round values to float32, float16 or bfloat16; {OWN} (int8: as float32).")
    ] = None,
    special: Annotated[bool, typer.Option(help="Export rows of special tokens too.")] = True,
    context_size: Annotated[
        int | None,
        typer.Option(help="saelens: rows of a window; those of the longest sequence if not given."),
    ] = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="saelens: lay rows end to end and cut them, whatever sequence they are of.")
    ] = False,
    file_mb: Annotated[int, typer.Option(help="safetensors, saelens: largest size of a file, in MiB.", min=1)] = 1024,
    json: options.Json = False,
) -> None:
    """Write a store's activations in another format, with their origins, labels and tokenizer."""
    from workbench.store_formats.exporting import export_store

    log_to_terminal()
    done = export_store(
        acts,
        to=to,
        out=out,
        hooks=hook,
        dtype=dtype,
        special=special,
        context_size=context_size,
        pack=pack,
        file_bytes=file_mb * MEGABYTE,
    )
    if json:
        print_json(vars(done))
        return
    for remark in done.remarks:
        typer.echo(remark)
    typer.echo(f"{done.folder}: {done.n_rows:,} rows, {done.n_bytes / 1e6:,.1f} MB")


def import_(
    source: Foreign,
    out: Annotated[Path, typer.Option(help="Folder of the store; an unfinished one of the same source is continued.")],
    format: Annotated[
        str | None, typer.Option("--from", help="saelens, npy, safetensors or pt; told from the files if not given.")
    ] = None,
    hook: Annotated[
        list[str] | None,
        typer.Option(
            help="Which arrays are which hook point; repeatable. NAME=PATTERN joins the arrays or files that match, "
            "PATTERN takes each as a hook point, NAME names the only one."
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="What the first axes of an array are: rows, or sequences and their positions (say sequences)."
        ),
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Array or file of token ids, one for each row.")] = None,
    documents: Annotated[
        str | None,
        typer.Option(help="Array or file of documents, one for each row or sequence; 'rows': each row is a document."),
    ] = None,
    special_token: Annotated[
        list[int] | None, typer.Option(help="Id of a special token, whose rows are flagged; repeatable.")
    ] = None,
    store_dtype: Annotated[
        str | None, typer.Option(help=f"Round values to float32, float16, bfloat16 or int8; {OWN}.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Copy activations of another program into a store.

    The same command continues an import that was interrupted, and does nothing to a finished one.
    """
    from workbench.cli.store_facts import facts_of
    from workbench.store_formats.importing import import_store

    log_to_terminal()
    store = import_store(
        source,
        out=out,
        kind=format,
        hooks=hook or (),
        layout=layout,
        tokens=tokens,
        documents=documents,
        special_tokens=special_token or (),
        store_dtype=store_dtype,
    )
    if json:
        print_json(facts_of(store))
        return
    documents_said = f"{len(store.documents):,} documents, {store.examples.n_sequences:,} sequences"
    typer.echo(f"{store.folder}: {store.n_rows:,} rows, {documents_said}, {store.n_bytes / 1e6:,.1f} MB")
