"""Groups are never divided, and the division is a property of names and seed alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.probes import ProbeError, cap_rows, group_split, merge_identical


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(0, 2**32 - 1))
def test_no_group_is_divided_and_every_part_has_one(groups, seed):
    groups = np.array([*groups, 100, 101, 102])
    split = group_split(groups, seed)
    parts = {group: set(split.part[groups == group]) for group in groups}
    assert all(len(part) == 1 for part in parts.values())
    assert split.train.any()
    assert split.select.any()
    assert split.test.any()
    assert ((split.train.astype(int) + split.select + split.test) == 1).all()


def test_shares_are_exact_in_groups_and_independent_of_row_order():
    names = np.array([f"module{i}" for i in range(100)])
    split = group_split(names, seed=3)
    assert np.bincount(split.part).tolist() == [60, 20, 20]
    order = np.random.default_rng(0).permutation(100)
    assert (group_split(names[order], seed=3).part == split.part[order]).all()
    assert (group_split(names, seed=4).part != split.part).any()


def test_stratified_where_the_label_is_constant_inside_groups():
    groups = np.repeat(np.arange(50), 4)
    rare = groups < 10
    split = group_split(groups, seed=0, labels=rare)
    assert [np.unique(groups[(split.part == part) & rare]).size for part in range(3)] == [6, 2, 2]
    varied = rare ^ (np.arange(200) == 0)
    assert (group_split(groups, seed=0, labels=varied).part == group_split(groups, seed=0).part).all()


def test_identical_contents_are_one_group():
    assert merge_identical([b"a", b"b", b"a", b"c", b"b"]).tolist() == [0, 1, 0, 3, 1]


def test_cap_keeps_small_cells_whole_and_is_seeded():
    groups = np.repeat([0, 1, 2], [1000, 50, 3])
    labels = np.arange(len(groups)) % 10 == 0
    kept = cap_rows(groups, labels, 300, seed=1)
    cells = np.unique(np.stack([groups[kept], labels[kept]]), axis=1, return_counts=True)[1]
    assert len(kept) <= 300
    assert (groups[kept] == 2).sum() == 3
    assert (groups[kept] == 1).sum() == 50
    assert cells.max() == sorted(cells)[-1] > 100
    assert (np.diff(kept) > 0).all()
    assert (kept == cap_rows(groups, labels, 300, seed=1)).all()
    assert (kept != cap_rows(groups, labels, 300, seed=2)).any()
    assert len(cap_rows(groups, labels, 10_000, seed=1)) == len(groups)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: group_split([0, 0, 1], 0), "at least 3"),
        (lambda: group_split([0, 1, 2], 0, (0.5, 0.5, 0.5)), "sum to 1"),
        (lambda: cap_rows(np.zeros(5), np.zeros(5), 0, 0), "max_rows=0"),
    ],
)
def test_bad_input_is_explained(call, says):
    with pytest.raises(ProbeError, match=says):
        call()
