"""What the dictionary keeps of held-out rows, in sums per document, and intervals over documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.cache import Store
from workbench.dictionary import Dictionary
from workbench.probes.statistics import Interval, bootstrap_weights, percentile_interval

BATCH_ROWS = 4096


@dataclass
class Sums:
    """Sums over the rows of each document, for one way of reconstructing.

    Attributes
    ----------
    squared_error : float64 array [documents, hook points]
        Of squared distances, at each hook point that is reconstructed.
    cosine, active : float64 array [documents]
        Of cosines between row and reconstruction, and numbers of active latents.
    """

    squared_error: NDArray[np.float64]
    cosine: NDArray[np.float64]
    active: NDArray[np.float64]


@dataclass
class Codes:
    """Sparse activations of the rows that were looked at.

    Attributes
    ----------
    rows : int64 array [rows]
        Row numbers of the store, ascending.
    values : Tensor [rows, n]
        Activations, zero where a row has fewer active latents; on the CPU.
    indices : int64 Tensor [rows, n]
        Their latents.
    document : int64 array [rows]
        Which of the documents looked at each row is of.
    """

    rows: NDArray[np.int64]
    values: Tensor
    indices: Tensor
    document: NDArray[np.int64]


@dataclass
class Reconstruction:
    """Held-out rows against their reconstructions.

    Attributes
    ----------
    n_rows : float64 array [documents]
        Rows of each document.
    variation : float64 array [documents, hook points]
        Summed squared distance of the rows from the mean of all of them, at each hook point that is reconstructed.
    ways : dict of str to Sums
        By name of the dictionary; ``mean`` is the training mean in place of every row.
    codes : Codes
        Of the first dictionary.
    width : int
        Entries of a row.
    """

    n_rows: NDArray[np.float64]
    variation: NDArray[np.float64]
    ways: dict[str, Sums]
    codes: Codes
    width: int


def choose_sequences(store: Store, rows: NDArray[np.bool_], n_rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw whole sequences at random until they hold about `n_rows` of the wanted rows (at least one sequence)."""
    per_sequence = np.bincount(store.origins["sequence"][rows], minlength=store.examples.n_sequences)
    drawn = rng.permutation(np.flatnonzero(per_sequence))
    kept = np.searchsorted(np.cumsum(per_sequence[drawn]), n_rows, side="right")
    return np.sort(drawn[: max(1, int(kept))])


def reconstruct(
    store: Store, rows: NDArray[np.bool_], dictionaries: Mapping[str, Dictionary], mean: Tensor
) -> Reconstruction:
    """Encode and decode rows of the store with each dictionary.

    Parameters
    ----------
    store : Store
        Activations.
    rows : bool array [rows]
        Which rows; special tokens are left out.
    dictionaries : mapping of str to Dictionary
        Of the same hook points, on one device; the codes of the first are kept.
    mean : Tensor [width written]
        Of training rows, the baseline.
    """
    first = next(iter(dictionaries))
    reader = dictionaries[first]
    names = list(dict.fromkeys([*reader.hooks_in, *reader.hooks_out]))
    device, width = mean.device, len(mean)
    documents, of_row = np.unique(store.origins["document"][rows], return_inverse=True)
    place = np.zeros(store.n_rows, np.int64)
    place[rows] = of_row
    n = len(documents)
    widths = [int(np.prod(store.hook_points[name].shape)) for name in reader.hooks_out]
    total, squares = np.zeros((n, width)), np.zeros((n, len(widths)))
    n_rows = np.bincount(of_row, minlength=n).astype(np.float64)
    ways = {name: Sums(np.zeros((n, len(widths))), np.zeros(n), np.zeros(n)) for name in (*dictionaries, "mean")}
    kept: list[tuple[NDArray[np.int64], Tensor, Tensor]] = []
    for numbers, batch in store.sequential(names, batch_rows=BATCH_ROWS, special=False, rows=rows):
        assert isinstance(batch, dict)
        where = np.arange(store.n_rows)[numbers] if isinstance(numbers, slice) else numbers
        x, y = (side(batch).to(device, torch.float32) for side in (reader.rows_in, reader.rows_out))
        at = place[where]
        np.add.at(total, at, y.double().cpu().numpy())
        add_parts(squares, at, y, widths)
        for name, dictionary in dictionaries.items():
            values, indices = dictionary.encode(x)
            note(ways[name], at, y, dictionary.decode(values, indices, x).float(), (values > 0).sum(1), widths)
            if name == first:
                kept.append((where, values.float().cpu(), indices.cpu()))
        note(ways["mean"], at, y, mean.expand_as(y), torch.zeros(len(y)), widths)
    centre = total.sum(0) / n_rows.sum()
    apart = np.split(np.arange(width), np.cumsum(widths)[:-1])
    variation = squares.copy()
    for number, part in enumerate(apart):
        mid = centre[part]
        variation[:, number] += n_rows * (mid @ mid) - 2 * total[:, part] @ mid
    widest = max(values.shape[1] for _, values, _ in kept)
    looked_at = np.concatenate([where for where, _, _ in kept])
    codes = Codes(
        looked_at,
        torch.cat([torch.nn.functional.pad(values, (0, widest - values.shape[1])) for _, values, _ in kept]),
        torch.cat([torch.nn.functional.pad(indices, (0, widest - indices.shape[1])) for _, _, indices in kept]),
        place[looked_at],
    )
    return Reconstruction(n_rows, variation, ways, codes, width)


