"""Compressed stores keep every promise of plain ones, and plain h5py reads them through HDF5's own filter."""

import errno
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import hdf5plugin
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from workbench.cache import ActivationSpec, DamageError, ExamplesBuilder, StoreError, StoreWriter, open_store
from workbench.cache.compression import CODECS, FILTER_ID, compress, decompress
from workbench.cache.draft import Draft, Sketch
from workbench.cache.files import raw
from workbench.cache.open_shard import OpenShard

RESID, PATTERN, SMALL, PLAIN = "blocks.0.hook_resid_post", "blocks.0.attn.hook_pattern", "small", "plain"
SPECS = {
    RESID: ActivationSpec(("d_model",), (5,), "float32", compression="zstd"),
    PATTERN: ActivationSpec(("head", "key"), (2, 3), "float16", compression="lz4"),
    SMALL: ActivationSpec(("d_model",), (6,), "int8", compression="zstd"),
    PLAIN: ActivationSpec(("d_model",), (4,), "bfloat16"),
}
N_ROWS = 100


def plan(n_rows=N_ROWS):
    builder = ExamplesBuilder()
    builder.sequence(builder.document("d"), np.arange(n_rows))
    return builder.build()


def values(n_rows=N_ROWS, seed=0):
    """Bits of all kinds for the types that keep them; zeros among them, so that there is something to compress."""
    rng = np.random.default_rng(seed)
    made = {
        name: np.frombuffer(rng.bytes(n_rows * spec.row_bytes), spec.stored).reshape(n_rows, *spec.shape).copy()
        for name, spec in SPECS.items()
    }
    made[SMALL] = rng.standard_normal((n_rows, 6)).astype(np.float32)
    for array in made.values():
        array[n_rows // 2 :: 3] = 0
    return made


def write(folder, arrays, *, batch_rows=7, end=N_ROWS, rows_per_shard=20, **options):
    with StoreWriter(folder, SPECS, plan(), {}, rows_per_shard=rows_per_shard, **options) as writer:
        while writer.next_row < end:
            rows = slice(writer.next_row, min(writer.next_row + batch_rows, end))
            writer.append({name: array[rows] for name, array in reversed(arrays.items())})  # in no special order


def files(folder):
    """Every file but the index, which HDF5 gives a time; its datasets are compared beside."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "index.h5")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def folder(tmp_path, small_chunks):
    """Shards of 20 rows: two full chunks of 8 and one of 4."""
    write(tmp_path / "acts", values())
    return tmp_path / "acts"


# --- the payload ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("compression", CODECS)
@given(
    values=npst.arrays(st.sampled_from([np.float32, np.float16, np.uint16, np.int8]), st.tuples(st.integers(1, 300)))
)
def test_a_payload_gives_back_every_bit(compression, values):
    payload = compress(values, compression)
    out = np.empty_like(values)
    decompress(memoryview(payload), raw(out))
    assert out.tobytes() == values.tobytes()
    assert len(payload) <= values.nbytes + 16


@pytest.mark.parametrize("compression", CODECS)
def test_we_and_the_filter_of_hdf5_open_what_the_other_made(tmp_path, compression):
    codec = CODECS[compression]
    x = np.round(np.random.default_rng(0).standard_normal((64, 32)), 1).astype(np.float16)
    x[16:] = 0
    with h5py.File(tmp_path / "x.h5", "w") as file:
        options = hdf5plugin.Blosc(cname=codec.name, clevel=codec.level, shuffle=codec.shuffle)
        theirs = file.create_dataset("theirs", data=x, chunks=x.shape, **options)
        out = np.empty_like(x)
        decompress(memoryview(theirs.id.read_direct_chunk((0, 0))[1]), raw(out))
        assert np.array_equal(out, x)
        ours = file.create_dataset("ours", x.shape, x.dtype, chunks=x.shape, **options)
        ours.id.write_direct_chunk((0, 0), compress(x, compression))
        assert ours.id.get_storage_size() < 0.8 * x.nbytes
    with h5py.File(tmp_path / "x.h5") as file:
        assert np.array_equal(file["ours"][()], x)


def test_a_payload_of_another_size_is_refused():
    payload = compress(np.zeros(100, np.float32), "zstd")
    for wrong in (payload[:-1], payload + b"\0", b"", payload[:10]):
        with pytest.raises(ValueError, match="not 400"):
            decompress(memoryview(wrong), raw(np.empty(100, np.float32)))
    with pytest.raises(ValueError, match="become 400, not 404"):
        decompress(memoryview(payload), raw(np.empty(101, np.float32)))


@pytest.mark.parametrize("compression", CODECS)
def test_a_damaged_payload_never_ends_the_process(compression):
    """It should never come to this, since checksums are compared before; and if it does, it is an error or numbers."""
    rng = np.random.default_rng(0)
    x = np.round(rng.standard_normal((64, 32)), 1).astype(np.float32)
    payload, out = compress(x, compression), np.empty_like(x)
    refused = 0
    for place in range(16, len(payload), 3):
        wrong = bytearray(payload)
        wrong[place] ^= 1 << (place % 8)
        try:
            decompress(memoryview(wrong), raw(out))
        except ValueError:
            refused += 1
    assert refused


# --- reading and writing ----------------------------------------------------------------------------------------------
def test_rows_come_back_whichever_way_they_are_asked_for(folder):
    store, arrays = open_store(folder), values()
    assert store.manifest["schema"] == 2
    assert store.manifest["activations"][RESID]["compression"] == "zstd"
    assert "compression" not in store.manifest["activations"][PLAIN]
    assert store.verify() == []
    for name in (RESID, PATTERN, PLAIN):
        want = arrays[name]
        assert store.read_stored(name)[name].tobytes() == want.tobytes()
        assert store.read_stored(name, [99, 17, 17, 40])[name].tobytes() == want[[99, 17, 17, 40]].tobytes()
        assert store.read_stored(name, slice(18, 30), verify=False)[name].tobytes() == want[18:30].tobytes()
    assert np.abs(store.read(SMALL) - arrays[SMALL]).max() < 0.02
    loader = store.shuffled([RESID, PATTERN], batch_rows=9, seed=0, special=True)
    seen = []
    for batch in loader:
        assert batch[RESID].numpy().tobytes() == arrays[RESID][loader.rows].tobytes()
        assert batch[PATTERN].numpy().tobytes() == arrays[PATTERN][loader.rows].tobytes()
        seen += loader.rows.tolist()
    assert sorted(seen) == list(range(N_ROWS))
    for rows, batch in store.sequential(RESID, batch_rows=9):
        assert torch.is_tensor(batch)
        assert batch.numpy().tobytes() == arrays[RESID][rows].tobytes()


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(0, 9), max_size=6),
    rows_per_shard=st.integers(1, 20),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    compression=st.sampled_from(["lz4", "zstd"]),
    stops=st.sets(st.integers(0, 5)),
)
def test_any_batches_any_shards_any_bits_any_stops(lengths, rows_per_shard, dtype, compression, stops):
    spec = ActivationSpec(("d",), (4,), dtype, compression=compression)
    n_rows = sum(lengths)
    want = np.frombuffer(np.random.default_rng(n_rows).bytes(n_rows * spec.row_bytes), spec.stored).reshape(-1, 4)

    def fill(folder, cuts):
        for cut in cuts:
            with StoreWriter(folder, {"h": spec}, plan(n_rows), {}, rows_per_shard=rows_per_shard) as writer:
                for end in np.cumsum(lengths)[:cut]:
                    if end > writer.next_row:
                        writer.append({"h": want[writer.next_row : end]})

    with TemporaryDirectory() as root:
        fill(Path(root, "often"), [*sorted(stops), len(lengths)])
        lengths = [n_rows]
        fill(Path(root, "once"), [1])
        assert files(Path(root, "often")) == files(Path(root, "once"))
        store = open_store(Path(root, "once"))
        assert store.read_stored("h")["h"].tobytes() == want.tobytes()
        assert store.verify() == []


@pytest.mark.parametrize("batch_rows", [1, 8, 9, 100])
@pytest.mark.parametrize("stops", [[], [3], [8, 30], [20, 47, 99]])
def test_batches_and_stops_do_not_show(tmp_path, folder, all_datasets, batch_rows, stops):
    for stop in [*stops, N_ROWS]:
        write(tmp_path / "often", values(), batch_rows=batch_rows, end=stop)
    assert files(tmp_path / "often") == files(folder)
    assert all_datasets(tmp_path / "often") == all_datasets(folder)


def test_what_repeats_takes_less_room(tmp_path):
    x = np.zeros((N_ROWS, 4000), np.float32)
    x[:, :100] = np.random.default_rng(0).standard_normal((N_ROWS, 100))
    sizes = {}
    for compression in (None, *CODECS):
        spec = ActivationSpec(("d",), (4000,), "float32", compression=compression)
        with StoreWriter(tmp_path / str(compression), {"h": spec}, plan(), {}) as writer:
            writer.append({"h": x})
        store = open_store(tmp_path / str(compression))
        assert np.array_equal(store.read("h"), x)
        sizes[compression] = store.n_bytes
    assert max(sizes["lz4"], sizes["zstd"]) < sizes[None] / 10


def test_hdf5_may_write_of_itself_at_any_time(tmp_path, folder, monkeypatch):
    """Its cache of its own structure holds 2 MiB; what it puts away early is overwritten by what it writes later."""
    true = Draft.place

    def flushing(self, name, first_row, payload):
        place = true(self, name, first_row, payload)
        self.file.flush()
        return place

    monkeypatch.setattr(Draft, "place", flushing)
    write(tmp_path / "acts", values())
    store = open_store(tmp_path / "acts")
    assert store.verify() == []
    assert store.fingerprint() == open_store(folder).fingerprint()


def test_a_sketch_gives_back_what_was_written_last():
    sketch = Sketch()
    for place, data in ((10, b"aaaaaa"), (12, b"bb"), (30, b"c"), (10, b"d")):
        sketch.seek(place)
        sketch.write(data)
    sketch.seek(8)
    buffer = bytearray(10)
    assert sketch.readinto(buffer) == 10
    assert bytes(buffer) == b"\0\0dabbaa\0\0"
    assert sketch.size == 31


def test_a_draft_keeps_no_payload():
    draft = Draft()
    draft.add_compressed("h", np.dtype("<f4"), (6, 50), (4, 50), "zstd")
    payloads = [np.random.default_rng(seed).bytes(700) for seed in range(2)]
    places = [draft.place("h", first, payload) for first, payload in zip((0, 4), payloads, strict=True)]
    draft.close()
    assert places[1] - places[0] >= 700
    assert not any(payload in data for payload in payloads for _, data in draft.sketch.written)


# --- other readers ----------------------------------------------------------------------------------------------------
def test_plain_h5py_reads_shards_and_index(folder):
    arrays = values()
    with h5py.File(folder / "index.h5") as file:
        for name in (RESID, PATTERN, PLAIN):
            assert file[f"activations/{name}"][()].tobytes() == arrays[name].tobytes()
    with h5py.File(folder / "shards" / "000004.h5") as file:
        found = file[f"activations/{RESID}"]
        assert found[()].tobytes() == arrays[RESID][80:].tobytes()
        assert found.chunks == (8, 5)
        assert found.id.get_create_plist().get_filter(0)[0] == FILTER_ID
        assert file[f"activations/{PLAIN}"].chunks is None
        assert file.attrs["schema"] == 2


def test_plain_h5py_without_the_filter_says_so(folder):
    script = f"import h5py; h5py.File({str(folder / 'index.h5')!r})['activations/{RESID}'][()]"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "OSError" in done.stderr


ALONE = """
import sys
import numpy as np
from workbench.cache import ActivationSpec, ExamplesBuilder, StoreWriter
builder = ExamplesBuilder()
builder.sequence(builder.document("d"), np.arange(50))
spec = ActivationSpec(("d",), (8,), "float32", compression="zstd")
with StoreWriter(folder, {"h": spec}, builder.build(), {}) as writer:
    writer.append({"h": np.ones((50, 8), np.float32)})
"""


def test_whether_the_filter_was_loaded_before_does_not_show(tmp_path):
    """HDF5 writes the name of a filter that it knows into the file."""
    before = "import sys; folder = sys.argv[1]; assert 'hdf5plugin' not in sys.modules"
    subprocess.run([sys.executable, "-c", before + ALONE, tmp_path / "alone"], check=True)
    exec(ALONE, {"folder": tmp_path / "here"})  # noqa: S102 - our own lines
    assert files(tmp_path / "alone") == files(tmp_path / "here")


# --- damage -----------------------------------------------------------------------------------------------------------
def outcome(read):
    """What a read gives, or the file that it names as damaged."""
    try:
        return read()
    except DamageError as error:
        return error.damage.file


def test_a_bit_flipped_anywhere_is_found_and_never_becomes_a_number(folder):
    path = folder / "shards" / "000001.h5"
    sound = path.read_bytes()
    rows = {name: open_store(folder).read_stored(name)[name] for name in SPECS}
    rng = np.random.default_rng(0)
    for place in [0, 8, 44, len(sound) - 1, *rng.integers(len(sound), size=120).tolist()]:
        wrong = bytearray(sound)
        wrong[place] ^= 1 << (place % 8)
        path.write_bytes(wrong)
        store = open_store(folder)
        assert {damage.file for damage in store.verify()} == {"shards/000001.h5"}, place
        for name, verify in ((RESID, True), (RESID, False), (PATTERN, False), (SMALL, True)):
            found = outcome(partial(store.read_stored, name, verify=verify))
            assert found == "shards/000001.h5" or found[name].tobytes() == rows[name].tobytes(), (place, name, verify)
    path.write_bytes(sound)
    assert open_store(folder).verify() == []


@pytest.mark.parametrize("verify", [True, False])
def test_damage_names_the_chunk_whether_or_not_checksums_are_asked_for(folder, verify):
    path = folder / "shards" / "000001.h5"
    with h5py.File(path) as file:
        place = file[f"activations/{PATTERN}"].id.get_chunk_info_by_coord((8, 0, 0)).byte_offset
    wrong = bytearray(path.read_bytes())
    wrong[place + 20] ^= 1
    path.write_bytes(wrong)
    store = open_store(folder)
    said = rf"shards/000001\.h5, dataset /activations/{PATTERN}, chunk 1 \(rows 28 to 35\): checksum differs"
    with pytest.raises(DamageError, match=said):
        store.read(PATTERN, [30], verify=verify)
    assert store.read(PATTERN, slice(20, 28), verify=verify).shape == (8, 2, 3)
    assert [(damage.dataset, damage.chunk) for damage in store.verify()] == [(f"/activations/{PATTERN}", 1)]


def test_a_shard_compressed_otherwise_is_damage(folder, tmp_path, monkeypatch):
    """Same name, same rows: another filter is nothing that we open."""
    path = folder / "shards" / "000001.h5"
    with h5py.File(path, "r+") as file:
        x = file[f"activations/{RESID}"][()]
        del file[f"activations/{RESID}"]
        file.create_dataset(f"activations/{RESID}", data=x, chunks=(8, 5), compression="gzip")
    monkeypatch.setattr("workbench.cache.shard.Shard._check_size", lambda self: None)
    with pytest.raises(DamageError, match="compressed with filter 1, not 32001"):
        open_store(folder).read(RESID)


@pytest.mark.parametrize("n_writes", [0, 1, 5, 17, 40])
def test_a_full_disk_is_explained_and_loses_nothing(tmp_path, folder, monkeypatch, n_writes):
    true, left = OpenShard._write, [n_writes]

    def full(self, place, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        true(self, place, data)

    with monkeypatch.context() as patch:
        patch.setattr(OpenShard, "_write", full)
        with pytest.raises(StoreError, match=r"No space left on device; rows before \d+ are safe"):
            write(tmp_path / "full", values())
    assert not list((tmp_path / "full").rglob("*.part"))
    write(tmp_path / "full", values())
    assert files(tmp_path / "full") == files(folder)


def test_an_unknown_compression_is_explained():
    with pytest.raises(StoreError, match="compression='gzip': must be None or one of lz4, zstd"):
        ActivationSpec(("d",), (4,), "float32", compression="gzip")


def test_a_store_is_not_continued_with_another_compression(tmp_path, small_chunks, monkeypatch):
    write(tmp_path / "acts", values(), end=30)
    monkeypatch.setitem(SPECS, RESID, ActivationSpec(("d_model",), (5,), "float32", compression="lz4"))
    with pytest.raises(StoreError, match="other hook points, shapes, types or compression"):
        write(tmp_path / "acts", values())
