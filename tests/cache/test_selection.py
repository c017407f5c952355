"""Special tokens left out and rows chosen, without a list of all rows."""

from itertools import pairwise

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.cache import ActivationSpec, DamageError, ExamplesBuilder, Store, StoreWriter, open_store
from workbench.cache.selection import Selection

N_ROWS = 61
SPECIAL = np.isin(np.arange(N_ROWS), [0, 8, 9, 10, 11, 12, 13, 14, 15, 30, 60])  # the second chunk of 8 is all special
NUMBER = ActivationSpec((), (), "float32")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Rows that are their numbers, in chunks of 8 and shards of 20, so that chunks of 4 are among them."""
    folder = tmp_path_factory.mktemp("store") / "acts"
    builder = ExamplesBuilder()
    builder.sequence(builder.document("d"), np.arange(N_ROWS), special=SPECIAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.cache.schema.MAX_CHUNK_ROWS", 8)
        with StoreWriter(folder, {"number": NUMBER}, builder.build(), {}, rows_per_shard=20) as writer:
            writer.append({"number": np.arange(N_ROWS, dtype=np.float32)})
    return open_store(folder)


chosen = st.one_of(
    st.none(),
    st.slices(N_ROWS),
    st.lists(st.integers(-N_ROWS, N_ROWS - 1), max_size=30),
    st.lists(st.booleans(), min_size=N_ROWS, max_size=N_ROWS).map(np.array),
)


@settings(max_examples=100)
@given(rows=chosen, special=st.booleans())
def test_any_choice_is_that_of_a_mask(store, rows, special):
    want = np.zeros(N_ROWS, bool)
    want[np.array(rows, np.int64) if isinstance(rows, list) else slice(None) if rows is None else rows] = True
    if not special:
        want &= ~SPECIAL
    found = Selection(store._reader, rows, special)
    firsts = store._reader.chunk_firsts()
    assert store._reader.rows_of_chunks().tolist() == np.diff(firsts).tolist()
    assert found.counts.tolist() == [want[a:b].sum() for a, b in pairwise(firsts)]
    assert (found.n_rows, found.every) == (want.sum(), want.all())
    numbers = [
        int(number)
        for batch in store.shuffled("number", batch_rows=7, seed=1, rows=rows, special=special)
        for number in batch
    ]
    assert sorted(numbers) == np.flatnonzero(want).tolist()


def test_neither_origins_nor_a_mask_of_all_rows_is_made(store, monkeypatch):
    monkeypatch.setattr(Store, "origins", property(lambda self: pytest.fail("all origins were read")))
    read = []
    true = type(store._reader).special_rows
    monkeypatch.setattr(
        type(store._reader), "special_rows", lambda self, chunk, **kw: (read.append(chunk), true(self, chunk, **kw))[1]
    )
    fresh = open_store(store.folder)
    loader = fresh.shuffled("number", batch_rows=7, seed=0)
    assert read == []  # counting needs none of them: every shard says how many it has
    assert len([number for batch in loader for number in batch]) == N_ROWS - SPECIAL.sum()
    assert sorted(read) == [0, 4]  # at delivery, those of chunks with both kinds


def test_the_writer_counts(store):
    for number in range(4):
        with h5py.File(store.folder / f"shards/{number:06d}.h5") as file:
            want = [chunk.sum() for chunk in np.split(file["rows"]["special"], range(8, len(file["rows"]), 8))]
            assert file["special/counts"][:].tolist() == want


def test_a_store_without_counts_is_counted(store, monkeypatch):
    absent = "/written by an earlier version, which had none"
    monkeypatch.setattr("workbench.cache.layout.SPECIAL", absent)
    old = open_store(store.folder)
    assert absent not in old._reader._shards[0].places()
    assert old._reader.special_counts().tolist() == store._reader.special_counts().tolist()
    orders = [[batch.tolist() for batch in s.shuffled("number", batch_rows=7, seed=0)] for s in (old, store)]
    assert orders[0] == orders[1]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("shift", [1, -1])
def test_a_wrong_count_is_damage(store, tmp_path, verify, shift):
    """Never a row too few or too many, and never a hang."""
    folder = tmp_path / "acts"
    folder.mkdir()
    for path in store.folder.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(store.folder)).parent.mkdir(exist_ok=True, parents=True)
            (folder / path.relative_to(store.folder)).write_bytes(path.read_bytes())
    path = folder / "shards/000001.h5"
    with h5py.File(path) as file:
        place, found = file["special/counts"].id.get_offset() + 4, file["special/counts"][1]
    data = bytearray(path.read_bytes())
    data[place : place + 4] = (int(found) + shift).to_bytes(4, "little")
    path.write_bytes(data)
    harmed = open_store(folder)
    with pytest.raises(DamageError, match=r"shards/000001\.h5, dataset /special/counts .*: checksum differs"):
        harmed.shuffled("number", batch_rows=7, seed=0, verify=verify)
    assert len(next(harmed.shuffled("number", batch_rows=61, seed=0, special=True, verify=verify))) == N_ROWS
    (damage,) = harmed.verify()
    assert (damage.file, damage.dataset) == ("shards/000001.h5", "/special/counts")


def test_counts_that_do_not_agree_with_the_origins_are_damage(store):
    """As a writer at fault would leave them, with a checksum that is right."""
    harmed = open_store(store.folder)
    harmed._reader.special_counts()[4] = 2  # of rows 28 to 35, of which 30 is special
    with pytest.raises(DamageError, match=r"dataset /rows, chunk 1 \(rows 28 to 35\): has 7 of the wanted rows, 6"):
        list(harmed.shuffled("number", batch_rows=7, seed=0, verify=False))
