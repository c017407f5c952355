"""The order of a pass and the cuts of its batches, by themselves."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from workbench.cache import StoreError
from workbench.cache.epoch import Cuts, Epoch

counts = st.lists(st.integers(0, 9), max_size=30).map(lambda found: np.array(found, np.int32))


@given(counts=counts, chunks_per_window=st.integers(1, 8), seed=st.integers(0, 99), n_ranks=st.integers(1, 5))
def test_every_chunk_with_rows_is_in_one_window_of_one_rank(counts, chunks_per_window, seed, n_ranks):
    seen = []
    for rank in range(n_ranks):
        epoch = Epoch(counts, chunks_per_window, (seed, 0), rank, n_ranks)
        assert epoch.n_rows == epoch.rank_rows[rank]
        n_before = 0
        for window, end in enumerate(epoch.ends.tolist()):
            chunks = epoch.chunks(window)
            assert 0 < len(chunks) <= chunks_per_window
            assert (np.diff(chunks) > 0).all()
            assert counts[chunks].sum() == end - n_before
            assert sorted(epoch.places(window)) == list(range(end - n_before))
            seen += chunks.tolist()
            n_before = end
        assert n_before == epoch.n_rows
    assert sorted(seen) == np.flatnonzero(counts).tolist()


def test_chunks_come_in_the_order_that_is_documented():
    counts = np.arange(40, dtype=np.int32) % 3
    order = np.random.default_rng((7, 2, 0)).permutation(np.flatnonzero(counts).astype(np.int32))
    epoch = Epoch(counts, 4, (7, 2))
    assert [epoch.chunks(w).tolist() for w in range(7)] == [sorted(order[4 * w : 4 * w + 4]) for w in range(7)]


def test_sums_of_rows_outgrow_32_bits():
    epoch = Epoch(np.full(3, 2**30, np.int32), 3, None)
    assert (epoch.n_rows, epoch.ends.tolist()) == (3 * 2**30, [3 * 2**30])


def test_ranks_and_windows_are_mixed_differently():
    counts = np.full(64, 8)
    epochs = [Epoch(counts, 4, (0, 0), rank, 2) for rank in range(2)]
    orders = {tuple(epoch.places(window)) for epoch in epochs for window in range(8)}
    assert len(orders) == 16


def test_permutations_are_uniform():
    """Each of the 24 orders of a window of four rows comes equally often: chi-squared on 23 degrees of freedom."""
    counts = np.array([2, 2])
    found = [tuple(Epoch(counts, 2, (seed, 0)).places(0)) for seed in range(4800)]
    n = np.unique(found, axis=0, return_counts=True)[1]
    assert len(n) == 24
    assert ((n - 200) ** 2 / 200).sum() < 60  # p < 1e-4 beyond


@given(
    rank_rows=st.lists(st.integers(0, 300), min_size=1, max_size=5),
    batch_rows=st.integers(1, 60),
    later=st.integers(1, 60),
    at=st.integers(0, 10**6),
)
def test_batches_cover_each_ranks_rows_and_no_rank_waits(rank_rows, batch_rows, later, at):
    n_ranks, most = len(rank_rows), max(rank_rows)
    try:
        cuts = [Cuts(batch_rows, rank_rows, rank, 0) for rank in range(n_ranks)]
    except StoreError:
        assert n_ranks > 1
        return
    assert {cut.n_batches for cut in cuts} == {-(-most // batch_rows)}
    for cut, n_rows in zip(cuts, rank_rows, strict=True):
        starts = [cut(batch) for batch in range(cut.n_batches + 1)]
        assert (starts[0], starts[-1]) == (0, n_rows)
        assert all(0 < size <= batch_rows for size in np.diff(starts))
        if n_ranks == 1:
            assert set(np.diff(starts)[:-1]) <= {batch_rows}
        for row in range(n_rows + 1):
            assert cut.before(row) == sum(start <= row for start in starts[1:])
    assume(cuts[0].n_batches)
    batch = at % cuts[0].n_batches
    assert len({cut.done(batch) for cut in cuts}) == 1  # one state for all ranks
    try:
        resumed = [Cuts(later, rank_rows, rank, cuts[0].done(batch)) for rank in range(n_ranks)]
    except StoreError:
        return
    for old, new, n_rows in zip(cuts, resumed, rank_rows, strict=True):
        starts = [new(batch) for batch in range(new.n_batches + 1)]
        assert (starts[0], starts[-1]) == (old(batch), n_rows)
        assert all(0 < size <= later for size in np.diff(starts))
    assert len({cut.n_batches for cut in resumed}) == 1


@pytest.mark.parametrize(
    ("batch_rows", "rank_rows", "says"),
    [
        pytest.param(0, [5], "batch_rows=0: must be at least 1", id="no rows"),
        pytest.param(4, [8, 0], "one has 0 rows and another 8", id="a rank without rows"),
        pytest.param(1, [8, 5], "some of its batches would be empty: take larger batches", id="tiny batches"),
    ],
)
def test_what_cannot_be_dealt_out_is_explained(batch_rows, rank_rows, says):
    with pytest.raises(StoreError, match=says):
        Cuts(batch_rows, rank_rows, 0, 0)
