"""No damage on disk ever becomes a number."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash

from workbench.cache import ActivationSpec, DamageError, ExamplesBuilder, StoreWriter, open_store, to_array, verify
from workbench.cache.files import file_digest
from workbench.cache.index import write_index
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
@pytest.mark.parametrize("name", ["examples.h5", "index.h5", "labels/g.h5", SHARD])
def test_a_pipe_in_the_place_of_a_file_is_damage_and_no_hang(store_folder, name):
    (store_folder / "labels").mkdir()
    (store_folder / name).unlink(missing_ok=True)
    os.mkfifo(store_folder / name)
    assert [damage.file for damage in open_store(store_folder).verify()] == [name]


@pytest.mark.parametrize("dataset", ["sequences/first_row", "sequences/n_rows"])
def test_what_the_plan_has_for_other_readers_is_verified(store_folder, dataset):
    path = store_folder / "examples.h5"
    with h5py.File(path) as file:
        place = file[dataset].id.get_offset() + 8
    flip(path, place)
    (damage,) = open_store(store_folder).verify()
    assert (damage.file, damage.dataset) == ("examples.h5", f"/{dataset}")


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


@pytest.mark.long
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


def test_verify_tells_of_every_megabyte_and_reads_each_byte_once(tmp_path):
    n_rows, folder = 3000, tmp_path / "acts"
    builder = ExamplesBuilder()
    builder.sequence(builder.document("d"), np.arange(n_rows))
    specs = {"x": ActivationSpec(("d_model",), (700,), "float32"), "y": ActivationSpec(("d_model",), (33,), "float16")}
    with StoreWriter(folder, specs, builder.build(), {}, rows_per_shard=n_rows) as writer:
        rows = np.random.default_rng(0).standard_normal((n_rows, 700), np.float32)
        writer.append({"x": rows, "y": rows[:, :33].astype(np.float16)})
    store, seen = open_store(folder), []
    before = n_bytes_read()
    assert store.verify(seen.append) == []
    assert max(seen) <= 1 << 20
    assert sum(seen) == store.n_bytes > 8e6
    if before is not None:
        assert store.n_bytes <= n_bytes_read() - before < 1.1 * store.n_bytes


def n_bytes_read():
    """Bytes that this process has asked the system for; None where it does not say."""
    path = Path("/proc/self/io")
    return int(path.read_text().split("rchar: ")[1].split()[0]) if path.exists() else None


def test_a_bad_sector_costs_its_chunk_and_no_other(store_folder, monkeypatch):
    """The disk refuses some bytes: the rest is still checked, and told what it is."""
    path = store_folder / SHARD
    with h5py.File(path) as file:
        place = file["activations"][RESID].id.get_offset() + 9 * 5 * 4  # chunk 1
    preadv = os.preadv

    def refuse(handle, buffers, offset, *flags):
        if os.fstat(handle).st_ino == path.stat().st_ino and offset <= place < offset + len(buffers[0]):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(handle, buffers, offset, *flags)

    def refuse_all(file, extents):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", refuse)
    monkeypatch.setattr(verify, "read_through", refuse_all)
    found = [damage for damage in open_store(store_folder).verify() if damage.file == SHARD]
    assert [(damage.chunk, damage.what) for damage in found] == [(None, "cannot be read (Input/output error)")]
    assert found[0].dataset == f"/activations/{RESID}"


def test_ctrl_c_ends_a_check_at_once(store_folder):
    def interrupt(n_bytes):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_store(store_folder).verify(interrupt)


@pytest.mark.parametrize("harm", ["missing", "bit", "other rows", "other store"])
def test_a_damaged_index_is_found(store_folder, tmp_path, arrays, examples, write_store, harm):
    path = store_folder / "index.h5"
    if harm == "missing":
        path.unlink()
    elif harm == "bit":
        flip(path, 12)
    elif harm == "other rows":
        write_index(store_folder, replace(Manifest.read(store_folder), n_rows=1, shards=()))
    else:
        write_store(tmp_path / "other", {RESID: arrays[RESID]}, examples, rows_per_shard=24)
        path.write_bytes((tmp_path / "other/index.h5").read_bytes())
    assert {damage.file for damage in open_store(store_folder).verify()} == {"index.h5"}
