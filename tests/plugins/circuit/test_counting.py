"""Counts equal naive loops, as integers, and the sparse products that they stand for."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.plugins.circuit.counting import appearances, count_nodes, count_pairs, share_nodes


def naive(positive, negative):
    n_heads = positive.shape[1]
    counts = np.zeros((n_heads, n_heads), dtype=int)
    for first in range(n_heads):
        for second in range(n_heads):
            if first == second:
                continue
            seen = {(row[first], row[second]) for row in positive.tolist()}
            counts[first, second] = len(seen - {(row[first], row[second]) for row in negative.tolist()})
    return counts


def sparse(positive, negative, n_codes):
    n_heads = positive.shape[1]

    def together(codes):
        rows, heads = np.indices(codes.shape)
        ones = np.ones(codes.size, dtype=int)
        onehot = scipy.sparse.csr_matrix(
            (ones, (rows.ravel(), (heads * n_codes + codes).ravel())), shape=(len(codes), n_heads * n_codes)
        )
        return (onehot.T @ onehot).toarray() > 0

    fresh = together(positive) & ~together(negative)
    counts = fresh.reshape(n_heads, n_codes, n_heads, n_codes).sum(axis=(1, 3))
    np.fill_diagonal(counts, 0)
    return counts


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_pairs_equal_naive_loops(n_positive, n_negative, n_heads, n_codes, seed):
    rng = np.random.default_rng(seed)
    positive, negative = (rng.integers(n_codes, size=(n, n_heads)) * 7 for n in (n_positive, n_negative))
    got = count_pairs(positive, negative)
    assert np.array_equal(got, naive(positive, negative))
    assert np.array_equal(got, sparse(positive, negative, 7 * n_codes))
    assert np.array_equal(got, got.T)


@pytest.mark.slow
def test_more_examples_than_a_small_integer_holds():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(40, size=(33_000, 3)), rng.integers(40, size=(900, 3))
    assert np.array_equal(count_pairs(positive, negative), naive(positive, negative))


def test_nodes():
    positive, negative = np.array([[1, 5], [2, 5], [3, 6]]), np.array([[2, 5], [9, 6]])
    assert count_nodes(positive, negative).tolist() == [2, 0]
    assert share_nodes(positive, negative).tolist() == [2 / 4, 0.0]


@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_appearances_equal_the_list_written_out(n_heads, seed):
    counts = np.random.default_rng(seed).integers(4, size=(n_heads, n_heads))
    pairs = [(first, second) for first in range(n_heads) for second in range(n_heads)]
    pairs.sort(key=lambda pair: -counts[pair])  # Python's sort keeps the order of equal ones
    heads = [head for pair in pairs for head in pair][: n_heads**2 // 2]
    assert appearances(counts).tolist() == [heads.count(head) for head in range(n_heads)]
