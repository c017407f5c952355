"""The plan of an imported store: documents and sequences of rows whose origins are told, or are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.cache import Examples
from workbench.errors import UserError

NO_TOKEN = -1
SEQUENCE_ROWS = 1024
"""Rows of a sequence where nothing is known of where rows come from."""

EACH = "rows"
"""Said instead of documents: each row is a document of its own."""


def plan_of_rows(
    n_rows: int,
    name: str,
    documents: NDArray[Any] | str | None,
    tokens: NDArray[Any] | None,
    special_tokens: Sequence[int],
) -> Examples:
    """Plan rows that follow each other.

    Parameters
    ----------
    n_rows : int
        How many.
    name : str
        Of the document, where there is but one.
    documents : array [rows], "rows" or None
        Numbers or names: rows with the same one that follow each other are a sequence of that document. "rows": each
        row is a document. None: all rows are of one document, in sequences of `SEQUENCE_ROWS` rows.
    tokens : integers [rows], optional
        Token ids.
    special_tokens : sequence of int
        Ids of special tokens.
    """
    if documents is None:
        starts = np.arange(0, n_rows, SEQUENCE_ROWS)
        return plan([name], np.zeros(len(starts), np.int64), starts, n_rows, tokens, special_tokens)
    if isinstance(documents, str):
        of_sequence = np.arange(n_rows)
        names = [f"row {row}" for row in range(n_rows)]
        return plan(names, of_sequence, of_sequence, n_rows, tokens, special_tokens)
    require_length("documents", documents, (n_rows,))
    starts = np.append(0, np.flatnonzero(documents[1:] != documents[:-1]) + 1)[: max(n_rows, 1)]
    names, of_sequence = numbered(documents[starts])
    return plan(names, of_sequence, starts, n_rows, tokens, special_tokens)


def plan_of_sequences(
    lengths: NDArray[np.int64],
    documents: NDArray[Any] | None,
    tokens: NDArray[Any] | None,
    special_tokens: Sequence[int],
) -> Examples:
    """Plan whole sequences.

    Parameters
    ----------
    lengths : int64 [sequences]
        Rows of each.
    documents : array [sequences], optional
        Numbers or names; by default each sequence is a document.
    tokens : integers [rows], optional
        Token ids.
    special_tokens : sequence of int
        Ids of special tokens.
    """
    n_rows = int(lengths.sum())
    starts = np.cumsum(lengths) - lengths
    if documents is None:
        names, of_sequence = [f"sequence {i}" for i in range(len(lengths))], np.arange(len(lengths))
    else:
        require_length("documents", documents, lengths.shape)
        names, of_sequence = numbered(documents)
    return plan(names, of_sequence, starts, n_rows, tokens, special_tokens)


def plan(
    names: Sequence[str],
    of_sequence: NDArray[np.int64],
    starts: NDArray[np.int64],
    n_rows: int,
    tokens: NDArray[Any] | None,
    special_tokens: Sequence[int],
) -> Examples:
    """Put a plan together: names of documents, the document and the first row of each sequence, and tokens."""
    if tokens is None:
        if special_tokens:
            raise UserError(f"special tokens {list(special_tokens)}: the source has no tokens; name them with --tokens")
        ids = np.full(n_rows, NO_TOKEN, np.int32)
    else:
        require_length("tokens", tokens, (n_rows,))
        if tokens.dtype.kind not in "iu":
            raise UserError(f"tokens are {tokens.dtype}: token ids are whole numbers")
        ids = tokens.astype(np.int32)
        if not np.array_equal(ids, tokens):
            raise UserError(f"token {int(tokens[ids != tokens][0])} is no token id: they have 32 bits")
    n_sequences = len(starts)
    return Examples(
        modality="text",
        documents=tuple(names),
        document_fields=tuple({} for _ in names),
        sequence_document=of_sequence.astype(np.int32),
        sequence_window=window_numbers(of_sequence),
        bounds=np.append(starts, n_rows).astype(np.int64),
        ids=ids,
        special=np.isin(ids, np.array(special_tokens, np.int64)),
        offsets=np.full((n_rows, 2), -1, np.int32),
        selected=np.ones(n_rows, np.bool_),
        paths=(),
        sizes=np.zeros((n_sequences, 2), np.int32),
    )


def numbered(documents: NDArray[Any]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names of documents in order of their first appearance, and the number of each entry's document."""
    if documents.dtype.kind not in "iuU":
        raise UserError(f"documents are {documents.dtype}: numbers or names are wanted")
    values, first, inverse = np.unique(documents, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    names = [str(values[at]) for at in order.tolist()]
    for name in names:
        if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(f"document {name!r} cannot be stored: names must be UTF-8 without NUL")
    return names, place[inverse.reshape(-1)]


def window_numbers(of_sequence: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return which sequence of its document each one is, from 0."""
    order = np.argsort(of_sequence, kind="stable")
    ordered = of_sequence[order]
    first = np.searchsorted(ordered, ordered)
    numbers = np.empty(len(order), np.int32)
    numbers[order] = np.arange(len(order)) - first
    return numbers


def require_length(what: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Refuse an array that does not have an entry for each row or sequence."""
    if array.shape != shape:
        raise UserError(f"{what} have shape {list(array.shape)}; {list(shape)} is wanted, one for each")
