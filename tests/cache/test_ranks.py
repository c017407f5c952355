"""Passes dealt out to several ranks, and used from several threads and processes."""

import copy
import json
import os
import subprocess
import sys
import threading
from itertools import chain
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.cache import ActivationSpec, ExamplesBuilder, StoreError, StoreWriter, open_store

NUMBER = ActivationSpec((), (), "float32")


def numbered(folder, n_rows, *, rows_per_shard=24, special=None, chunk_rows=8, end=None):
    """A store whose activations are the row numbers; rows from `end` on are not written."""
    builder = ExamplesBuilder()
    builder.sequence(builder.document("d"), np.arange(n_rows), special=special)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.cache.schema.MAX_CHUNK_ROWS", chunk_rows)
        writer = StoreWriter(folder, {"number": NUMBER}, builder.build(), {}, rows_per_shard=rows_per_shard)
    with writer:
        writer.append({"number": np.arange(n_rows, dtype=np.float32)[writer.next_row : end]})
    return open_store(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """500 rows in 21 shards and 63 chunks of 8; every tenth row is special."""
    return numbered(tmp_path_factory.mktemp("store") / "acts", 500, special=np.arange(500) % 10 == 0)


def flat(lists):
    return list(chain.from_iterable(lists))


def delivered(loader):
    return [[int(number) for number in batch] for batch in loader]


@settings(max_examples=15)
@given(
    n_rows=st.integers(1, 80),
    rows_per_shard=st.integers(5, 30),
    n_ranks=st.integers(1, 4),
    batch_rows=st.integers(1, 40),
    buffer_bytes=st.sampled_from([1, 64, 10**6]),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_ranks_share_an_epoch_and_go_on_together(n_rows, rows_per_shard, n_ranks, batch_rows, buffer_bytes, seed, data):
    special = np.array(data.draw(st.lists(st.booleans(), min_size=n_rows, max_size=n_rows)), bool)
    with TemporaryDirectory() as folder:
        store = numbered(folder, n_rows, rows_per_shard=rows_per_shard, special=special, chunk_rows=4)

        def loader(rank, batch_rows=batch_rows, state=None):
            return store.shuffled(
                "number", batch_rows=batch_rows, seed=seed, rank=rank, n_ranks=n_ranks, buffer_bytes=buffer_bytes,
                state=state,
            )  # fmt: skip

        try:
            whole = [loader(rank) for rank in range(n_ranks)]
        except StoreError:  # too few rows for so many ranks and batches; `Cuts` has its own tests
            assert n_ranks > 1
            return
        orders = [delivered(part) for part in whole]
        ordinary = ~special if not special.all() else np.ones(n_rows, bool)
        assert sorted(flat(flat(orders))) == np.flatnonzero(ordinary).tolist()
        assert {len(order) for order in orders} == {whole[0].n_batches}
        assert all(0 < len(batch) <= batch_rows for order in orders for batch in order)
        assert [part.n_rows for part in whole] == [part.rows_done for part in whole] == [len(flat(o)) for o in orders]
        n_before = data.draw(st.integers(0, whole[0].n_batches))
        states = []
        for rank, order in enumerate(orders):
            first = loader(rank)
            assert [[int(number) for number in next(first)] for _ in range(n_before)] == order[:n_before]
            states.append(json.loads(json.dumps(first.state())))
            first.close()
        assert all(state == states[0] for state in states)
        for rank, order in enumerate(orders):  # what one rank saved, all go on from
            assert delivered(loader(rank, state=states[-1])) == order[n_before:]
            try:
                other = loader(rank, data.draw(st.integers(1, 40)), states[-1])
            except StoreError:
                continue
            assert flat(delivered(other)) == flat(order[n_before:])


def test_each_rank_reads_its_own_chunks_only(store, monkeypatch):
    read, true = [], type(store._reader).read_chunk
    monkeypatch.setattr(
        type(store._reader),
        "read_chunk",
        lambda self, name, chunk, *args, **kw: (read[-1].append(chunk), true(self, name, chunk, *args, **kw)),
    )
    for rank in range(3):
        read.append([])
        delivered(store.shuffled("number", batch_rows=9, seed=0, special=True, rank=rank, n_ranks=3, buffer_bytes=500))
    assert sorted(flat(read)) == list(range(63))
    assert [len(chunks) for chunks in read] == [21, 21, 21]


BAD_RANKS = [
    pytest.param({"rank": 2, "n_ranks": 2}, "rank=2, n_ranks=2: ranks are counted from 0", id="rank too large"),
    pytest.param({"rank": -1, "n_ranks": 2}, "rank=-1, n_ranks=2", id="negative"),
    pytest.param({"n_ranks": 0}, "rank=0, n_ranks=0", id="no rank"),
    pytest.param({"n_ranks": 64}, "over 64 ranks: one has 0 rows and another 8", id="more ranks than chunks"),
    pytest.param({"n_ranks": 2, "state": "of one rank"}, "another pass: n_ranks 1, now 2", id="another number"),
]


@pytest.mark.parametrize(("options", "says"), BAD_RANKS)
def test_wrong_ranks_are_explained(store, options, says):
    if "state" in options:
        options = {**options, "state": store.shuffled("number", batch_rows=9, seed=0).state()}
    with pytest.raises(StoreError, match=says):
        store.shuffled("number", batch_rows=9, seed=0, **options)


# --- threads and processes ----------------------------------------------------------------------------------------
def test_threads_share_a_pass(store):
    loader, got = store.shuffled("number", batch_rows=3, seed=0, buffer_bytes=300), [[] for _ in range(4)]

    def take(mine):
        for batch in loader:
            mine.append(batch.tolist())

    threads = [threading.Thread(target=take, args=(mine,)) for mine in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = delivered(store.shuffled("number", batch_rows=3, seed=0, buffer_bytes=300))
    assert sorted(flat(got)) == sorted(want)


def test_a_pass_cannot_be_sent_but_a_store_can(store):
    with pytest.raises(StoreError, match="send the store, and make it there"):
        copy.copy(store.shuffled("number", batch_rows=3, seed=0))
    store.read("number")
    again = copy.deepcopy(store)  # as pickle does it
    assert delivered(again.shuffled("number", batch_rows=50, seed=0)) == delivered(
        store.shuffled("number", batch_rows=50, seed=0)
    )


def test_a_store_sent_while_it_is_written_keeps_its_rows(tmp_path):
    """Ranks that open it at different times must deal out the same chunks."""
    store = numbered(tmp_path / "acts", 100, end=50)
    make, sent = store.__reduce__()  # what a pickle holds
    numbered(tmp_path / "acts", 100)
    assert open_store(tmp_path / "acts").n_rows == 100
    again = make(*sent)
    assert (again.n_rows, again.finished, again.fingerprint()) == (48, False, store.fingerprint())
    assert delivered(again.shuffled("number", batch_rows=99, seed=0)) == delivered(
        store.shuffled("number", batch_rows=99, seed=0)
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_makes_its_own_pass_and_is_refused_its_parents(store):
    """While threads of the parent read, so that whatever they hold is held in the child for ever."""
    loader = store.shuffled("number", batch_rows=3, seed=0, buffer_bytes=300)
    next(loader)
    for _ in range(5):
        child = os.fork()
        if child == 0:  # nothing of pytest may run here
            code = 1
            try:
                try:
                    next(loader)
                except StoreError as error:
                    if "made in another process" in str(error):
                        order = delivered(store.shuffled("number", batch_rows=50, seed=1, buffer_bytes=300))
                        code = 0 if sorted(flat(order)) == np.flatnonzero(np.arange(500) % 10).tolist() else 2
                del loader
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sum(len(batch) for batch in loader) == 447


RANK = """
import datetime, json, sys
import torch.distributed as dist
from workbench.cache import open_store

folder, meeting, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group(
    "gloo", f"file://{meeting}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
store = open_store(folder)


def go(batch_rows, state=None, until=None):
    loader = store.shuffled(
        "number", batch_rows=batch_rows, seed=5, rank=rank, n_ranks=2, buffer_bytes=600, state=state
    )
    rows = []
    for batch in loader:
        total = batch.sum()
        dist.all_reduce(total)  # waits for the other rank, as a gradient would: one batch more on one rank would hang
        rows.append(batch.int().tolist())
        if len(rows) == until:
            break
    state = loader.state()
    loader.close()
    return rows, state


whole, _ = go(16)
before, state = go(16, until=4)
shared = [state]
dist.broadcast_object_list(shared)  # what rank 0 saved, every rank goes on from
after, _ = go(16, shared[0])
other, _ = go(11, shared[0])
gathered = [None, None]
dist.all_gather_object(gathered, (whole, before, after, other))
if rank == 0:
    print(json.dumps(gathered))
dist.destroy_process_group()
"""


@pytest.mark.slow  # two processes import torch
def test_two_ranks_of_torch_distributed(store, tmp_path):
    command = [sys.executable, "-W", "error", "-c", RANK, str(store.folder), str(tmp_path / "meeting")]
    processes = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told[0][1] + told[1][1]
    ranks = json.loads(told[0][0])
    whole = [rank[0] for rank in ranks]
    assert len(whole[0]) == len(whole[1]) == 15
    assert sorted(flat(flat(whole))) == np.flatnonzero(np.arange(500) % 10).tolist()
    for rows, before, after, other in ranks:
        assert before + after == rows
        assert flat(other) == flat(after)


WORKERS = """
import sys
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from workbench.cache import open_store


class Batches(IterableDataset):
    def __init__(self, store, epoch):
        self.store, self.epoch = store, epoch

    def __iter__(self):
        info = get_worker_info()
        rank, n_ranks = (info.id, info.num_workers) if info else (0, 1)
        return self.store.shuffled("number", batch_rows=16, seed=0, epoch=self.epoch, rank=rank, n_ranks=n_ranks)


class Shared(IterableDataset):
    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return self.loader


if __name__ == "__main__":
    store = open_store(sys.argv[1])
    store.read("number")
    for method in sys.argv[2:]:
        batches = DataLoader(Batches(store, 0), batch_size=None, num_workers=2, multiprocessing_context=method)
        rows = sorted(int(number) for batch in batches for number in batch)
        assert rows == [row for row in range(500) if row % 10], method
        try:
            shared = Shared(store.shuffled("number", batch_rows=16, seed=0))
            list(DataLoader(shared, batch_size=None, num_workers=2, multiprocessing_context=method))
        except Exception as error:
            assert "made in another process" in str(error) or "cannot be sent" in str(error), error
        else:
            raise AssertionError("a pass was given to two workers: each row came twice")
    print("right")
"""


@pytest.mark.slow  # processes import torch
@pytest.mark.parametrize(
    "method", [pytest.param("fork", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")), "spawn"]
)
def test_workers_of_a_data_loader(store, method, tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, str(script), str(store.folder), method], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "right"
