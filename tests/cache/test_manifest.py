import contextlib
import json

import numpy as np
import pytest
import xxhash

from workbench.cache import ActivationSpec, DamageError, StoreError, StoreWriter, open_store
from workbench.cache.manifest import Manifest
from workbench.cache.manifest_file import ShardEntry, checksum

RESID = "blocks.0.hook_resid_post"


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


@pytest.mark.parametrize("n_shards", [0, 1, 300])
def test_its_checksum_is_of_all_of_it_as_json_with_sorted_keys(tmp_path, n_shards):
    manifest = Manifest(
        modality="text",
        n_rows=3 * n_shards,
        rows_per_shard=3,
        chunk_rows=2,
        activations={"h": ActivationSpec(("d",), (4,), "int8"), "a": ActivationSpec(("d",), (1,), "float32", "µV")},
        fingerprints={"model": "ç", "dataset": '", "shards": []'},
        examples="0" * 32,
        provenance={"zoo": {"b": [1.5, None], "a": "\n"}, "a name": True},
        shards=tuple(ShardEntry(f"{i:06d}.h5", 3 * i, 3, 999, f"{i:032x}", f"{7 * i:032x}") for i in range(n_shards)),
        int8_factors={"h": "00000000"},
    )
    manifest.write(tmp_path)
    text = (tmp_path / "manifest.json").read_text(encoding="ascii")
    content = json.loads(text)
    assert content.pop("checksum") == xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
    assert content == manifest.to_json()
    assert [line.strip(" ,") for line in text.splitlines() if "digest" in line] == [
        json.dumps(shard, sort_keys=True) for shard in content["shards"]
    ]
    assert Manifest.read(tmp_path) == manifest


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


def with_shard(content, **changes):
    return {"shards": [*content["shards"][:-1], content["shards"][-1] | changes]}


def sealed(folder, change):
    """Change a manifest, and give it the checksum that goes with that."""
    content = json.loads((folder / "manifest.json").read_text())
    del content["checksum"]
    content |= change(content)
    rewrite(folder, **content, checksum=checksum(content))


WRITTEN_WRONGLY = [
    pytest.param(lambda c: {"shards": None}, id="no shards"),
    pytest.param(lambda c: {"chunk_rows": 0}, id="empty chunks"),
    pytest.param(lambda c: {"rows_per_shard": 0}, id="empty shards"),
    pytest.param(lambda c: {"rows_per_shard": 23}, id="another cut"),
    pytest.param(lambda c: {"n_rows": 99}, id="fewer rows"),
    pytest.param(lambda c: {"shards": c["shards"][1:]}, id="the first is gone"),
    pytest.param(lambda c: {"shards": c["shards"][::-1]}, id="order"),
    pytest.param(lambda c: with_shard(c, name="../../shard.h5"), id="a file elsewhere"),
    pytest.param(lambda c: with_shard(c, n_rows=5), id="a row too many"),
    pytest.param(lambda c: with_shard(c, n_rows="4"), id="text"),
]


@pytest.mark.parametrize("change", WRITTEN_WRONGLY)
def test_one_that_cannot_be_is_damaged_though_its_checksum_is_right(store_folder, change):
    sealed(store_folder, change)
    with pytest.raises(DamageError, match=r"manifest\.json: is not what it should be"):
        open_store(store_folder)


def test_what_a_later_version_adds_is_left_alone(store_folder):
    """A new optional key does not raise the schema, wherever it stands."""
    activations = {RESID: {"axes": ["d_model"], "shape": [5], "dtype": "float32", "unit": "resid", "color": "red"}}
    sealed(store_folder, lambda c: {**with_shard(c, color="red"), "color": "red"})
    sealed(store_folder, lambda c: {"activations": c["activations"] | activations})
    store = open_store(store_folder)
    assert store.manifest["color"] == "red"
    assert store.verify() == []


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
