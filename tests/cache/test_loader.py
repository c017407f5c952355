import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.cache import ActivationSpec, DamageError, ExamplesBuilder, StoreError, StoreWriter, open_store
from workbench.cache.blocks import Block
from workbench.cache.prefetch import Prefetcher

RESID = "blocks.0.hook_resid_post"
PATTERN = "blocks.0.attn.hook_pattern"
NUMBER = ActivationSpec((), (), "float32")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


def numbered(folder, n_rows, *, rows_per_shard=24, special=None):
    """A store whose activations are the row numbers."""
    builder = ExamplesBuilder()
    builder.sequence(builder.document("d"), np.arange(n_rows), special=special)
    specs = {"number": NUMBER, "double": NUMBER}
    with StoreWriter(folder, specs, builder.build(), {}, rows_per_shard=rows_per_shard) as writer:
        rows = np.arange(n_rows, dtype=np.float32)
        writer.append({"number": rows, "double": 2 * rows})
    return open_store(folder)


@pytest.fixture
def store(tmp_path, small_chunks):
    """500 rows in 21 shards and 63 chunks of 8; every tenth row is special."""
    return numbered(tmp_path / "acts", 500, special=np.arange(500) % 10 == 0)


def delivered(loader):
    return [int(number) for batch in loader for number in batch]