def note(
    sums: Sums, at: NDArray[np.int64], x: Tensor, reconstruction: Tensor, active: Tensor, widths: Sequence[int]
) -> None:
    """Add a batch to the sums; `at` [rows] is the place of each row's document."""
    add_parts(sums.squared_error, at, x - reconstruction, widths)
    add(sums.cosine, at, torch.nn.functional.cosine_similarity(x, reconstruction, dim=1))
    add(sums.active, at, active)


def add(sums: NDArray[np.float64], at: NDArray[np.int64], values: Tensor) -> None:
    """Add one value per row to the sums of the rows' documents."""
    sums += np.bincount(at, weights=values.double().cpu().numpy(), minlength=len(sums))


def add_parts(sums: NDArray[np.float64], at: NDArray[np.int64], values: Tensor, widths: Sequence[int]) -> None:
    """Add the squares of values [rows, width], each hook point's by itself, to the sums [documents, hook points]."""
    squares = values.double().pow(2)
    for number, part in enumerate(torch.split(squares, list(widths), dim=1)):
        add(sums[:, number], at, part.sum(1))


@dataclass(frozen=True)
class Resamples:
    """The same resamples of documents for every ratio of sums, so that intervals of two ways are comparable.

    Attributes
    ----------
    weights : float64 array [draws, documents]
        How often each document is in each resample.
    """

    weights: NDArray[np.float64] = field(repr=False)

    @classmethod
    def draw(cls, n_documents: int, draws: int, rng: np.random.Generator) -> Resamples:
        """Draw documents with replacement."""
        return cls(bootstrap_weights(n_documents, draws, rng))

    def ratio(
        self, above: NDArray[np.float64], below: NDArray[np.float64], *, offset: float = 0.0, factor: float = 1.0
    ) -> Interval:
        """Return ``offset + factor · Σ above / Σ below`` over documents with its 95 % percentile interval."""
        with np.errstate(invalid="ignore", divide="ignore"):
            value = offset + factor * above.sum() / below.sum()
            lo, hi = percentile_interval(offset + factor * (self.weights @ above) / (self.weights @ below))
        return Interval(float(value), lo, hi)


def reconstruction_metrics(found: Reconstruction, resamples: Resamples) -> dict[str, dict[str, Interval]]:
    """Return explained variance, mean squared error, cosine and L0 of each way, with intervals over documents."""
    return {
        name: {
            "explained_variance": explained(resamples, sums.squared_error.sum(1), found.variation.sum(1)),
            "mse": resamples.ratio(sums.squared_error.sum(1), found.n_rows * found.width),
            "cosine": resamples.ratio(sums.cosine, found.n_rows),
            "l0": resamples.ratio(sums.active, found.n_rows),
        }
        for name, sums in found.ways.items()
    }


def explained(resamples: Resamples, error: NDArray[np.float64], variation: NDArray[np.float64]) -> Interval:
    """Return the share of the variation [documents] that is left without the squared error [documents]."""
    return resamples.ratio(error, variation, offset=1, factor=-1)
