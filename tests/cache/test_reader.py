import copy
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.cache import Damage, DamageError, ExamplesBuilder, StoreError, StoreWriter, open_store, to_array, widen

RESID = "blocks.0.hook_resid_post"
BFLOAT = "blocks.1.hook_resid_post"


def test_whole_hook_points(store_folder, arrays, specs, examples):
    store = open_store(store_folder)
    assert list(store.hook_points) == list(arrays)
    assert store.hook_points == specs
    for name, want in arrays.items():
        tensor = store.read_tensor(name)
        assert (to_array(tensor).tobytes(), tensor.dtype) == (want.tobytes(), getattr(torch, specs[name].dtype))
    assert np.array_equal(store.read(BFLOAT), widen(arrays[BFLOAT]), equal_nan=True)
    assert store.origins.tobytes() == examples.origins(0, 100).tobytes()
    assert store.documents == ["doc0.py", "doc1.py", "doc2.py", "doc3.py", "doc4.py"]
    assert [fields["held_out"] for fields in store.document_fields] == [True, False, True, False, True]
    assert store.manifest["fingerprints"]["model"] == "m0"
    assert repr(store).startswith(f"Store({str(store_folder)!r}, 100 rows: {RESID} [5] float32, ")


slices = st.slices(100)
integers = st.lists(st.integers(-100, 99), max_size=30)
masks = st.lists(st.booleans(), min_size=100, max_size=100).map(np.array)


@settings(max_examples=60)
@given(rows=st.one_of(slices, integers, masks, st.integers(-100, 99)), verify=st.booleans())
def test_any_rows_are_those_of_numpy(one_store, arrays, rows, verify):
    index = np.array(rows, np.int64) if isinstance(rows, list) else rows
    want = np.atleast_2d(arrays[RESID][index])
    assert one_store.read(RESID, rows, verify=verify).tobytes() == want.tobytes()


@pytest.fixture(scope="module")
def one_store(tmp_path_factory, arrays, examples, write_store):
    folder = tmp_path_factory.mktemp("store") / "acts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.cache.schema.MAX_CHUNK_ROWS", 8)
        write_store(folder, arrays, examples, rows_per_shard=24)
    return open_store(folder)


def test_many_pieces_on_threads(one_store, arrays, monkeypatch):
    monkeypatch.setattr("workbench.cache.rows.PIECE_BYTES", 1)
    for verify in (True, False):
        assert one_store.read(RESID, slice(3, 98), verify=verify).tobytes() == arrays[RESID][3:98].tobytes()


BAD_READS = [
    pytest.param(lambda s: s.read("blocks.0.hook_resid_pst"), f"no hook point .*; nearest: {RESID}, ", id="misspelt"),
    pytest.param(lambda s: s.read_tensor("x"), "has no hook point 'x'; nearest: ", id="nothing like it"),
    pytest.param(lambda s: s.read(RESID, [0, 100]), "row 100: the store has 100 rows", id="beyond the end"),
    pytest.param(lambda s: s.read(RESID, np.array([2**64 - 1], np.uint64)), "row 18446744073709551615", id="unsigned"),
    pytest.param(lambda s: s.read(RESID, -101), "row -101: the store has 100 rows", id="before the start"),
    pytest.param(lambda s: s.read(RESID, np.ones(99, bool)), "the mask has 99 entries; the store has 100", id="mask"),
    pytest.param(lambda s: s.read(RESID, [1.5]), "rows are float64: must be integers", id="fraction"),
    pytest.param(lambda s: s.read(RESID, np.zeros((2, 2), int)), "must be a slice, a mask", id="two axes"),
    pytest.param(lambda s: s.context(100, 1, 1), "rows are 0 to 99", id="context of no row"),
    pytest.param(lambda s: s.shuffled([], batch_rows=1, seed=0), "give at least one", id="no hook point"),
    pytest.param(lambda s: s.shuffled([RESID, RESID], batch_rows=1, seed=0), "each once", id="one twice"),
    pytest.param(lambda s: s.shuffled(RESID, batch_rows=0, seed=0), "batch_rows=0: must be at least 1", id="no rows"),
    pytest.param(lambda s: s.shuffled(RESID, batch_rows=1, seed=-1), "seed=-1", id="negative seed"),
    pytest.param(lambda s: s.sequential("no", batch_rows=1), "has no hook point 'no'", id="sequential"),
    pytest.param(lambda s: s.label("keyword"), "has no label 'keyword'; nearest: none", id="no labels at all"),
]


@pytest.mark.parametrize(("read", "says"), BAD_READS)
def test_wrong_reads_are_explained(one_store, read, says):
    with pytest.raises(StoreError, match=says):
        read(one_store)


def test_what_is_no_store(tmp_path):
    with pytest.raises(StoreError, match=r"there is no folder .*nowhere; an activation store is made by"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"is not an activation store: it has no manifest\.json"):
        open_store(str(tmp_path))


