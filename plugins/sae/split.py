"""Who is trained on and who is measured on: rows parted by the documents that they come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.errors import UserError
from workbench.plugins.sae import EvaluateConfig


@dataclass(frozen=True)
class Split:
    """Rows by the documents that they come from; special tokens are in neither part, unless there are no others.

    Attributes
    ----------
    train, held_out : bool array [rows]
        Rows of the store.
    n_train_documents, n_held_out_documents : int
        Documents behind them.
    how : str
        One sentence for the report.
    """

    train: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    n_train_documents: int
    n_held_out_documents: int
    how: str


class Rows(Protocol):
    """Rows with their documents: a store, or a plan of rows that are computed when they are needed."""

    @property
    def folder(self) -> Path | str:
        """What messages call them."""

    @property
    def origins(self) -> NDArray[Any]:
        """Record array [rows]; see `Store.origins`."""

    @property
    def ordinary(self) -> NDArray[np.bool_]:
        """Rows that are no special tokens; see `Store.ordinary`."""

    @property
    def documents(self) -> list[str]:
        """Names of documents, by document index."""

    @property
    def document_fields(self) -> list[dict[str, Any]]:
        """Plain values of each document, by document index."""


def split_rows(store: Rows, config: EvaluateConfig, seed: int) -> Split:
    """Part rows by document: by the dataset's ``held_out`` flag, else by a seeded hash of the name.

    Neither part is empty: flags that are the same for all documents with rows decide nothing.

    Raises
    ------
    UserError
        If the rows come from fewer than two documents.
    """
    origins = store.origins
    ordinary = store.ordinary
    present = np.unique(origins["document"][ordinary])
    if len(present) < 2:
        raise UserError(
            f"{store.folder} has rows of {len(present)} document{'s' * (len(present) != 1)}: at least 2 are needed, "
            "one to train on and one to measure on; capture more rows or documents"
        )
    held_out = np.zeros(len(store.documents), dtype=bool)
    fields = store.document_fields
    flags = np.array([bool(fields[document].get("held_out")) for document in present])
    if flags.any() and not flags.all():
        held_out[present] = flags
        how = "documents that the dataset flags as held out"
    else:  # no flags, or none that parts the documents that have rows here
        names = store.documents
        n_held_out = min(math.ceil(config.held_out * len(present)), len(present) - 1)
        hashes = [xxhash.xxh3_64_intdigest(f"{seed}:{names[document]}".encode()) for document in present]
        held_out[present[np.argsort(hashes)[:n_held_out]]] = True
        how = f"{100 * config.held_out:g} % of the documents, by a seeded hash of their names"
        if any("held_out" in fields[document] for document in present):
            how += f" (the dataset flags {'all' if flags.any() else 'none'} of those captured as held out)"
    of_row = held_out[origins["document"]]
    n_held_out = int(held_out[present].sum())
    return Split(ordinary & ~of_row, ordinary & of_row, len(present) - n_held_out, n_held_out, how)
