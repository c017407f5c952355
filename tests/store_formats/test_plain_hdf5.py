"""Plain h5py, in a process that knows nothing of us, and the HDF5 group's own `h5ls` read a store."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

RESID, PATTERN, MLP = "blocks.0.hook_resid_post", "blocks.0.attn.hook_pattern", "blocks.1.hook_mlp_out"

READ = """
import hashlib, json, sys
import h5py
assert "workbench" not in sys.modules
found = {}
with h5py.File(sys.argv[1], "r") as file:
    def note(name, item):
        if isinstance(item, h5py.Dataset):
            digest = hashlib.sha256(item[()].tobytes()).hexdigest()
            found[name] = [str(item.dtype), list(item.shape), digest, {k: str(v) for k, v in item.attrs.items()}]
    file.visititems(note)
print(json.dumps(found))
"""


def read(path):
    """Read every dataset of a file with h5py alone; from the root, so that no path counts from the store."""
    code = [sys.executable, "-I", "-c", READ, str(path)]
    return json.loads(subprocess.run(code, cwd="/", capture_output=True, text=True, check=True).stdout)


def described(array, **attributes):
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return [str(array.dtype), list(array.shape), digest, {"unit": "", **attributes}]


def expected(bits, rows, origins):
    return {
        f"activations/{RESID}": described(bits[RESID][rows], dtype="float32", axes="row d_model", unit="resid"),
        f"activations/{PATTERN}": described(bits[PATTERN][rows], dtype="float16", axes="row head key"),
        f"activations/{MLP}": described(bits[MLP][rows], dtype="bfloat16", axes="row d_model"),
        "rows": [str(origins.dtype), [len(origins[rows])], described(origins[rows])[2], {}],
    }


@pytest.mark.parametrize("name", ["acts", "moved", "with spaces, ünïcode"])
def test_the_index_shows_all_shards_as_one_wherever_the_store_lies(make_store, tmp_path, name):
    store, bits = make_store(tmp_path / "acts")
    origins = np.array(store.origins)
    folder = (tmp_path / "acts").rename(tmp_path / name)
    assert read(folder / "index.h5") == expected(bits, slice(None), origins)


def test_a_copy_is_read_without_the_original(make_store, tmp_path):
    store, bits = make_store(tmp_path / "acts")
    origins = np.array(store.origins)
    shutil.copytree(tmp_path / "acts", tmp_path / "copy")
    shutil.rmtree(tmp_path / "acts")
    assert read(tmp_path / "copy" / "index.h5") == expected(bits, slice(None), origins)


def test_an_unfinished_store_shows_what_is_committed(make_store, tmp_path):
    store, bits = make_store(tmp_path / "acts", stop=20)  # two shards of 8 rows
    assert read(tmp_path / "acts" / "index.h5") == expected(bits, slice(16), np.array(store.origins))


def test_each_shard_is_read_alone(make_store, tmp_path):
    store, bits = make_store(tmp_path / "acts")
    for number, path in enumerate(sorted((tmp_path / "acts" / "shards").glob("*.h5"))):
        alone = shutil.copy(path, tmp_path / "alone.h5")
        found = {name: entry for name, entry in read(alone).items() if not name.startswith(("checksums/", "special/"))}
        assert found == expected(bits, slice(8 * number, 8 * number + 8), np.array(store.origins))


H5LS = pytest.mark.skipif(shutil.which("h5ls") is None, reason="no h5ls here: apt install hdf5-tools (issue 4)")


def h5ls(*words):
    return subprocess.run(["h5ls", *map(str, words)], cwd="/", capture_output=True, text=True, check=True).stdout


@H5LS
def test_h5ls_lists_and_reads_the_index(make_store, tmp_path):
    store, bits = make_store(tmp_path / "acts")
    token = store.origins["token"][17]
    folder = (tmp_path / "acts").rename(tmp_path / "moved store")
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in h5ls("-r", folder / "index.h5").splitlines()}
    assert listed[f"/activations/{RESID}"] == "Dataset {42, 5}"
    assert listed[f"/activations/{PATTERN}"] == "Dataset {42, 2, 3}"
    assert listed["/rows"] == "Dataset {42}"
    shown = h5ls("-d", f"{folder / 'index.h5'}/activations/{MLP}")
    values = [
        int(word.rstrip(",")) for line in shown.splitlines() for word in line.split() if word.strip(",").isdecimal()
    ]
    assert values == bits[MLP].reshape(-1).tolist()
    rows = h5ls("-d", folder / "index.h5/rows")
    assert f"{{1, 2, 3, {token}, FALSE}}" in rows


@H5LS
def test_h5ls_lists_a_shard(make_store, tmp_path):
    make_store(tmp_path / "acts")
    listed = h5ls("-r", tmp_path / "acts" / "shards" / "000005.h5")
    assert f"/activations/{RESID}" in listed
    assert f"/checksums/{RESID}" in listed
    assert "{2, 5}" in listed  # 42 rows in shards of 8