@settings(max_examples=20)
@given(
    n_rows=st.integers(0, 60),
    rows_per_shard=st.integers(1, 30),
    chunk_rows=st.sampled_from([1, 2, 8]),
    batch_rows=st.integers(1, 70),
    buffer_bytes=st.sampled_from([1, 64, 10**6]),
    seed=st.integers(0, 2**63),
    data=st.data(),
)
def test_an_epoch_visits_each_row_once_and_goes_on_where_it_stopped(
    n_rows, rows_per_shard, chunk_rows, batch_rows, buffer_bytes, seed, data
):
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n_rows, max_size=n_rows)), bool)
    special = np.array(data.draw(st.lists(st.booleans(), min_size=n_rows, max_size=n_rows)), bool)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.cache.schema.MAX_CHUNK_ROWS", chunk_rows)
        store = numbered(folder, n_rows, rows_per_shard=rows_per_shard, special=special)

        def loader(batch_rows=batch_rows, state=None):
            return store.shuffled(
                "number", batch_rows=batch_rows, seed=seed, rows=mask, buffer_bytes=buffer_bytes, state=state
            )

        whole = loader()
        order = delivered(whole)
        ordinary = ~special if not special.all() else np.ones(n_rows, bool)  # nothing but special rows: they are meant
        assert sorted(order) == np.flatnonzero(mask & ordinary).tolist()
        assert len(order) == whole.n_rows
        assert whole.n_batches == -(-len(order) // batch_rows)
        first = loader()
        n_before = data.draw(st.integers(0, whole.n_batches))
        before = [int(number) for _ in range(n_before) for number in next(first)]
        state = json.loads(json.dumps(first.state()))
        first.close()
        assert before + delivered(loader(data.draw(st.integers(1, 70)), state)) == order


def test_rows_of_several_come_in_the_order_of_one(store):
    """Two columns fill the buffer with half as many chunks: another order, unless that of one is asked for."""
    options = {"batch_rows": 50, "seed": 0, "buffer_bytes": 1000}
    alone = delivered(store.shuffled("number", **options))
    both = [int(row) for batch in store.shuffled(["number", "double"], **options) for row in batch["number"]]
    ordered = store.shuffled(["number", "double"], **options, order_of="number")
    assert alone == [int(row) for batch in ordered for row in batch["number"]] != both
    with pytest.raises(StoreError, match="no hook point 'numbre'; nearest: number"):
        store.shuffled("number", **options, order_of="numbre")


def test_seed_and_epoch_decide_the_order(store):
    orders = {
        key: tuple(delivered(store.shuffled("number", batch_rows=64, seed=key[0], epoch=key[1], buffer_bytes=600)))
        for key in [(0, 0), (0, 1), (1, 0)]
    }
    assert len(set(orders.values())) == 3
    assert orders[0, 0] == tuple(delivered(store.shuffled("number", batch_rows=7, seed=0, buffer_bytes=600)))
    assert len(orders[0, 0]) == 450


def test_rows_are_mixed(store):
    """A control: rows in their own order have a rank correlation of 1 with their neighbours."""
    order = np.array(delivered(store.shuffled("number", batch_rows=64, seed=0)))
    neighbours = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(len(order))
    ascending = np.array([int(n) for _, batch in store.sequential("number", batch_rows=64) for n in batch])
    assert np.corrcoef(ascending[:-1], ascending[1:])[0, 1] > 0.99
    a_window = order[:64]  # rows of one batch come from all over the store
    assert len(np.unique(a_window // 8)) > 30


def test_special_rows_come_when_asked_for(store):
    assert len(delivered(store.shuffled("number", batch_rows=64, seed=0, special=True))) == 500
    only = store.shuffled("number", batch_rows=64, seed=0, special=True, rows=np.arange(0, 500, 10))
    assert sorted(delivered(only)) == list(range(0, 500, 10))
    assert delivered(store.shuffled("number", batch_rows=64, seed=0, rows=slice(0, 1))) == []


def test_hook_points_are_aligned_and_rows_are_told(store):
    loader = store.shuffled(["number", "double"], batch_rows=33, seed=3, buffer_bytes=300)
    n_rows = 0
    for batch in loader:
        assert list(batch) == ["number", "double"]
        assert torch.equal(2 * batch["number"], batch["double"])
        assert loader.rows.tolist() == batch["number"].tolist()
        n_rows += len(loader.rows)
    assert n_rows == 450


def test_batches_are_of_the_stored_dtype(store_folder, specs):
    batch = next(open_store(store_folder).shuffled(list(specs), batch_rows=5, seed=0))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        name: (getattr(torch, spec.dtype), (5, *spec.shape)) for name, spec in specs.items()
    }


def test_batches_own_their_memory(store):
    loader = store.shuffled("number", batch_rows=50, seed=0, buffer_bytes=500)
    batches = list(loader)
    for batch in batches:
        batch.fill_(-1)
    assert len(delivered(store.shuffled("number", batch_rows=50, seed=0))) == 450


def test_sequential_rows_are_slices_where_every_row_is_read(store):
    rows = [rows for rows, _ in store.sequential("number", batch_rows=200)]
    assert rows == [slice(0, 200), slice(200, 400), slice(400, 500)]
    for rows, batch in store.sequential(["number"], batch_rows=77, special=False, rows=slice(100, 300)):
        assert rows.tolist() == batch["number"].int().tolist()
        assert not store.origins["special"][rows].any()


def test_a_state_of_another_pass_is_refused(store):
    loader = store.shuffled("number", batch_rows=50, seed=0, epoch=3)
    next(loader)
    state = loader.state()
    loader.close()
    assert len(json.dumps(state)) < 200
    with pytest.raises(StoreError, match="the loader's state is of another pass: seed 0, now 1"):
        store.shuffled("number", batch_rows=50, seed=1, state=state)
    with pytest.raises(StoreError, match="another pass: selection"):
        store.shuffled("number", batch_rows=50, seed=0, special=True, state=state)
    resumed = store.shuffled("number", batch_rows=50, seed=0, state=state)
    assert resumed.state() == state  # epoch 3, not the default
    resumed.close()


BAD_STATES = [
    pytest.param({"rows_done": -1}, "rows_done -1: must be a whole number, at least 0", id="before the start"),
    pytest.param({"rows_done": 10**6}, "rows_done 1000000; a pass has", id="after the end"),
    pytest.param({"rows_done": 2.5}, "rows_done 2.5: must be", id="fraction"),
    pytest.param({"rows_done": None}, "rows_done None: must be", id="nothing"),
    pytest.param({"chunks_per_window": 0}, "chunks_per_window 0: must be .* at least 1", id="no window"),
    pytest.param({"epoch": "1"}, "epoch '1': must be", id="text"),
]


@pytest.mark.parametrize(("change", "says"), BAD_STATES)
def test_a_state_that_no_pass_has_given_is_refused(store, change, says):
    state = store.shuffled("number", batch_rows=50, seed=0).state()
    with pytest.raises(StoreError, match=says):
        store.shuffled("number", batch_rows=50, seed=0, state=state | change)


def test_windows_before_the_state_are_not_read(store, monkeypatch):
    loader = store.shuffled("number", batch_rows=50, seed=0, buffer_bytes=500)
    for _ in range(8):
        next(loader)
    state = loader.state()
    loader.close()
    read = []
    true = type(store._reader).read_chunk
    monkeypatch.setattr(
        type(store._reader), "read_chunk", lambda self, *args, **kw: (read.append(args[1]), true(self, *args, **kw))
    )
    assert len(delivered(store.shuffled("number", batch_rows=50, seed=0, state=state, buffer_bytes=500))) == 50
    assert len(read) < 20 < 63


@pytest.fixture
def blocks(monkeypatch):
    """Every block that is made, by its number of rows."""
    made = []

    class Counted(Block):
        def __init__(self, columns, n_rows):
            super().__init__(columns, n_rows)
            made.append(n_rows)

    monkeypatch.setattr("workbench.cache.delivery.Block", Counted)
    return made


def test_memory_is_bounded_by_the_buffer_and_used_again(store, blocks):
    for epoch in range(3):
        for batch in store.shuffled("number", batch_rows=10, seed=0, epoch=epoch, buffer_bytes=1000):
            assert len(batch) == 10
    assert len(blocks) == 2
    assert (4 + 8 + 8) * sum(blocks) <= 1000 + 2 * 20 * 10  # values, row numbers, places; two batches


def test_no_batch_is_overwritten_while_anything_made_of_it_lives(tmp_path, small_chunks, blocks):
    """Tensors, numpy views, single rows; of bfloat16 too, whose tensor is a view of another type."""
    builder = ExamplesBuilder()
    builder.sequence(builder.document("d"), np.arange(4000))
    specs = {"number": NUMBER, "wide": ActivationSpec(("d",), (3,), "bfloat16")}
    values = np.arange(4000, dtype=np.float32)
    with StoreWriter(tmp_path / "acts", specs, builder.build(), {}) as writer:
        writer.append({"number": values, "wide": np.repeat(values[:, None] % 256, 3, 1)})
    store, rng, kept = open_store(tmp_path / "acts"), np.random.default_rng(0), []
    loader = store.shuffled(["number", "wide"], batch_rows=20, seed=0, buffer_bytes=8000)
    for batch in loader:
        wide = batch["wide"]
        if rng.random() < 0.1:
            parts = [(wide, slice(None)), (wide[7:9], slice(7, 9)), (wide.view(torch.int16).numpy(), slice(None))]
            kept.append((*parts[rng.integers(3)], loader.rows))
            del parts
        del wide, batch
    assert len(kept) > 10
    for held, part, rows in kept:
        found = held if isinstance(held, torch.Tensor) else torch.from_numpy(held).view(torch.bfloat16)
        assert (found.float().numpy() == rows[part, None] % 256).all()
    assert len(blocks) > 2  # control: those that were held were not used again


# --- the thread ---------------------------------------------------------------------------------------------------
def test_damage_reaches_the_consumer_and_ends_the_pass(store_folder):
    path = store_folder / "shards/000003.h5"
    path.write_bytes(path.read_bytes()[:-1])
    loader = open_store(store_folder).shuffled(RESID, batch_rows=5, seed=0, special=True, buffer_bytes=400)
    with pytest.raises(DamageError, match=r"shards/000003\.h5"):
        list(loader)
    assert list(loader) == []


@pytest.mark.parametrize("how", ["close", "drop", "break"])
def test_a_pass_given_up_stops_its_thread(store, how):
    loader = store.shuffled("number", batch_rows=5, seed=0, buffer_bytes=200)
    next(loader)
    assert any(thread.name.startswith("store-read") for thread in threading.enumerate())
    if how == "close":
        loader.close()
        loader.close()
        assert list(loader) == []
    elif how == "break":
        for _ in loader:
            break
    del loader  # and the fixture looks for threads


def test_a_pass_never_begun_has_no_thread(store):
    loader = store.shuffled("number", batch_rows=5, seed=0)
    assert not any(thread.name.startswith("store-read") for thread in threading.enumerate())
    loader.close()
    assert list(loader) == []


def test_the_prefetcher_stays_a_few_ahead():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    ahead = Prefetcher(items(), depth=2)
    assert next(ahead) == 0
    time.sleep(0.2)
    assert len(made) <= 4
    ahead.close()


def test_items_before_an_error_come_first():
    def items():
        yield 1
        yield 2
        raise ValueError("no third")

    ahead, got = Prefetcher(items()), []
    with pytest.raises(ValueError, match="no third"):
        got.extend(ahead)
    assert (got, list(ahead)) == ([1, 2], [])


INTERRUPTED = """
import sys, time
from workbench.cache.blocks import Block
from workbench.cache.prefetch import Prefetcher

def slow():
    while True:
        time.sleep(0.2)
        yield 1

ahead = Prefetcher(slow())
try:
    print("begun", flush=True)
    while True:
        next(ahead)  # blocked here nearly always
except KeyboardInterrupt:
    sys.exit(130)  # without a word to the prefetcher
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_ends_the_process():
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        assert (process.returncode, process.stderr.read()) == (130, b"")
