"""Counting codes that occur in positive examples and in no negative one: for single heads and for pairs of heads.

With one-hot codes B [examples, heads × codes], the pairs of codes that co-occur are the stored entries of BᵀB. Those of
the positive examples that are absent from the negative ones are counted here for each pair of heads, from examples ×
heads² pairs and without either product: an array [heads, heads, codes, codes] takes 6.6 GB for GPT-2 small.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

SEEN_IN_NEGATIVES = -1


def count_nodes(
    positive: Int[np.ndarray, "positives heads"], negative: Int[np.ndarray, "negatives heads"]
) -> Int[np.ndarray, " heads"]:
    """Return for each head how many of its codes occur in positive examples and in no negative one."""
    heads = range(positive.shape[1])
    return np.array([len(np.setdiff1d(positive[:, head], negative[:, head])) for head in heads], dtype=np.int64)


def share_nodes(
    positive: Int[np.ndarray, "positives heads"], negative: Int[np.ndarray, "negatives heads"]
) -> Float[np.ndarray, " heads"]:
    """Return `count_nodes` as a share of the codes that occur at all."""
    heads = range(positive.shape[1])
    n_codes = np.array([len(np.union1d(positive[:, head], negative[:, head])) for head in heads])
    return np.asarray(count_nodes(positive, negative) / np.maximum(n_codes, 1))


def count_pairs(
    positive: Int[np.ndarray, "positives heads"], negative: Int[np.ndarray, "negatives heads"]
) -> Int[np.ndarray, "heads heads"]:
    """Return for each two heads how many pairs of codes co-occur in a positive example and in no negative one.

    Parameters
    ----------
    positive, negative : np.ndarray
        [examples, heads] codes, whole numbers from 0.

    Returns
    -------
    np.ndarray
        [heads, heads] int64, symmetric, 0 on the diagonal.
    """
    n, n_heads = positive.shape
    codes, width = _compact(np.concatenate([positive, negative]))
    # A cell for each code of one head and each code of each later head. Cells are written before they are read, anew
    # for every head, so they are never cleared; each pair of heads has its own side by side, to stay in the cache.
    small = np.int16 if n <= np.iinfo(np.int16).max else np.int32
    cells = np.empty(n_heads * width * width, dtype=small)
    stamps = np.tile(np.arange(n, dtype=small), (n_heads, 1))
    within = codes.T + (np.arange(n_heads) * width**2)[:, None]
    later_positive, later_negative = np.ascontiguousarray(within[:, :n]), np.ascontiguousarray(within[:, n:])
    rows = np.ascontiguousarray(codes.T * width)
    counts = np.zeros((n_heads, n_heads), dtype=np.int64)
    for head in range(n_heads - 1):
        at = later_positive[head + 1 :] + rows[head, :n]
        stamp = stamps[head + 1 :]
        cells[at.ravel()] = stamp.ravel()  # of examples with the same pair of codes the last one's stamp stays
        cells[(later_negative[head + 1 :] + rows[head, n:]).ravel()] = SEEN_IN_NEGATIVES
        kept = cells.take(at, mode="wrap") == stamp  # "wrap" alone copies without a buffer
        counts[head, head + 1 :] = np.count_nonzero(kept, axis=1)
    return counts + counts.T


def _compact(codes: np.ndarray) -> tuple[np.ndarray, int]:
    """Number each head's codes from 0 without gaps; returns them [examples, heads] and the most that a head has."""
    numbered = [np.unique(codes[:, head], return_inverse=True) for head in range(codes.shape[1])]
    width = max((len(found) for found, _ in numbered), default=1)
    return np.stack([inverse.reshape(-1) for _, inverse in numbered], axis=1).astype(np.int64), width


def appearances(pairs: Int[np.ndarray, "heads heads"]) -> Int[np.ndarray, " heads"]:
    """Score heads by their pairs, as the paper's "edge" results do (`node_via_pairs`).

    All ordered pairs are sorted by their count, best first, and written out as a list of heads; its first heads² / 2
    entries, so a quarter of the pairs, are kept, and a head's score is how often it is among them. Pairs with equal
    counts keep their order, row by row.
    """
    n_heads = len(pairs)
    order = np.argsort(-np.asarray(pairs).ravel(), kind="stable")
    heads = np.stack(np.divmod(order, n_heads), axis=1).ravel()[: n_heads**2 // 2]
    return np.bincount(heads, minlength=n_heads)
