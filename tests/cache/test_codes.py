"""Codes come back by row and by latent as they were written; damage is named; kills lose nothing."""

import json
import os
import pickle  # noqa: TID251
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.cache import CodesWriter, StoreError, open_store
from workbench.cache.codes import check_codes, open_codes
from workbench.cache.errors import DamageError
from workbench.cache.manifest_file import checksum

LATENTS = 7


def dense_codes(n_rows, seed=0, latents=LATENTS, share=0.4):
    """Random activations [rows, latents], most of them zero; the first row and the last latent have none."""
    rng = np.random.default_rng(seed)
    codes = rng.random((n_rows, latents), dtype=np.float32) * (rng.random((n_rows, latents)) < share)
    codes[:1], codes[:, -1:] = 0, 0
    return codes


def parts(codes):
    counts = (codes > 0).sum(1)
    return counts, np.nonzero(codes)[1], codes[codes > 0]


def writer(store, n_rows, latents=LATENTS, name="d", rows_per_shard=8, **changes):
    given = {
        "n_rows": n_rows,
        "n_latents": latents,
        "dtype": "float32",
        "fingerprints": {"store": "s", "dictionary": "d"},
        "provenance": {"dictionary": {"k": 3}},
    }
    return CodesWriter(store, name, rows_per_shard=rows_per_shard, **(given | changes))


