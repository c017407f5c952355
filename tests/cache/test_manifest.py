import contextlib
import json

import numpy as np
import pytest

from workbench.cache import DamageError, StoreError, StoreWriter, open_store


def rewrite(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_it_says_what_is_there(store_folder, arrays, manifest):
    content = json.loads((store_folder / "manifest.json").read_text())
    assert content["fingerprints"] == manifest["fingerprints"]
    assert content["model"] == "zoo:test"
    assert content["software"].keys() >= {"h5py", "hdf5", "numpy", "python", "xxhash"}
    assert [shard["n_rows"] for shard in content["shards"]] == [24, 24, 24, 24, 4]
    assert list(content["activations"]) == list(arrays)
    assert open_store(store_folder).manifest == {k: v for k, v in content.items() if k != "checksum"}


def test_a_newer_version_says_so(store_folder):
    rewrite(store_folder, schema=99)
    with pytest.raises(StoreError, match="was written in schema 99; this version reads up to 2: upgrade"):
        open_store(store_folder)


def test_another_format_is_no_store(store_folder):
    rewrite(store_folder, format="recipes")
    with pytest.raises(StoreError, match=r"is not an activation store: manifest.json is of format 'recipes'"):
        open_store(store_folder)


def test_edited_by_hand_is_refused(store_folder):
    rewrite(store_folder, n_rows=99)
    with pytest.raises(DamageError, match=r"manifest.json: its contents differ from its checksum"):
        open_store(store_folder)


def test_no_flipped_bit_is_believed(store_folder):
    path = store_folder / "manifest.json"
    sound, manifest = path.read_bytes(), open_store(store_folder).manifest
    for place in np.random.default_rng(0).integers(0, len(sound), 300).tolist():
        path.write_bytes(sound[:place] + bytes([sound[place] ^ (1 << place % 8)]) + sound[place + 1 :])
        with contextlib.suppress(StoreError):
            assert open_store(store_folder).manifest == manifest  # a flip in white space


@pytest.mark.parametrize("n", [0, 1, 100])
def test_a_truncated_one_is_damaged(store_folder, n):
    path = store_folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:n])
    with pytest.raises(DamageError, match=r"manifest.json: cannot be read"):
        open_store(store_folder)


BAD = [
    pytest.param({"shards": []}, "the manifest's shards is the store's own", id="taken name"),
    pytest.param({"fingerprints": {"model": 3}}, "must be strings", id="number as fingerprint"),
    pytest.param({"fingerprints": {"examples": "x"}}, "a fingerprint may not be called examples", id="taken print"),
    pytest.param({"device": object()}, "must have a JSON form", id="object"),
    pytest.param({"scale": float("nan")}, "must have a JSON form", id="nan"),
]


@pytest.mark.parametrize(("given", "says"), BAD)
def test_what_a_capture_may_not_say(tmp_path, specs, examples, given, says):
    with pytest.raises(StoreError, match=says):
        StoreWriter(tmp_path / "acts", specs, examples, given)
    assert not (tmp_path / "acts").exists()  # nothing half-written
