"""``workbench dictionary``: look at a dictionary, write it in another layout."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.printing import log_to_terminal, print_json
from workbench.errors import UserError

if TYPE_CHECKING:
    from workbench.dictionary import Dictionary

app = typer.Typer(help="Look at a dictionary, write it in another layout.", no_args_is_help=True)

Address = Annotated[
    str,
    typer.Argument(
        metavar="DICTIONARY",
        help="A run of 'sae', a folder in SAELens's layout, or saelens:RELEASE/ID.",
        show_default=False,
    ),
]


class Layout(StrEnum):
    """Ways of writing a dictionary."""

    saelens = "saelens"
    workbench = "workbench"


@app.command("info")
def info(address: Address, json: options.Json = False) -> None:
    """Say what a dictionary is: where it reads and writes, how latents become active, whose it is."""
    from workbench.dictionary import load_dictionary

    facts = facts_of(load_dictionary(address))
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name.replace('_', ' '):20s} {value}")


@app.command("export")
def export(
    address: Address,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.", show_default=False)],
    layout: Annotated[
        Layout, typer.Option(help="saelens: cfg.json and sae_weights.safetensors; workbench: our own.")
    ] = Layout.saelens,
    json: options.Json = False,
) -> None:
    """Write a dictionary into a folder of its own, by default as SAELens 6 does."""
    from workbench.dictionary import load_dictionary
    from workbench.runs import part_of

    log_to_terminal()
    dictionary = load_dictionary(address)
    if out.exists():
        raise UserError(f"{out} exists already: name another folder")
    part = part_of(out)
    try:
        dictionary.save(part, layout=layout.value)
        part.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    if json:
        print_json({"folder": str(out), **facts_of(dictionary)})
        return
    typer.echo(f"{out}: {dictionary.n_latents:,} latents in the layout of {layout.value}")


def facts_of(dictionary: Dictionary) -> dict[str, Any]:
    """Return what there is to know of a dictionary, as plain values."""
    config = dictionary.config()
    return {
        "address": dictionary.address,
        "latents": dictionary.n_latents,
        "width": dictionary.width,
        "hook_in": dictionary.hook_in,
        "hook_out": dictionary.hook_out,
        "activation": dictionary.activation,
        "k": dictionary.k,
        "scale": dictionary.scale,
        "normalisation": dictionary.normalisation,
        "dtype": str(dictionary.W_enc.dtype).removeprefix("torch."),
        "subject": config["subject"]["address"] or "unknown",
        "subject_fingerprint": config["subject"]["fingerprint"] or "unknown",
        "fingerprint": dictionary.fingerprint(),
    }