def write(store, codes, batch_rows=4, end=None, **options):
    with writer(store, len(codes), codes.shape[1], **options) as codes_writer:
        stop = len(codes) if end is None else end
        while codes_writer.next_row < stop:
            at = codes_writer.next_row
            room = codes_writer.rows_per_shard - at % codes_writer.rows_per_shard
            n = min(batch_rows, room, stop - at)
            codes_writer.append(*parts(codes[at : at + n]))
    return codes_writer


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@given(
    n_rows=st.integers(0, 40),
    latents=st.sampled_from([1, 7, 70_000]),
    rows_per_shard=st.integers(1, 12),
    batch_rows=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_come_back_by_row_and_by_latent(n_rows, latents, rows_per_shard, batch_rows, share, seed):
    wide = dense_codes(n_rows, seed, min(latents, 9), share)
    at = np.unique(np.linspace(0, latents - 1, wide.shape[1]).astype(int))
    wide = wide[:, : len(at)]
    with TemporaryDirectory() as folder:
        with writer(Path(folder), n_rows, latents, rows_per_shard=rows_per_shard) as codes_writer:
            while codes_writer.next_row < n_rows:
                first = codes_writer.next_row
                end = min(first + batch_rows, (first // rows_per_shard + 1) * rows_per_shard, n_rows)
                counts, columns, values = parts(wide[first:end])
                codes_writer.append(counts, at[columns], values)
        codes = open_codes(Path(folder), "d")
        assert codes.finished
        assert (codes.n_rows, codes.n_latents, codes.n_entries) == (n_rows, latents, int((wide > 0).sum()))
        np.testing.assert_array_equal(codes.csr()[:, at].toarray(), wide)
        for column, latent in enumerate(at):
            rows, values = codes.latent(int(latent))
            assert rows.tolist() == np.flatnonzero(wide[:, column]).tolist()
            np.testing.assert_array_equal(values, wide[wide[:, column] > 0, column])
        np.testing.assert_array_equal(codes.counts[at], (wide > 0).sum(0))
        assert codes.counts.sum() == codes.n_entries
        rng = np.random.default_rng(seed)
        for rows in (rng.integers(0, n_rows, 11), rng.permutation(n_rows)) if n_rows else ():
            np.testing.assert_array_equal(codes.csr(rows)[:, at].toarray(), wide[rows])
        assert list(check_codes(Path(folder))) == []


def test_rows_are_asked_for_in_every_way(tmp_path):
    dense = dense_codes(20)
    write(tmp_path, dense)
    codes = open_codes(tmp_path, "d")
    for rows in (slice(3, 17), slice(None, None, -3), dense[:, 0] > 0, [5, 5, 0, -1], []):
        wanted = dense[rows] if len(np.atleast_1d(rows)) else dense[:0]
        np.testing.assert_array_equal(codes.csr(rows).toarray(), wanted)
    latents, values = codes.row(4)
    assert latents.tolist() == np.flatnonzero(dense[4]).tolist()
    np.testing.assert_array_equal(values, dense[4][dense[4] > 0])
    assert pickle.loads(pickle.dumps(codes)).fingerprint() == codes.fingerprint()
    with pytest.raises(StoreError, match="row 20: the store has 20 rows"):
        codes.read([20])
    with pytest.raises(StoreError, match="latent 7: codes 'd' have 7 latents"):
        codes.latent(7)


def test_plain_h5py_reads_them(tmp_path):
    dense = dense_codes(20)
    write(tmp_path, dense)
    with h5py.File(tmp_path / "codes" / "d" / "shards" / "000001.h5") as file:
        first, n_rows = file.attrs["first_row"], file.attrs["n_rows"]
        bounds, latents, values = (file[f"rows/{name}"][()] for name in ("bounds", "latents", "values"))
        rebuilt = np.zeros((n_rows, LATENTS), np.float32)
        rebuilt[np.repeat(np.arange(n_rows), np.diff(bounds)), latents] = values
        np.testing.assert_array_equal(rebuilt, dense[first : first + n_rows])
        start, end = file["latents/bounds"][2:4]
        assert (first + file["latents/rows"][start:end]).tolist() == (first + np.flatnonzero(rebuilt[:, 2])).tolist()


# --- written in pieces -----------------------------------------------------------------------------------------------
def test_however_often_it_is_stopped_the_bytes_are_the_same(tmp_path):
    dense = dense_codes(45)
    write(tmp_path / "whole", dense)
    for end in (0, 3, 8, 13, 24, 31, 45):
        stopped = write(tmp_path / "pieces", dense, end=end)
        assert stopped.next_row == (end // 8 * 8 if end < 45 else 45)
        assert stopped.finished == (end == 45)
    assert contents(tmp_path / "whole") == contents(tmp_path / "pieces")
    assert write(tmp_path / "pieces", dense).finished  # a finished one stays as it is


@pytest.mark.parametrize("step", range(12))
def test_a_failure_at_any_step_that_changes_the_disk_loses_the_open_shard_at_most(step, tmp_path, monkeypatch):
    dense = dense_codes(20)
    write(tmp_path / "whole", dense)
    left, replace = [step], Path.replace

    def failing(self, target):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        breaks = step < 8  # manifest, three shards and their manifests, the end
        with pytest.raises(StoreError, match="No space left") if breaks else nullcontext():
            write(tmp_path / "pieces", dense)
    for name in ("000001.h5", "000002.h5"):  # a shard that was renamed and not listed is written again
        (tmp_path / "pieces" / "codes" / "d" / "shards").mkdir(parents=True, exist_ok=True)
        stray = tmp_path / "pieces" / "codes" / "d" / "shards" / name
        if not stray.exists():
            stray.write_bytes(b"stray")
    write(tmp_path / "pieces", dense)
    assert contents(tmp_path / "whole") == contents(tmp_path / "pieces")


def test_a_manifest_written_wrongly_is_damage_and_what_a_later_version_adds_is_left_alone(tmp_path):
    write(tmp_path, dense_codes(20))
    path = tmp_path / "codes/d/manifest.json"
    whole = json.loads(path.read_text())
    del whole["checksum"]
    for change, n_faults in ({"rows_per_shard": 9}, 1), ({"dtype": None}, 1), ({"color": "red"}, 0):
        content = whole | change | {"shards": [entry | {"color": "red"} for entry in whole["shards"]]}
        path.write_text(json.dumps(content | {"checksum": checksum(content)}))
        assert len(list(check_codes(tmp_path))) == n_faults


def test_a_lost_manifest_is_damage(tmp_path):
    write(tmp_path, dense_codes(20))
    (tmp_path / "codes/d/manifest.json").unlink()
    assert [str(damage) for damage in check_codes(tmp_path)] == ["codes/d/manifest.json: is missing"]
    (tmp_path / "codes/e/shards").mkdir(parents=True)  # of a writer that was killed before it had one
    assert len(list(check_codes(tmp_path))) == 1


BAD_INPUT = [
    pytest.param({"name": "../d"}, "a name has letters, digits", id="name"),
    pytest.param({"fingerprints": {"store": "s", "dictionary": "e"}}, "another dictionary (d, now e)", id="dictionary"),
    pytest.param({"fingerprints": {"store": "t", "dictionary": "d"}}, "another store (s, now t)", id="store"),
    pytest.param({"n_rows": 21}, "another rows (20, now 21)", id="rows"),
]


@pytest.mark.parametrize(("changes", "says"), BAD_INPUT)
def test_other_codes_are_refused(changes, says, tmp_path):
    write(tmp_path, dense_codes(20))
    with pytest.raises(StoreError) as error:
        writer(tmp_path, **({"n_rows": 20} | changes))
    assert says in str(error.value)


def test_rows_that_do_not_fit_and_second_writers_are_refused(tmp_path):
    with writer(tmp_path, 20) as first:
        with pytest.raises(StoreError, match="is being written by another process"):
            writer(tmp_path, 20)
        with pytest.raises(StoreError, match="the open shard ends at row 8"):
            first.append(*parts(dense_codes(9)))
        with pytest.raises(StoreError, match="counts say 3 entries"):
            first.append(np.array([3]), np.array([1]), np.array([1.0]))


def test_names_are_suggested(tmp_path):
    with pytest.raises(StoreError, match="has no codes 'd'; 'workbench encode' makes them"):
        open_codes(tmp_path, "d")
    write(tmp_path, dense_codes(20), name="sae-1")
    with pytest.raises(StoreError, match="nearest: sae-1"):
        open_codes(tmp_path, "sae-2")


# --- damage ----------------------------------------------------------------------------------------------------------
def test_any_byte_that_changes_is_found_and_never_read(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.cache.codes_shard.CHUNK_ENTRIES", 4)
    dense = dense_codes(20)
    write(tmp_path, dense)
    path = tmp_path / "codes" / "d" / "shards" / "000001.h5"
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    named = 0
    for at in rng.choice(len(sound), 150, replace=False):
        damaged = bytearray(sound)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        found = list(check_codes(tmp_path))
        assert found, at
        assert all(damage.file == "codes/d/shards/000001.h5" for damage in found)
        named += any(damage.chunk is not None for damage in found)
        with suppress(DamageError):
            np.testing.assert_array_equal(open_codes(tmp_path, "d").csr().toarray(), dense)
    assert named  # the chunk, where it is one
    path.write_bytes(sound[:-1])
    assert [damage.what for damage in check_codes(tmp_path)] == ["does not have the size that the manifest says"]
    path.unlink()
    assert [damage.what for damage in check_codes(tmp_path)] == ["is missing"]
    codes = open_codes(tmp_path, "d")
    np.testing.assert_array_equal(codes.csr(slice(0, 8)).toarray(), dense[:8])  # the others can be read
    with pytest.raises(DamageError, match=r"codes/d/shards/000001\.h5 \(rows 8 to 15\): is missing"):
        codes.read([9])


def test_a_damaged_or_newer_manifest_is_named(tmp_path):
    write(tmp_path, dense_codes(20))
    path = tmp_path / "codes" / "d" / "manifest.json"
    sound = path.read_text()
    path.write_text(sound.replace('"n_latents": 7', '"n_latents": 8'))
    with pytest.raises(DamageError, match=r"codes/d/manifest\.json: its contents differ from its checksum"):
        open_codes(tmp_path, "d")
    path.write_text(sound.replace('"schema": 1', '"schema": 2'))
    with pytest.raises(StoreError, match="were written in schema 2"):
        open_codes(tmp_path, "d")
    path.write_text(sound[:100])
    assert [damage.file for damage in check_codes(tmp_path)] == ["codes/d/manifest.json"]


def test_a_store_lists_opens_and_verifies_its_codes(store_folder):
    store = open_store(store_folder)
    dense = dense_codes(store.n_rows)
    fingerprints = {"store": store.fingerprint(), "dictionary": "d"}
    write(store_folder, dense, fingerprints=fingerprints)
    write(store_folder, dense, name="old", fingerprints={"store": "another", "dictionary": "d"})
    assert store.codes_names == ["d", "old"]
    np.testing.assert_array_equal(store.codes("d").csr([3, 50]).toarray(), dense[[3, 50]])
    with pytest.raises(StoreError, match="codes 'old' are of other rows than the store has now"):
        store.codes("old")
    assert store.verify() == []
    path = store_folder / "codes" / "d" / "shards" / "000002.h5"
    path.write_bytes(path.read_bytes()[:-5])
    assert [damage.file for damage in store.verify()] == ["codes/d/shards/000002.h5"]


# --- killed ----------------------------------------------------------------------------------------------------------
KILLED = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("codes_test", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("ready", flush=True)
module.write(Path(sys.argv[2]), module.dense_codes(4000), batch_rows=20, rows_per_shard=100)
"""


@pytest.mark.crash
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_at_random_times_it_ends_with_the_same_bytes(tmp_path):
    write(tmp_path / "whole", dense_codes(4000), batch_rows=20, rows_per_shard=100)
    rng = random.Random(0)
    command = [sys.executable, "-c", KILLED, __file__, str(tmp_path / "killed")]
    for _ in range(12):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.4))
            os.kill(process.pid, signal.SIGKILL)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")