def test_a_context_is_cut_at_the_ends_of_its_sequence(one_store):
    near = one_store.context(32, 5, 2)  # row 32: position 2 of sequence 3
    assert (near.document, near.sequence, near.at) == ("doc1.py", 3, 2)
    assert near.ids.tolist() == [300, 301, 302, 303, 304]
    assert near.special.tolist() == [True, False, False, False, False]
    assert near.offsets[near.at].tolist() == [2, 3]
    far = one_store.context(99, 1, 9)
    assert (far.ids.tolist(), far.at) == ([908, 909], 1)


def test_a_context_holds_positions_that_are_no_rows(tmp_path, specs):
    builder = ExamplesBuilder()
    builder.sequence(builder.document("d"), [5, 6, 7, 8], rows=[False, False, True, False])
    with StoreWriter(tmp_path / "acts", {RESID: specs[RESID]}, builder.build(), {}) as writer:
        writer.append({RESID: np.zeros((1, 5), np.float32)})
    near = open_store(tmp_path / "acts").context(0, 1, 1)
    assert (near.ids.tolist(), near.at) == ([6, 7, 8], 1)


def test_a_context_of_an_image(tmp_path, specs):
    builder = ExamplesBuilder("vision")
    builder.image(builder.document("cat"), "images/cat.png", (64, 48), [-1, 0, 1])
    with StoreWriter(tmp_path / "acts", {RESID: specs[RESID]}, builder.build(), {}) as writer:
        writer.append({RESID: np.zeros((3, 5), np.float32)})
    store = open_store(tmp_path / "acts")
    near = store.context(1, 0, 0)
    assert (near.path, near.size, near.ids.tolist()) == ("images/cat.png", (64, 48), [0])
    assert store.origins["patch"].tolist() == [-1, 0, 1]


def test_a_store_and_its_errors_travel_to_another_process(one_store, arrays):
    assert copy.deepcopy(one_store).read(RESID).tobytes() == arrays[RESID].tobytes()
    error = DamageError("acts", Damage("shards/000000.h5", "is missing", rows=(0, 24)))
    assert str(copy.deepcopy(error)) == str(error)
    assert "acts is damaged: shards/000000.h5 (rows 0 to 23): is missing" in str(error)


def test_fingerprint_is_of_the_contents(tmp_path, store_folder, arrays, examples, write_store):
    fingerprint = open_store(store_folder).fingerprint()
    write_store(tmp_path / "again", arrays, examples, batch_rows=50, rows_per_shard=24)
    assert open_store(tmp_path / "again").fingerprint() == fingerprint
    changed = {name: array.copy() for name, array in arrays.items()}
    changed[RESID][99, 4] = 0.5
    write_store(tmp_path / "changed", changed, examples, rows_per_shard=24)
    assert open_store(tmp_path / "changed").fingerprint() != fingerprint


def test_an_empty_store(specs):
    with TemporaryDirectory() as folder:
        StoreWriter(folder, specs, ExamplesBuilder().build(), {}).close()
        store = open_store(folder)
        assert (store.n_rows, store.finished, store.verify()) == (0, True, [])
        assert store.read(RESID).shape == store.read(RESID, []).shape == (0, 5)
        assert list(store.shuffled(RESID, batch_rows=3, seed=0)) == []
        assert list(store.sequential(RESID, batch_rows=3)) == []


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
import numpy as np
from workbench.cache import ActivationSpec, ExamplesBuilder, LabelInfo, StoreWriter, open_store
builder = ExamplesBuilder()
builder.sequence(builder.document("d"), [1, 2, 3])
with StoreWriter(sys.argv[1], {"h": ActivationSpec(("d",), (2,), "bfloat16")}, builder.build(), {}) as writer:
    writer.append({"h": np.ones((3, 2), np.float32)})
store = open_store(sys.argv[1])
store.add_labels("g", {"odd": (LabelInfo("odd", "g", "row", "binary"), [1, 0, 1], None)})
assert store.verify() == [] and store.read("h").tolist() == [[1, 1]] * 3 and store.label("odd")[0].sum() == 2
assert not {name.split(".")[0] for name in sys.modules} & {"pandas", "sklearn", "transformers", "scipy", "matplotlib"}
"""


def test_writing_reading_and_verifying_need_no_torch(tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "acts")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("address", ["s3://bucket/acts", "memory://acts", Path("s3://bucket/acts")])
def test_an_address_of_an_object_store_is_no_folder(address, specs, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for use in (open_store, lambda folder: StoreWriter(folder, specs, ExamplesBuilder().build(), {})):
        with pytest.raises(StoreError, match=f"{address} is an address: a store is a folder"):
            use(address)
    assert not list(tmp_path.iterdir())


def test_a_name_that_the_system_does_not_allow_is_explained(specs, tmp_path):
    for use in (open_store, lambda folder: StoreWriter(folder, specs, ExamplesBuilder().build(), {})):
        with pytest.raises(StoreError, match=r"cannot use .*: File name too long"):
            use(tmp_path / ("x" * 300))
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(StoreError, match="link is a link to nothing; a store is a folder"):
        StoreWriter(tmp_path / "link", specs, ExamplesBuilder().build(), {})
