"""Rows computed on the way are those of a store of the same plan; each once, mixed, resumed, shared out, bounded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.capture_plan import Planner
from workbench.capture_rows import activation_spec
from workbench.capturing import as_dataset, capture
from workbench.errors import UserError
from workbench.live_rows import LiveRows
from workbench.subjects.sources import load_subject
from workbench.testing.ranks import on_threads
from workbench.testing.tiny import save_tiny_decoder

HOOKS = ["blocks.0.hook_mlp_out", "blocks.1.hook_resid_post"]
TEXTS = ["".join(np.random.default_rng(n).choice(list("abcdefghijklmnop"), 15 + n)) for n in range(24)]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(f"zoo:{save_tiny_decoder(tmp_path_factory.mktemp('tiny'))}", device="cpu")


@pytest.fixture(scope="module")
def make(subject):
    """Return what makes live rows of the texts."""
    dataset = as_dataset(TEXTS)
    specs = {name: activation_spec(subject.hook_points[name], subject, subject.n_context) for name in HOOKS}
    plan = Planner(subject, dataset, "all", None, 0).plan()
    return lambda buffer_rows=10**6, **options: LiveRows(
        subject, dataset, plan, specs, batch_size=4, buffer_rows=buffer_rows, **options
    )


@pytest.fixture(scope="module")
def store(subject, tmp_path_factory):
    return capture(subject, data=TEXTS, hooks=HOOKS, out=tmp_path_factory.mktemp("acts") / "store", batch_size=4)


def bits(batches):
    """Return the bits of every row of batches."""
    return [row.numpy().tobytes() for batch in batches for row in batch[HOOKS[1]]]


def stored(store, wanted=None):
    """Return the same of rows of the store, sorted: rows that start a sequence are alike."""
    return sorted(row.tobytes() for row in store.read(HOOKS[1], wanted))


def test_an_epoch_is_that_of_a_store_bit_for_bit(make, store):
    """Where the buffer has room for all."""
    live, wanted = make(), store.ordinary
    assert np.array_equal(live.origins, store.origins)
    assert np.array_equal(live.ordinary, store.ordinary)
    options = {"batch_rows": 50, "seed": 3, "epoch": 2, "rows": wanted}
    ours, theirs = live.shuffled(HOOKS, **options), store.shuffled(HOOKS, **options)
    assert ours.n_rows == theirs.n_rows
    n_batches = 0
    for one, other in zip(ours, theirs, strict=True):
        for name in HOOKS:
            assert torch.equal(one[name], other[name])
        n_batches += 1
    assert n_batches == -(-int(wanted.sum()) // 50)


@settings(max_examples=15)
@given(buffer_rows=st.integers(1, 700), batch_rows=st.integers(1, 90), stop=st.integers(0, 12), seed=st.integers(0, 9))
def test_each_row_comes_once_and_a_pass_goes_on_where_it_stopped(make, store, buffer_rows, batch_rows, stop, seed):
    wanted = np.random.default_rng(seed).random(store.n_rows) < 0.6
    live = make(buffer_rows=buffer_rows)
    options = {"batch_rows": batch_rows, "seed": seed, "rows": wanted}
    whole = [batch[HOOKS[1]].clone() for batch in live.shuffled(HOOKS, **options)]
    assert [len(batch) for batch in whole[:-1]] == [batch_rows] * (len(whole) - 1)
    assert sorted(bits([{HOOKS[1]: batch} for batch in whole])) == stored(store, wanted)
    first = live.shuffled(HOOKS, **options)
    begun = [next(first)[HOOKS[1]].clone() for _ in range(min(stop, len(whole)))]
    rest = make(buffer_rows=1).shuffled(HOOKS, **options, state=first.state())  # the state says how wide it is mixed
    for one, other in zip(whole, [*begun, *(batch[HOOKS[1]] for batch in rest)], strict=True):
        assert torch.equal(one, other)


def test_epochs_and_seeds_have_orders_of_their_own_and_rows_are_mixed(make, store):
    orders = {
        key: bits(make(buffer_rows=200).shuffled(HOOKS, batch_rows=64, seed=key[0], epoch=key[1]))
        for key in [(0, 0), (0, 1), (1, 0)]
    }
    assert all(sorted(order) == stored(store) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 3
    known = {row.tobytes(): number for number, row in enumerate(store.read(HOOKS[1]))}
    numbers = [known[row] for row in orders[0, 0]]
    assert np.mean(np.abs(np.diff(numbers)) == 1) < 0.05  # neighbours in the text are apart


def test_all_ranks_together_have_each_row_once(make, store):
    live = make(buffer_rows=150)
    passes = [live.shuffled(HOOKS, batch_rows=40, seed=0, rank=rank, n_ranks=3) for rank in range(3)]
    found = [bits(each) for each in passes]
    assert sorted(row for each in found for row in each) == stored(store)
    assert all(len(each) > store.n_rows / 6 for each in found)


def test_processes_share_the_forward_passes_and_each_has_the_rows_of_one_alone(make, monkeypatch):
    ran = {0: [], 1: []}
    compute = LiveRows.compute

    def noted(self, number, *rest):
        ran[self.ranks.rank].append(number)
        return compute(self, number, *rest)

    alone = bits(make(buffer_rows=200).shuffled(HOOKS, batch_rows=64, seed=0))
    monkeypatch.setattr(LiveRows, "compute", noted)
    found = on_threads(2, lambda ranks: bits(make(buffer_rows=200, ranks=ranks).shuffled(HOOKS, batch_rows=64, seed=0)))
    assert found == [alone, alone]
    assert not set(ran[0]) & set(ran[1])
    assert min(len(ran[0]), len(ran[1])) >= 5  # of the three in a window the first has two


def test_no_more_rows_than_the_buffer_has_room_for_are_in_memory(make, monkeypatch):
    live = make(buffer_rows=120)
    made = []
    buffer = LiveRows.buffer
    monkeypatch.setattr(LiveRows, "buffer", lambda self, names, n: made.append(n) or buffer(self, names, n))
    assert sum(len(batch[HOOKS[0]]) for batch in live.shuffled(HOOKS, batch_rows=32, seed=0)) == live.n_rows
    assert 60 < max(made) <= 120 + 32 - 1  # and what was left over from the window before, too little for a batch
    assert live.row_bytes == 2 * 8 * 4


def test_a_state_of_another_pass_is_refused(make):
    live = make()
    state = live.shuffled(HOOKS, batch_rows=32, seed=0).state()
    with pytest.raises(UserError, match=r"the state is of another pass over .*: seed 0, now 1"):
        live.shuffled(HOOKS, batch_rows=32, seed=1, state=state)
    with pytest.raises(UserError, match=r"rows '.* of .*', now '1 of"):
        live.shuffled(HOOKS, batch_rows=32, seed=0, state=state, rows=np.arange(live.n_rows) == 0)
