"""No damage on disk ever becomes a number."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import xxhash

from workbench.cache import DamageError, open_store, to_array
from workbench.cache.files import file_digest
from workbench.cache.manifest import Manifest

SHARD = "shards/000001.h5"
RESID = "blocks.0.hook_resid_post"


def regions(path):
    """Name the region of every byte of a shard: each dataset's values by plain h5py, the rest HDF5's own."""
    region = ["structure"] * path.stat().st_size
    with h5py.File(path) as file:

        def note(name, item):
            if isinstance(item, h5py.Dataset):
                start, n = item.id.get_offset(), item.nbytes
                region[start : start + n] = [f"/{name}"] * n

        file.visititems(note)
    return region


def flip(path, place, bit=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def test_a_flipped_bit_names_shard_dataset_and_chunk(store_folder, arrays):
    path = store_folder / SHARD
    with h5py.File(path) as file:
        place = file["activations"][RESID].id.get_offset() + 9 * 5 * 4  # row 9 of the shard: its second chunk of 8
    flip(path, place)
    store = open_store(store_folder)  # opening is light, and must work for `verify`
    said = rf"shards/000001\.h5, dataset /activations/{RESID}, chunk 1 \(rows 32 to 39\): checksum differs"
    reads = [
        lambda: store.read(RESID),
        lambda: store.read(RESID, slice(33, 34)),
        lambda: store.read(RESID, [99, 33]),
        lambda: store.read_tensor(RESID, [39]),
        lambda: list(store.shuffled(RESID, batch_rows=7, seed=0)),
        lambda: list(store.sequential([RESID], batch_rows=7)),
    ]
    for read in reads:
        with pytest.raises(DamageError, match=said):
            read()
    assert np.array_equal(store.read(RESID, slice(0, 32)), arrays[RESID][:32], equal_nan=True)
    assert np.array_equal(store.read(RESID, slice(40, None)), arrays[RESID][40:], equal_nan=True)
    (damage,) = store.verify()
    assert (damage.file, damage.dataset, damage.chunk, damage.rows) == (SHARD, f"/activations/{RESID}", 1, (32, 40))
    assert store.read(RESID, slice(33, 34), verify=False).shape == (1, 5)  # asked for, and given


def outcome(read):
    """What a read gives, or the file that it names as damaged."""
    try:
        return read()
    except DamageError as error:
        return error.damage.file


def survive(folder, arrays, sound_origins):
    """Read everything: right numbers or a DamageError."""
    store = open_store(folder)
    for name, want in arrays.items():
        assert outcome(lambda name=name: to_array(store.read_tensor(name)).tobytes()) in (want.tobytes(), SHARD)
    assert outcome(lambda: store.origins.tobytes()) in (sound_origins.tobytes(), SHARD)


def harm_everywhere(folder, arrays, places):
    path = folder / SHARD
    sound, region = path.read_bytes(), regions(path)
    origins = open_store(folder).origins
    for place, bit in places(len(sound)):
        flip(path, place, bit)
        found = open_store(folder).verify()
        assert found, f"bit {bit} of byte {place} ({region[place]}) was not found"
        assert {damage.file for damage in found} == {SHARD}
        if region[place] != "structure":
            values = region[place].replace("/checksums/rows", "/rows").replace("/checksums", "/activations")
            values = values.replace("/special/checksum", "/special/counts")
            assert [damage.dataset for damage in found] == [values]
        survive(folder, arrays, origins)
        path.write_bytes(sound)
    assert open_store(folder).verify() == []


def test_a_bit_flipped_anywhere_is_found(store_folder, arrays):
    rng = np.random.default_rng(0)

    def some(n_bytes):
        ends = [(place, 0) for place in (0, 8, 9, 12, 44, 50, n_bytes - 1)]  # signature, superblock, its checksum
        return ends + [(int(rng.integers(n_bytes)), int(rng.integers(8))) for _ in range(60)]

    harm_everywhere(store_folder, arrays, some)


@pytest.mark.slow
def test_every_fifth_byte_of_a_shard_is_covered(store_folder, arrays):
    harm_everywhere(store_folder, arrays, lambda n_bytes: [(place, place % 8) for place in range(0, n_bytes, 5)])


def test_a_wrong_count_of_special_rows_is_found_though_its_checksums_are_right(store_folder):
    """A writer that counts wrongly, or somebody who edits a shard and its checksums, digest and manifest with it."""
    path = store_folder / SHARD
    with h5py.File(path, "r+") as file:
        counts = file["special/counts"][:]
        counts[1] += 1
        file["special/counts"][:] = counts
        file["special/checksum"][:] = xxhash.xxh3_64_intdigest(counts.tobytes())
    manifest = Manifest.read(store_folder)
    shards = [
        replace(entry, digest=file_digest(path), n_bytes=path.stat().st_size) if entry.name in SHARD else entry
        for entry in manifest.shards
    ]
    replace(manifest, shards=tuple(shards)).write(store_folder)
    (damage,) = open_store(store_folder).verify()
    assert (damage.file, damage.dataset, damage.chunk, damage.rows) == (SHARD, "/special/counts", 1, (32, 40))
    assert damage.what == f"says {counts[1]} rows of special tokens, /rows has {counts[1] - 1}"


@pytest.mark.parametrize("n_left", [0, 1, 100, -1])
def test_a_truncated_shard_is_an_error(store_folder, arrays, n_left):
    path = store_folder / SHARD
    path.write_bytes(path.read_bytes()[:n_left])
    store = open_store(store_folder)
    with pytest.raises(DamageError, match=rf"{SHARD} \(rows 24 to 47\): has \d+ bytes, the manifest says \d+"):
        store.read(RESID)
    assert np.array_equal(store.read(RESID, slice(24)), arrays[RESID][:24], equal_nan=True)
    assert [damage.file for damage in store.verify()] == [SHARD]


def test_truncated_after_it_was_looked_at(store_folder):
    store = open_store(store_folder)
    store.read(RESID, [24])
    path = store_folder / SHARD
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DamageError, match="ends too early"):
        store.read(RESID)


def test_a_missing_shard_is_an_error(store_folder):
    (store_folder / SHARD).unlink()
    store = open_store(store_folder)
    with pytest.raises(DamageError, match=rf"{SHARD} .*: cannot be read \(No such file or directory\)"):
        store.read(RESID)
    assert [damage.file for damage in store.verify()] == [SHARD]


def test_a_shard_of_another_store_is_found(store_folder):
    """Right in itself, of the right size, in the wrong place: read neither as rows nor as origins."""
    other = (store_folder / "shards/000002.h5").read_bytes()
    (store_folder / SHARD).write_bytes(other)
    store = open_store(store_folder)
    with pytest.raises(DamageError, match="its checksums are not those that the manifest has"):
        store.read(RESID, [24])
    assert [damage.file for damage in store.verify()] == [SHARD]


def test_verify_reports_progress_and_every_file(store_folder):
    store, seen = open_store(store_folder), []
    assert store.verify(seen.append) == []
    assert len(seen) == 5
    assert sum(seen) == store.n_bytes == sum(path.stat().st_size for path in (store_folder / "shards").iterdir())
    (store_folder / "examples.h5").write_bytes(b"gone")
    flip(store_folder / SHARD, 3)
    assert [damage.file for damage in open_store(store_folder).verify()] == ["examples.h5", SHARD]
