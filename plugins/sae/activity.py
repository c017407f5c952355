"""What each latent does over held-out rows: how often, how strongly, with which labels, beside which others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.cache import LabelInfo, Store
from workbench.kernels.topk import scatter_outer
from workbench.plugins.sae.metrics import Codes, Resamples
from workbench.probes.statistics import Interval, percentile_interval

LATENTS_AT_ONCE = 1024
MOST_VALUES = 40  # of a label that is not yes or no
ENDS = (0.025, 0.975)
DENSE = 0.1  # a latent active on more than a tenth of the rows


@dataclass(frozen=True)
class Activity:
    """Active entries sorted by latent, strongest first.

    Attributes
    ----------
    n_rows : int
        Rows that were looked at.
    bounds : int64 array [latents + 1]
        Latent j has the entries ``bounds[j]`` to ``bounds[j + 1]`` (excluded) of the arrays below.
    rows : int64 array [entries]
        Row numbers of the store.
    values : float32 array [entries]
        Activations, descending within a latent.
    """

    n_rows: int
    bounds: NDArray[np.int64]
    rows: NDArray[np.int64]
    values: NDArray[np.float32]

    @property
    def count(self) -> NDArray[np.int64]:
        """Rows on which each latent is active."""
        return np.diff(self.bounds)

    @property
    def density(self) -> NDArray[np.float64]:
        """Share of rows on which each latent is active."""
        return self.count / self.n_rows

    def of(self, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return rows and activations of a latent, strongest first."""
        entries = slice(int(self.bounds[latent]), int(self.bounds[latent + 1]))
        return self.rows[entries], self.values[entries]

    def mean(self) -> NDArray[np.float64]:
        """Return the mean over active rows of each latent; 0 where there is none."""
        sums = np.add.reduceat(np.append(self.values, 0.0).astype(np.float64), self.bounds[:-1])
        return np.where(self.count > 0, sums / np.maximum(self.count, 1), 0.0)

    def largest(self) -> NDArray[np.float64]:
        """Return the largest activation of each latent; 0 where there is none."""
        first = np.append(self.values, 0.0)[self.bounds[:-1]].astype(np.float64)
        return np.where(self.count > 0, first, 0.0)


def activity(codes: Codes, n_latents: int) -> Activity:
    """Sort codes by latent."""
    values, latents = codes.values.numpy().ravel(), codes.indices.numpy().ravel()
    rows = np.repeat(codes.rows, codes.values.shape[1])
    active = values > 0
    values, latents, rows = values[active], latents[active], rows[active]
    order = np.lexsort((rows, -values, latents))
    bounds = np.searchsorted(latents[order], np.arange(n_latents + 1))
    return Activity(len(codes.rows), bounds.astype(np.int64), rows[order], values[order])


@dataclass(frozen=True)
class Densities:
    """How often latents are active, in resamples of documents.

    Attributes
    ----------
    lo, hi : float64 array [latents]
        Ends of the 95 % percentile interval of each latent's density.
    dense : Interval
        Number of latents that are active on more than a tenth of the rows.
    """

    lo: NDArray[np.float64]
    hi: NDArray[np.float64]
    dense: Interval


def densities(codes: Codes, n_latents: int, resamples: Resamples) -> Densities:
    """Return intervals over documents of every latent's density, and of the number of dense latents."""
    active = (codes.values > 0).numpy()
    document = np.repeat(codes.document, active.sum(1))
    n_documents = resamples.weights.shape[1]
    shape = (n_documents, n_latents)
    entries = (np.ones(len(document)), (document, codes.indices.numpy()[active]))
    counts = sp.coo_matrix(entries, shape=shape).tocsc()
    rows = resamples.weights @ np.bincount(codes.document, minlength=n_documents)
    drawn = np.zeros(len(rows))
    lo, hi = np.empty(n_latents), np.empty(n_latents)
    for first in range(0, n_latents, LATENTS_AT_ONCE):
        at = slice(first, first + LATENTS_AT_ONCE)
        share = resamples.weights @ np.asarray(counts[:, at].toarray()) / rows[:, None]
        drawn += (share > DENSE).sum(1)
        lo[at], hi[at] = np.quantile(share, ENDS, axis=0)
    value = (np.asarray(counts.sum(0)).ravel() > DENSE * len(codes.rows)).sum()
    return Densities(lo, hi, Interval(float(value), *percentile_interval(drawn)))


def label_correlations(store: Store, codes: Codes, n_latents: int) -> tuple[list[str], NDArray[np.float64]]:
    """Correlate every latent's activation with every yes/no label of the store, and every value of the others.

    Parameters
    ----------
    store : Store
        Its labels are used, each on the rows where it is defined; see `yes_or_no`.
    codes : Codes
        Held-out rows.
    n_latents : int
        Of the dictionary.

    Returns
    -------
    names : list of str
        Labels, those left out that have one value only.
    correlation : float64 array [latents, labels]
        Pearson's; 0 where a latent is never active, or always alike, on the label's rows.
    """
    names, truths, masks = [], [], []
    for label, info in store.labels.items():
        values, defined = (each[codes.rows] for each in store.label(label))
        for name, truth in yes_or_no(info, values, defined):
            if 0 < truth.sum() < defined.sum():
                names.append(name)
                truths.append(truth)
                masks.append(defined)
    if not names:
        return [], np.zeros((n_latents, 0))
    y, mask = (torch.from_numpy(np.stack(part, axis=1)).double() for part in (truths, masks))
    a = codes.values.double()
    sum_ay, sum_a, sum_aa = (
        scatter_outer(weights, codes.indices, columns, n_latents)
        for weights, columns in ((a, y), (a, mask), (a * a, mask))
    )
    n, sum_y = mask.sum(0), y.sum(0)
    covariance = n * sum_ay - sum_a * sum_y
    spread = ((n * sum_aa - sum_a**2).clamp_min(0) * (n * sum_y - sum_y**2)).sqrt()
    return names, torch.where(spread > 0, covariance / spread.clamp_min(1e-30), 0.0).numpy()


def yes_or_no(
    info: LabelInfo, values: NDArray[Any], defined: NDArray[np.bool_]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Give a label as yes/no labels with their names, bool [rows] each, False where not defined.

    A ``binary`` one is itself; every other kind gives ``name=value`` for each value that occurs, if these are few.
    """
    if info.kind == "binary":
        yield info.name, (values != 0) & defined
        return
    present = np.unique(values[defined])
    if len(present) <= MOST_VALUES:
        for value in present:
            shown = info.categories[int(value)] if info.kind == "categories" else f"{value:g}"
            yield f"{info.name}={shown}", (values == value) & defined


def nearest_directions(W_dec: Tensor, n: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return for each latent the n largest cosines with other latents' decoder rows, and whose they are."""
    unit = torch.nn.functional.normalize(W_dec.float(), dim=1)
    n = min(n, len(unit) - 1)
    cosines, indices = [], []
    for start in range(0, len(unit), LATENTS_AT_ONCE):
        product = unit[start : start + LATENTS_AT_ONCE] @ unit.T
        product.diagonal(start).fill_(-torch.inf)
        top = product.topk(n, dim=1)
        cosines.append(top.values)
        indices.append(top.indices)
    return torch.cat(cosines).double().cpu().numpy(), torch.cat(indices).cpu().numpy()
